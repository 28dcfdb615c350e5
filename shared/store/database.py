"""The connection to Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import RowMapping
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

Connection: TypeAlias = AsyncConnection
Engine: TypeAlias = AsyncEngine
Row: TypeAlias = RowMapping
Values: TypeAlias = Sequence[Mapping[str, Any]]

STATEMENT_TIMEOUT_SECONDS = 30


def connect(database_url: str, *, application: str, pool_size: int = 5) -> AsyncEngine:
    """Make the pool of connections that one service uses.

    Args:
        database_url: `postgresql://user:password@host:port/database`.
        application: shown in `pg_stat_activity`.
        pool_size: connections kept open.

    Returns:
        An engine; nothing is connected until it is used. A connection that the server closed is replaced
        before use, so that a restart of Postgres costs one retry.
    """
    return create_async_engine(
        async_url(database_url),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        connect_args={
            "timeout": 10,
            "command_timeout": STATEMENT_TIMEOUT_SECONDS,
            "server_settings": {
                "application_name": application,
                "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
                "idle_in_transaction_session_timeout": "60s",
            },
        },
    )


def async_url(database_url: str) -> str:
    """Name the asyncpg driver in a plain `postgresql://` address, whatever driver it named before."""
    return make_url(database_url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)

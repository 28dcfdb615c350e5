"""The connection to Postgres."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy import RowMapping, event
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import AdaptedConnection, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared.domain.errors import PermanentError
from shared.runtime.keepalive import IDLE_SECONDS, PROBE_SECONDS, PROBES, UNACKNOWLEDGED_SECONDS, keep_alive
from shared.store.port import StoreUnavailable

Connection: TypeAlias = AsyncConnection
Engine: TypeAlias = AsyncEngine
Row: TypeAlias = RowMapping
Values: TypeAlias = Sequence[Mapping[str, Any]]

T = TypeVar("T")

CONNECT_SECONDS = 5
PING_SECONDS = 3.0
"""A server that does not answer an empty statement within this time is frozen, or the line to it is dead."""
STATEMENT_TIMEOUT_SECONDS = 15
"""Longer than any statement of ours waits for a row that a frozen process holds, see below."""
IDLE_IN_TRANSACTION_SECONDS = 10
"""A process that is frozen inside of a transaction holds its row locks no longer than this. More than a relay needs
to publish what it has locked."""
DRIVER_ERRORS = (asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises where a connection's end, or a statement that was cut short, left it in no usable state."""
CHUNK = 1000
"""Rows of one INSERT, or of one answer to a long query."""


class DatabaseAddressInvalid(PermanentError):
    """An address of Postgres that cannot be read."""

    reason = "DatabaseAddressInvalid"


class DatabaseUnavailable(StoreUnavailable):
    """Postgres does not answer, refuses, or lacks our schema."""


def connect(database_url: str, *, application: str, pool_size: int = 5) -> AsyncEngine:
    """Make the pool of connections that one service uses.

    Args:
        database_url: `postgresql://user:password@host:port/database`.
        application: shown in `pg_stat_activity`.
        pool_size: connections kept open.

    Returns:
        An engine; nothing is connected until it is used. A connection that the server closed is replaced
        before use, so that a restart of Postgres costs one retry.

    Raises:
        DatabaseAddressInvalid: the address cannot be read.
    """
    engine = create_async_engine(
        async_url(database_url),
        pool_size=pool_size,
        max_overflow=pool_size,
        connect_args={
            "timeout": CONNECT_SECONDS,
            "command_timeout": STATEMENT_TIMEOUT_SECONDS,
            "connection_class": _WatchedConnection,
            "server_settings": {
                "application_name": application,
                "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
                "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_SECONDS}s",
                # The server, too, forgets clients whose host is gone, and with them their locks and their seats.
                "tcp_keepalives_idle": str(IDLE_SECONDS),
                "tcp_keepalives_interval": str(PROBE_SECONDS),
                "tcp_keepalives_count": str(PROBES),
                "tcp_user_timeout": f"{UNACKNOWLEDGED_SECONDS}s",
            },
        },
    )
    # Not the pool's own pre-ping, which waits for as long as a statement may take, and takes three round trips.
    event.listen(engine.sync_engine, "checkout", _check_answers)
    return engine


class _WatchedConnection(asyncpg.Connection):
    """A connection whose socket notices that the server's host is gone."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        connection = transport.get_extra_info("socket")
        assert connection is not None
        keep_alive(connection)


def _check_answers(connection: AdaptedConnection, *_: object) -> None:
    """Before a connection is used: does the server answer on it? If not, the pool replaces it and all its others."""

    async def ping(driver: asyncpg.Connection) -> None:
        await driver.fetchrow(";", timeout=PING_SECONDS)

    try:
        connection.run_async(ping)
    except (*DRIVER_ERRORS, asyncpg.PostgresError, OSError, TimeoutError) as error:
        raise InvalidatePoolError(f"the server does not answer: {error!r}") from error


def text_array(values: Iterable[str]) -> sa.ColumnElement[Sequence[str]]:
    """Texts as one parameter of a statement, however many they are: Postgres takes 32,767 parameters.

    `column == sa.any_(text_array(values))` is the unlimited form of `column IN (…)`.
    """
    return sa.cast(list(values), ARRAY(sa.Text))


async def pieces(
    connection: Connection, query: sa.Select[tuple[Any, ...]]
) -> AsyncIterator[Sequence[sa.Row[tuple[Any, ...]]]]:
    """Rows of a query that may have any number of them, some at a time.

    Each piece is an answer of its own: it has the whole statement timeout, and others run while it is on its way.
    """
    async with connection.stream(query, execution_options={"yield_per": CHUNK}) as rows:
        async for piece in rows.partitions():
            yield piece


def chunks(rows: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """Rows in pieces that one INSERT can take; each row is a handful of parameters."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def async_url(database_url: str) -> str:
    """Name the asyncpg driver in a plain `postgresql://` address, whatever driver it named before.

    Raises:
        DatabaseAddressInvalid: the address cannot be read. The message does not repeat it: it may hold a password.
    """
    try:
        url = make_url(database_url)
    except (ArgumentError, ValueError):
        raise DatabaseAddressInvalid(
            "DATABASE_URL cannot be read; write it like postgresql://user:password@host:port/database"
        ) from None
    return url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


@contextlib.contextmanager
def explained_failures(database_url: str) -> Iterator[None]:
    """Name the server and what to do where Postgres fails: for commands that people type, which do not wait.

    Raises:
        DatabaseUnavailable: instead of the driver's errors.
    """
    try:
        yield
    except (SQLAlchemyError, OSError, StoreUnavailable) as error:
        url = make_url(database_url)
        cause = error.__cause__ if isinstance(error, StoreUnavailable) else error
        raise DatabaseUnavailable(
            f"Postgres at {url.host}:{url.port or 5432}, database {url.database!r}: "
            f"{getattr(cause, 'orig', None) or cause}; does it run, is DATABASE_URL right, "
            "has `kmmhub migrate` been run?"
        ) from error

"""What tests of every folder can ask for: a hub that really runs, and a database of their own in it."""

import asyncio
import secrets
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from localhub.hub import HubAddresses, LocalHub


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubAddresses]:
    """A hub of this test run alone: API server with OCM's resources, NATS, Postgres and registry.

    Addresses that the environment gives are used instead. Programs that are missing are built once (minutes).
    """
    local_hub = LocalHub(tmp_path_factory.mktemp("hub"))
    try:
        yield local_hub.up()
    finally:
        local_hub.down(purge=True)


@pytest.fixture
def database_url(hub: HubAddresses) -> Iterator[str]:
    """An empty database, dropped after the test."""
    name = f"test_{secrets.token_hex(6)}"
    asyncio.run(_execute(hub.database_url, f"CREATE DATABASE {name}"))
    yield urlunsplit(urlsplit(hub.database_url)._replace(path=f"/{name}"))
    asyncio.run(_execute(hub.database_url, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()

"""Migrations on real Postgres: up from nothing, no drift, down and up again, and from several places at once."""

import asyncio
import sys

import asyncpg
import pytest
import sqlalchemy as sa
from alembic import command
from running_services import ROOT

from shared.store.database import connect
from shared.store.migrate import alembic_config, downgrade, upgrade
from shared.store.tables import metadata

pytestmark = pytest.mark.integration


async def tables(database_url: str) -> set[str]:
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await connection.close()
    return {row["tablename"] for row in rows} - {"alembic_version"}


async def test_the_schema_comes_goes_and_comes_again_without_drift(database_url: str) -> None:
    for _ in range(2):
        await asyncio.to_thread(upgrade, database_url)
        assert await tables(database_url) == set(metadata.tables)
        await asyncio.to_thread(command.check, alembic_config(database_url))
        await asyncio.to_thread(downgrade, database_url, "base")
        assert await tables(database_url) == set()


async def test_upgrades_from_several_places_at_once_are_one(database_url: str) -> None:
    program = "import sys; from shared.store.migrate import upgrade; upgrade(sys.argv[1])"
    running = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, database_url, cwd=ROOT)
        for _ in range(3)
    ]

    async with asyncio.timeout(60):
        assert [await process.wait() for process in running] == [0, 0, 0]
    assert await tables(database_url) == set(metadata.tables)


async def test_a_connection_that_the_server_closed_is_replaced_before_use(database_url: str) -> None:
    engine = connect(database_url, application="test", pool_size=1)
    try:
        async with engine.connect() as connection:
            first = await connection.scalar(sa.text("SELECT pg_backend_pid()"))
        administrator = await asyncpg.connect(database_url)
        assert await administrator.fetchval("SELECT pg_terminate_backend($1)", first)
        await administrator.close()
        await asyncio.sleep(0.1)

        async with engine.connect() as connection:
            second = await connection.scalar(sa.text("SELECT pg_backend_pid()"))
            limits = await connection.execute(
                sa.text("SELECT current_setting('statement_timeout'), current_setting('application_name')")
            )
        assert second != first
        assert tuple(limits.one()) == ("15s", "test")
    finally:
        await engine.dispose()

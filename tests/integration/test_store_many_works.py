"""A hub with very many works: what decides nothing costs nothing, and the rest is read beside everything else."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
import sqlalchemy as sa

from shared.store.database import CHUNK, connect, pieces
from shared.store.migrate import upgrade
from shared.store.postgres import PostgresStore
from shared.store.tables import works

pytestmark = pytest.mark.integration

LIVE = 20_000
GONE = 60_000
FOREIGN = 40_000

FILL = """
INSERT INTO works (cluster, name, uid, module, content_hash, observed_hash, served, conditions, feedback,
                   is_deleting, is_gone, resource_version)
SELECT 'c' || n, $1, 'u', $2, 'h', 'h', '{"6.1.0": "registry.example/m@sha256:0"}',
       '{"Applied": {"status": "True", "reason": "Done", "message": "", "observed_generation": 1}}',
       '{"moduleLoader.desiredNumber": 2}', false, $3, n
FROM generate_series(1, $4::int) AS n
"""


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    """A store with works of ours, of others, and what is known of those that went."""
    await asyncio.to_thread(upgrade, database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute(FILL, "m", "m", False, LIVE)
    await connection.execute(FILL, "went", "went", True, GONE)
    await connection.execute(FILL, "addon-proxy", None, False, FOREIGN)
    await connection.execute("ANALYZE")
    await connection.close()
    engine = connect(database_url, application="test", pool_size=2)
    yield PostgresStore(engine)
    await engine.dispose()


async def test_everything_is_read_without_what_decides_nothing(store: PostgresStore) -> None:
    async with store.begin() as transaction:
        read = await transaction.read_works(modules=None)

    assert len(read) == LIVE
    assert {name for name, _ in read} == {"m"}


@pytest.mark.usefixtures("store")
async def test_a_long_answer_comes_in_pieces_between_which_others_run(database_url: str) -> None:
    engine = connect(database_url, application="test")
    async with engine.connect() as connection:
        sizes = [len(piece) async for piece in pieces(connection, sa.select(works.c.name))]
    await engine.dispose()

    assert sum(sizes) == LIVE + GONE + FOREIGN
    assert max(sizes) == CHUNK


async def test_what_is_known_is_listed_whole(store: PostgresStore) -> None:
    async with store.begin() as transaction:
        assert len(await transaction.known_works()) == LIVE + FOREIGN


async def test_old_traces_go_some_at_a_time(store: PostgresStore, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE works SET seen_at = now() - interval '25 hours' WHERE is_gone")
    async with store.begin() as transaction:
        await transaction.forget_gone_works(older_than_seconds=24 * 3600, limit=5000)
    left = await connection.fetchval("SELECT count(*) FROM works WHERE is_gone")
    plan = await connection.fetch(
        "EXPLAIN SELECT FROM works WHERE is_gone AND seen_at < now() - interval '26 hours' LIMIT 5000"
    )
    await connection.close()
    assert left == GONE - 5000
    assert "ix_works_gone" in "\n".join(row[0] for row in plan)

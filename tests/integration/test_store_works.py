"""Works in Postgres: the newest resourceVersion wins, whoever saw it, and our own last write is known."""

from dataclasses import replace

import pytest
import sqlalchemy as sa
from store_fixtures import engine

from shared.domain.work import ObservedWork, WorkCondition
from shared.store.database import Engine
from shared.store.tables import works as table
from shared.store.works import mark_gone, read_work, record_works

__all__ = ["engine"]  # a fixture

pytestmark = pytest.mark.integration

WORK = ObservedWork(
    cluster="east",
    name="module",
    uid="first",
    resource_version=10,
    module="module",
    content_hash="meant",
    observed_hash="stored",
    served={"6.1.0": "registry.example/module@sha256:1"},
    conditions={"Applied": WorkCondition(status="True", reason="Done", message="", observed_generation=1)},
    feedback={"moduleLoader.desiredNumber": 2},
)
KEY = ("east", "module")


async def record(engine: Engine, work: ObservedWork, *, is_own_write: bool = False) -> bool:
    async with engine.begin() as connection:
        return await record_works(connection, [work], is_own_write=is_own_write) == {KEY}


async def stored(engine: Engine) -> tuple[ObservedWork, str | None]:
    async with engine.connect() as connection:
        row = (await connection.execute(sa.select(table))).one()
    return read_work(row), row.posted_hash


async def test_a_work_is_read_back_as_it_was_seen(engine: Engine) -> None:
    assert await record(engine, WORK)

    assert await stored(engine) == (WORK, None)


@pytest.mark.parametrize("is_own_write", [False, True])
async def test_older_observations_change_nothing(engine: Engine, is_own_write: bool) -> None:
    newer = replace(WORK, resource_version=20, content_hash="newer")
    await record(engine, newer)

    assert not await record(engine, WORK, is_own_write=is_own_write)
    assert not await record(engine, newer)

    assert await stored(engine) == (newer, None)


async def test_what_we_wrote_is_known_also_where_the_watch_was_first(engine: Engine) -> None:
    await record(engine, WORK)
    await record(engine, WORK, is_own_write=True)

    assert await stored(engine) == (WORK, "stored")


async def test_what_we_wrote_stays_known_when_others_change_the_work(engine: Engine) -> None:
    await record(engine, WORK, is_own_write=True)
    edited = replace(WORK, resource_version=11, observed_hash="edited")
    assert await record(engine, edited)
    assert await stored(engine) == (edited, "stored")

    repaired = replace(WORK, resource_version=12, observed_hash="repaired")
    assert await record(engine, repaired, is_own_write=True)
    assert await stored(engine) == (repaired, "repaired")


async def test_a_work_made_again_by_somebody_has_none_of_our_writes(engine: Engine) -> None:
    await record(engine, WORK, is_own_write=True)
    other = replace(WORK, uid="second", resource_version=11)
    await record(engine, other)

    assert await stored(engine) == (other, None)


async def test_a_deleted_work_leaves_a_trace_that_older_events_do_not_undo(engine: Engine) -> None:
    await record(engine, WORK, is_own_write=True)
    gone = replace(WORK, resource_version=15, is_gone=True)
    assert await record(engine, gone)

    assert not await record(engine, replace(WORK, resource_version=14))
    assert (await stored(engine))[0] == gone
    again = replace(WORK, uid="second", resource_version=16)
    assert await record(engine, again, is_own_write=True)
    assert await stored(engine) == (again, "stored")


async def test_a_list_from_before_our_write_does_not_declare_it_gone(engine: Engine) -> None:
    await record(engine, WORK, is_own_write=True)
    async with engine.begin() as connection:
        assert await mark_gone(connection, [KEY], resource_version=9) == set()
        assert await mark_gone(connection, [], resource_version=99) == set()
        assert await mark_gone(connection, [KEY], resource_version=12) == {KEY}
        assert await mark_gone(connection, [KEY], resource_version=13) == set()

    gone, posted = await stored(engine)
    assert (gone.is_gone, gone.resource_version, posted) == (True, 12, "stored")


async def test_a_whole_fleets_works_vanish_at_once(engine: Engine) -> None:
    clusters = [f"c{number}" for number in range(20_000)]
    async with engine.begin() as connection:
        for start in range(0, len(clusters), 500):
            batch = [replace(WORK, cluster=cluster) for cluster in clusters[start : start + 500]]
            await record_works(connection, batch, is_own_write=False)

        gone = await mark_gone(connection, [(cluster, "module") for cluster in clusters], resource_version=99)

    assert len(gone) == 20_000

"""Works in both stores: the newest resourceVersion wins, whoever saw it, and our own last write is known."""

from dataclasses import replace

import pytest
from store_fixtures import store

from shared.domain.work import ObservedWork, WorkCondition
from shared.store.port import Store

__all__ = ["store"]  # a fixture

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


async def record(store: Store, work: ObservedWork, *, is_own_write: bool = False) -> bool:
    async with store.begin() as transaction:
        return await transaction.record_works([work], is_own_write=is_own_write) == {KEY}


async def stored(store: Store) -> tuple[ObservedWork, str | None]:
    async with store.begin() as transaction:
        (one,) = (await transaction.read_works(modules=None)).values()
    return one.work, one.posted_hash


async def test_a_work_is_read_back_as_it_was_seen(store: Store) -> None:
    assert await record(store, WORK)

    assert await stored(store) == (WORK, None)


@pytest.mark.parametrize("is_own_write", [False, True])
async def test_older_observations_change_nothing(store: Store, is_own_write: bool) -> None:
    newer = replace(WORK, resource_version=20, content_hash="newer")
    await record(store, newer)

    assert not await record(store, WORK, is_own_write=is_own_write)
    assert not await record(store, newer)

    assert await stored(store) == (newer, None)


async def test_what_we_wrote_is_known_also_where_the_watch_was_first(store: Store) -> None:
    await record(store, WORK)
    await record(store, WORK, is_own_write=True)

    assert await stored(store) == (WORK, "stored")


async def test_what_we_wrote_stays_known_when_others_change_the_work(store: Store) -> None:
    await record(store, WORK, is_own_write=True)
    edited = replace(WORK, resource_version=11, observed_hash="edited")
    assert await record(store, edited)
    assert await stored(store) == (edited, "stored")

    repaired = replace(WORK, resource_version=12, observed_hash="repaired")
    assert await record(store, repaired, is_own_write=True)
    assert await stored(store) == (repaired, "repaired")


async def test_a_work_made_again_by_somebody_has_none_of_our_writes(store: Store) -> None:
    await record(store, WORK, is_own_write=True)
    other = replace(WORK, uid="second", resource_version=11)
    await record(store, other)

    assert await stored(store) == (other, None)


async def test_a_deleted_work_leaves_a_trace_that_older_events_do_not_undo(store: Store) -> None:
    await record(store, WORK, is_own_write=True)
    gone = replace(WORK, resource_version=15, is_gone=True)
    assert await record(store, gone)

    assert not await record(store, replace(WORK, resource_version=14))
    assert (await stored(store))[0] == gone
    again = replace(WORK, uid="second", resource_version=16)
    assert await record(store, again, is_own_write=True)
    assert await stored(store) == (again, "stored")


async def test_a_list_from_before_our_write_does_not_declare_it_gone(store: Store) -> None:
    await record(store, WORK, is_own_write=True)
    async with store.begin() as transaction:
        assert await transaction.mark_works_gone([KEY], resource_version=9) == set()
        assert await transaction.mark_works_gone([], resource_version=99) == set()
        assert await transaction.mark_works_gone([KEY], resource_version=12) == {KEY}
        assert await transaction.mark_works_gone([KEY], resource_version=13) == set()

    gone, posted = await stored(store)
    assert (gone.is_gone, gone.resource_version, posted) == (True, 12, "stored")


async def test_a_whole_fleets_works_vanish_at_once(store: Store) -> None:
    clusters = [f"c{number}" for number in range(20_000)]
    async with store.begin() as transaction:
        for start in range(0, len(clusters), 500):
            batch = [replace(WORK, cluster=cluster) for cluster in clusters[start : start + 500]]
            await transaction.record_works(batch, is_own_write=False)

        gone = await transaction.mark_works_gone(
            [(cluster, "module") for cluster in clusters], resource_version=99
        )

    assert len(gone) == 20_000

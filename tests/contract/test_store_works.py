"""Works in both stores: the newest resourceVersion wins, whoever saw it, and our own last write is known."""

import asyncio
from collections.abc import Collection
from dataclasses import replace

import pytest
from store_fixtures import store

from shared.domain.module import RESERVED_NAME
from shared.domain.work import ObservedWork, WorkCondition
from shared.store.port import Facts, Store

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
        (one,) = (await transaction.read_works(modules=None, clusters=["east"])).values()
    return one.work, one.posted_hash


async def read(
    store: Store, modules: Collection[str] | None, clusters: Collection[str] = ()
) -> set[tuple[str, str]]:
    async with store.begin() as transaction:
        return set(await transaction.read_works(modules=modules, clusters=clusters))


async def store_names(store: Store, *, modules: Collection[str] = (), clusters: Collection[str] = ()) -> None:
    """Facts of which only the name matters here."""
    module = {"uid": "u", "generation": 1, "spec": {}, "status": {}, "finalizers": []}
    cluster = {"uid": "u", "labels": {}, "kernels": [], "invalid_kernels": [], "claim_is_present": True}
    common = {"is_deleting": False, "resource_version": 1}
    async with store.begin() as transaction:
        await transaction.put_facts(Facts.MODULES, [{**module, **common, "name": one} for one in modules])
        await transaction.put_facts(
            Facts.CLUSTERS,
            [{**cluster, **common, "claim_is_near_limit": False, "name": one} for one in clusters],
        )


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


@pytest.mark.parametrize("modules", [None, ["module"], []])
async def test_works_of_others_are_read_where_they_have_a_name_of_ours(
    store: Store, modules: list[str] | None
) -> None:
    await store_names(store, modules=["module", "taken"])
    foreign = replace(WORK, module=None, content_hash=None)
    works = [
        WORK,
        replace(WORK, name="renamed"),
        *(replace(foreign, name=name) for name in ("taken", RESERVED_NAME, "addon-proxy")),
        *(replace(foreign, cluster="west", name=name) for name in ("module", RESERVED_NAME, "addon-proxy")),
    ]
    async with store.begin() as transaction:
        await transaction.record_works(works, is_own_write=False)

    of_the_module = {("module", "east"), ("renamed", "east"), ("module", "west")}
    others = {("taken", "east"), (RESERVED_NAME, "east")}
    everything = {*of_the_module, *others, (RESERVED_NAME, "west")}
    assert await read(store, modules) == (
        everything if modules is None else of_the_module if modules else set()
    )
    assert await read(store, [], ["east"]) == {*others, ("module", "east"), ("renamed", "east")}


async def test_works_that_are_gone_are_read_where_their_cluster_is_gone_too(store: Store) -> None:
    await store_names(store, clusters=["there"])
    async with store.begin() as transaction:
        works = [replace(WORK, cluster=cluster) for cluster in ("there", "lost", "kept")]
        await transaction.record_works(works, is_own_write=False)
        await transaction.mark_works_gone([("there", "module"), ("lost", "module")], resource_version=12)

    assert await read(store, None) == {("module", "kept")}
    assert await read(store, ["module"]) == {("module", "kept")}
    assert await read(store, [], ["there", "lost", "kept"]) == {("module", "lost"), ("module", "kept")}


async def test_what_is_known_of_a_work_that_is_gone_is_forgotten_after_a_while(store: Store) -> None:
    async def known() -> set[str]:
        return {cluster for _, cluster in await read(store, [], ["a", "b", "c", "d"])}

    async def forget(seconds: float, limit: int = 9) -> None:
        async with store.begin() as transaction:
            await transaction.forget_gone_works(older_than_seconds=seconds, limit=limit)

    # One seen as gone, one missing in a list, one made again since, and one that never went.
    works = {cluster: replace(WORK, cluster=cluster) for cluster in "abcd"}
    async with store.begin() as transaction:
        await transaction.record_works([*works.values()], is_own_write=False)
    await asyncio.sleep(0.5)
    async with store.begin() as transaction:
        went = [replace(works[one], is_gone=True, resource_version=11) for one in "ac"]
        await transaction.record_works(went, is_own_write=False)
        await transaction.mark_works_gone([("b", "module")], resource_version=12)
        again = replace(works["c"], uid="second", resource_version=13)
        await transaction.record_works([again], is_own_write=False)

    await forget(0.4)
    assert await known() == {"a", "b", "c", "d"}
    await asyncio.sleep(0.5)
    await forget(3600)
    assert await known() == {"a", "b", "c", "d"}
    await forget(0.4, limit=1)
    assert len(await known()) == 3
    await forget(0.4)
    assert await known() == {"c", "d"}


async def test_whoever_forgets_waits_for_nobody(store: Store) -> None:
    gone = replace(WORK, is_gone=True)
    await record(store, gone)
    await asyncio.sleep(0.1)
    again = replace(WORK, uid="second", resource_version=11)
    async with store.begin() as slow:
        await slow.record_works([again], is_own_write=True)
        async with asyncio.timeout(2), store.begin() as transaction:
            await transaction.forget_gone_works(older_than_seconds=0.01, limit=9)

    assert await stored(store) == (again, "stored")


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

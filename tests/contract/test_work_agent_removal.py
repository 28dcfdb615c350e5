"""How a work agent removes: our stand-in, and OCM's own where OCM_WORK_BIN names it, pass the same."""

from __future__ import annotations

import asyncio

import pytest
from agent_fixtures import bench
from running_services import eventually
from work_bench import (
    AGENT_SECONDS,
    GRACE_SECONDS,
    Bench,
    condition,
    config_map,
    manifests,
    module,
)

__all__ = ["bench"]  # a fixture

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

FINALIZER = "cluster.open-cluster-management.io/manifest-work-cleanup"


async def test_a_manifest_that_leaves_the_work_leaves_the_spoke(bench: Bench) -> None:
    name = bench.new_name()
    kept, dropped = config_map(name, {"a": "1"}), config_map(f"{name}-2", {"b": "2"})
    await bench.post(kept, dropped, name=name)
    await bench.applied(name)

    await bench.change(name, kept)

    async def is_gone() -> bool:
        return await bench.map(f"{name}-2") is None

    await eventually(is_gone, what="the dropped ConfigMap is gone", seconds=AGENT_SECONDS)
    assert len(manifests(await bench.applied(name))) == 1
    assert await bench.map(name) is not None


async def test_a_deleted_work_takes_its_objects_with_it(bench: Bench) -> None:
    name = bench.new_name()
    await bench.post(module(name), name=name)
    await bench.applied(name)

    await bench.delete(name)

    await bench.gone(name)
    assert await bench.module(name) is None
    assert name not in await bench.lane.applied_works()


async def test_a_work_waits_for_an_object_that_something_holds(bench: Bench) -> None:
    name = bench.new_name()
    await bench.post(module(name), name=name)
    await bench.applied(name)
    await bench.lane.hold_module(name)

    await bench.delete(name)

    await bench.shows(name, "Deleting", "True", "WorkDeleting")
    await asyncio.sleep(3)
    work, stored = await bench.work(name), await bench.module(name)
    assert work is not None
    assert FINALIZER in work["metadata"]["finalizers"]
    assert stored is not None
    assert stored["metadata"]["deletionTimestamp"]
    await bench.lane.hold_module(name, is_held=False)
    await bench.gone(name)
    assert await bench.module(name) is None


async def test_an_orphaned_object_stays(bench: Bench) -> None:
    name = bench.new_name()
    await bench.post(config_map(name, {}), name=name, deleteOption={"propagationPolicy": "Orphan"})
    await bench.applied(name)

    await bench.delete(name)

    await bench.gone(name)
    kept = await bench.map(name)
    assert kept is not None
    assert not kept["metadata"].get("ownerReferences")


async def test_an_object_of_two_works_goes_with_the_second(bench: Bench) -> None:
    name = bench.new_name()
    left, right = (
        await bench.post(config_map(name, {"a": "1"})),
        await bench.post(config_map(name, {"a": "1"})),
    )
    for work in (left, right):
        await bench.applied(work)
    shared = await bench.map(name)
    assert shared is not None
    assert len(shared["metadata"]["ownerReferences"]) == 2

    await bench.delete(left)

    await bench.gone(left)
    kept = await bench.map(name)
    assert kept is not None
    assert kept["metadata"]["uid"] == shared["metadata"]["uid"]
    assert len(kept["metadata"]["ownerReferences"]) == 1
    await bench.delete(right)
    await bench.gone(right)
    assert await bench.map(name) is None


async def test_while_the_agent_is_away_a_deleted_work_waits(bench: Bench) -> None:
    name, unseen = bench.new_name(), bench.new_name()
    await bench.post(module(name), name=name)
    await bench.applied(name)
    await bench.lane.agent.stop()
    try:
        await bench.post(module(unseen), name=unseen)

        await bench.delete(name)
        await bench.delete(unseen)

        assert await bench.work(unseen) is None, "what no agent ever saw is gone at once"
        await asyncio.sleep(2)
        work = await bench.work(name)
        assert work is not None
        assert work["metadata"]["deletionTimestamp"]
        assert condition(work["status"]["conditions"], "Applied")["status"] == "True"
        assert await bench.module(name) is not None
    finally:
        await bench.lane.agent.start()
    await bench.gone(name)
    assert await bench.module(name) is None


async def vanish(bench: Bench, name: str) -> None:
    """Somebody strips the finalizer of a work and removes it: the agent is never asked."""
    await bench.delete(name)
    await bench.patch(name, {"metadata": {"finalizers": None}})


async def vanished(bench: Bench) -> tuple[str, str]:
    """A work that vanished while its object is on the spoke. Returns its name and the object's uid."""
    name = bench.new_name()
    await bench.post(config_map(name, {"a": "1"}), name=name)
    await bench.applied(name)
    stored = await bench.map(name)
    assert stored is not None
    await bench.lane.agent.stop()
    try:
        await vanish(bench, name)
        await bench.gone(name)
    finally:
        await bench.lane.agent.start()
    return name, stored["metadata"]["uid"]


async def doomed(bench: Bench, name: str) -> None:
    """Wait until the agent has begun to count the grace."""

    async def look() -> bool:
        noted = (await bench.lane.applied_works())[name]
        return "evictionStartTime" in (noted.get("status") or {})

    await eventually(look, what="the eviction begins", seconds=AGENT_SECONDS)


async def test_objects_of_a_vanished_work_outlive_it_by_the_grace(bench: Bench) -> None:
    name, _ = await vanished(bench)

    async def is_gone() -> bool:
        return await bench.map(name) is None

    await doomed(bench, name)
    assert await bench.map(name) is not None
    await eventually(is_gone, what="the eviction ends", seconds=AGENT_SECONDS + GRACE_SECONDS)


async def test_a_work_made_again_within_the_grace_keeps_its_objects(bench: Bench) -> None:
    name, uid = await vanished(bench)
    await doomed(bench, name)

    await bench.post(config_map(name, {"a": "1"}), name=name)

    await bench.applied(name)
    await asyncio.sleep(GRACE_SECONDS + 2)
    stored = await bench.map(name)
    assert stored is not None
    assert stored["metadata"]["uid"] == uid
    noted = (await bench.lane.applied_works())[name]
    assert "evictionStartTime" not in noted["status"]

"""Status writes that fail, what was refused before, and permissions that nobody needs any more."""

import asyncio
from typing import Any

import pytest
from fleet_values import raw_spec, without_loader
from small_hub import EVERYTHING, SmallHub, small_hub

from services.dispatcher.permissions import PERMISSIONS_WORK, Grant
from services.dispatcher.reconcile import Reconciler
from shared.events.messages import Changed, Kind
from shared.kube.client import MANIFEST_WORKS, MODULES, Resource
from shared.kube.errors import ApiUnavailable, Forbidden, Refused
from simulation.loop import SimulationLoop
from simulation.run import simulate

PLUGIN = without_loader()


def attention(hub: SmallHub, module: str) -> set[tuple[str, str]]:
    """(cluster, reason) of what a module's status tells."""
    return {(one["cluster"], one["reason"]) for one in hub.status(module)["attention"]}


@pytest.mark.parametrize("error", [Forbidden("no right"), ApiUnavailable("HTTP 500")], ids=["403", "500"])
def test_a_status_that_cannot_be_written_is_tried_with_growing_pauses_and_by_reports_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    passes: list[set[Kind]] = []
    reconcile = Reconciler.reconcile

    async def counted(self: Reconciler, changes: Any) -> Any:
        passes.append({change.kind for change in changes})
        return await reconcile(self, changes)

    monkeypatch.setattr(Reconciler, "reconcile", counted)

    async def scenario(_: SimulationLoop) -> None:
        hub = await small_hub(delay=0.005)
        await hub.add_cluster("c1")
        await hub.add_module("m", PLUGIN)
        tries = 0

        def fault(_: str, __: Resource, where: str) -> None:
            nonlocal tries
            if where == "m/status":
                tries += 1
                raise error

        hub.kube.fault = fault
        async with hub.dispatching(resync_seconds=1e9):
            await asyncio.sleep(600)
            assert 20 < tries < 60
            assert passes == [{Kind.EVERYTHING}]
            hub.kube.fault = lambda *_: None
            await asyncio.sleep(31)
            assert hub.status("m")["numberDesired"] == 1
            assert len(hub.dispatcher._unreported) == len(hub.dispatcher._again) == 0

    simulate(scenario, seed=1)


def test_nothing_is_remembered_of_modules_that_went_while_their_writes_failed() -> None:
    async def scenario(_: SimulationLoop) -> None:
        hub = await small_hub(delay=0.005)
        await hub.add_cluster("c1", "c2")
        for number in range(5):
            await hub.add_module(f"m{number}", PLUGIN)

        def fault(verb: str, resource: Resource, where: str) -> None:
            if where.endswith("/status") or (verb == "create" and resource == MANIFEST_WORKS):
                raise Forbidden("no right")

        hub.kube.fault = fault
        async with hub.dispatching():
            await asyncio.sleep(60)
            assert len(hub.dispatcher._unreported) == 5
            assert len(hub.dispatcher._again) == 10
            for number in range(5):
                hub.state.merge_patch(MODULES, f"m{number}", {"metadata": {"finalizers": None}})
                hub.state.delete(MODULES, f"m{number}")
            await hub.observe()
            await asyncio.sleep(120)
            assert len(hub.dispatcher._unreported) == len(hub.dispatcher._again) == 0
            assert hub.reconciler._refusals == {}

    simulate(scenario, seed=1)


async def refused(hub: SmallHub) -> None:
    """Module `m` on c1 and c2, of which c1 takes no work."""
    await hub.add_cluster("c1", "c2", edge="yes")
    await hub.add_module("m", {**PLUGIN, "selector": {"edge": "yes"}})

    def fault(verb: str, _: Resource, where: str) -> None:
        if (verb, where) == ("create", "c1/m"):
            raise Refused("a webhook says no")

    hub.kube.fault = fault
    await hub.reconciler.reconcile(EVERYTHING)
    await hub.reconciler.report(["m"])
    assert attention(hub, "m") == {("c1", "WorkRefused")}


async def test_a_module_made_again_under_its_name_inherits_no_refusals() -> None:
    hub = await small_hub()
    await refused(hub)
    hub.state.merge_patch(MODULES, "m", {"metadata": {"finalizers": None}})
    hub.state.delete(MODULES, "m")
    await hub.add_module("m", {**PLUGIN, "selector": {"edge": "yes"}})
    await hub.reconciler.report(["m"])
    assert attention(hub, "m") == set()


@pytest.mark.parametrize("announcement", [Kind.EVERYTHING, Kind.CLUSTER])
async def test_a_cluster_that_is_selected_again_inherits_no_refusals(announcement: Kind) -> None:
    hub = await small_hub()
    await refused(hub)
    await hub.add_cluster("c1", edge="no")
    await hub.reconciler.reconcile({Changed(kind=announcement, name="c1")})
    assert hub.reconciler._refusals == {}
    await hub.add_cluster("c1", edge="yes")
    await hub.reconciler.report(["m"])
    assert attention(hub, "m") == set()


async def test_what_is_not_asked_for_any_more_was_not_refused() -> None:
    hub = await small_hub()
    await refused(hub)
    hub.state.merge_patch(MODULES, "m", {"spec": {**raw_spec(), "selector": {"edge": "yes"}}})
    await hub.observe()
    await hub.reconciler.reconcile(EVERYTHING)  # its kernels are not known: nothing can be shipped
    assert hub.reconciler._refusals == {}


async def test_permissions_of_a_deselected_cluster_go_although_nobody_announces_them() -> None:
    hub = await small_hub(grant=Grant.AGGREGATE)
    await hub.add_cluster("c1", "c2", edge="yes")
    await hub.add_module("m", {**PLUGIN, "selector": {"edge": "yes"}})
    await hub.reconciler.reconcile(EVERYTHING)
    everywhere = {(name, cluster) for name in ("m", PERMISSIONS_WORK) for cluster in ("c1", "c2")}
    assert hub.works() == everywhere
    await hub.add_cluster("c1", edge="no")
    await hub.reconciler.reconcile(EVERYTHING)
    await hub.observe()  # the end of the work was announced, and the announcement was lost
    await hub.reconciler.reconcile(EVERYTHING)
    assert hub.works() == {("m", "c2"), (PERMISSIONS_WORK, "c2")}


async def test_permissions_stay_where_a_work_is_left_and_where_the_cluster_is_gone() -> None:
    hub = await small_hub(grant=Grant.AGGREGATE)
    await hub.add_cluster("c1", "c2", edge="yes")
    await hub.add_module("m", {**PLUGIN, "selector": {"edge": "yes"}})
    await hub.reconciler.reconcile(EVERYTHING)
    hub.state.merge_patch(MANIFEST_WORKS, "m", {"metadata": {"finalizers": ["agent"]}}, namespace="c1")
    await hub.observe()
    await hub.add_cluster("c1", edge="no")
    for _ in range(2):
        await hub.reconciler.reconcile(EVERYTHING)
        await hub.observe()
    assert (PERMISSIONS_WORK, "c1") in hub.works()


def test_a_cluster_that_is_relabelled_is_counted_no_more_at_once_though_it_never_had_a_work() -> None:
    async def scenario(_: SimulationLoop) -> None:
        hub = await small_hub(delay=0.005)
        await hub.add_cluster("stays", "moves", site="edge")
        mapping = {"literal": "none", "containerImage": "r.example/m:1"}
        await hub.add_module("m", raw_spec(mapping, selector={"site": "edge"}))
        async with hub.dispatching(resync_seconds=1e9):
            await asyncio.sleep(5)
            assert attention(hub, "m") == {("stays", "ClaimMissing"), ("moves", "ClaimMissing")}
            await hub.add_cluster("moves", site="core")
            await hub.dispatcher.handle([Changed(kind=Kind.CLUSTER, name="moves")])
            await asyncio.sleep(5)
            assert attention(hub, "m") == {("stays", "ClaimMissing")}

    simulate(scenario, seed=1)

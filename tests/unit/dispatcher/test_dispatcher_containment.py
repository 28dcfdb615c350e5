"""A bug, or an answer that nobody foresaw, costs its own module or pair, never the dispatcher."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from fleet_values import KERNELS, raw_spec, without_loader
from small_hub import EVERYTHING, SmallHub, small_hub

import services.dispatcher.catalog
import services.dispatcher.main
import services.dispatcher.picture
import services.dispatcher.reconcile
from services.dispatcher.permissions import PERMISSIONS_WORK, Grant
from services.dispatcher.reconcile import announce_again
from services.dispatcher.surprise import SURPRISES
from shared.events.messages import Changed, Kind
from shared.kube.client import MANIFEST_WORKS, MODULES, Resource
from simulation.loop import SimulationLoop
from simulation.run import simulate

PLUGIN = without_loader()
CLUSTERS = [f"c{number}" for number in range(5)]


def surprises(doing: str) -> float:
    return float(SURPRISES.labels(doing)._value.get())


async def two_modules(*, grant: Grant = Grant.OFF, delay: float = 0.0) -> SmallHub:
    """`bad` and `good` on all clusters, with nothing to build."""
    hub = await small_hub(grant=grant, delay=delay)
    await hub.add_cluster(*CLUSTERS)
    for name in ("bad", "good"):
        await hub.add_module(name, PLUGIN)
    return hub


def pairs(*modules: str) -> set[tuple[str, str]]:
    return {(module, cluster) for module in modules for cluster in CLUSTERS}


def raises_for(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, is_bad: Callable[..., bool]) -> None:
    """Plant a bug that strikes some calls of a function."""
    right = getattr(place, name)

    def wrong(*positional: Any, **named: Any) -> Any:
        if is_bad(*positional, **named):
            raise KeyError("a bug")
        return right(*positional, **named)

    monkeypatch.setattr(place, name, wrong)


async def test_one_answer_that_is_nonsense_costs_one_work() -> None:
    hub = await two_modules()
    hub.kube.fault = lambda verb, _, where: {} if (verb, where) == ("create", "c2/bad") else None
    outcome = await hub.reconciler.reconcile(EVERYTHING)
    assert outcome.failed == set(announce_again([("bad", "c2")]))
    assert hub.works() == pairs("bad", "good") - {("bad", "c2")}
    hub.kube.fault = lambda *_: None
    assert not (await hub.reconciler.reconcile(outcome.failed)).failed
    assert hub.works() == pairs("bad", "good")


async def test_a_bug_while_writing_costs_one_work(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await two_modules()

    def fault(verb: str, _: Resource, where: str) -> None:
        if (verb, where) == ("create", "c2/bad"):
            raise KeyError("a bug")

    hub.kube.fault = fault
    before = surprises("write")
    outcome = await hub.reconciler.reconcile(EVERYTHING)
    assert outcome.failed == set(announce_again([("bad", "c2")]))
    assert hub.works() == pairs("bad", "good") - {("bad", "c2")}
    assert surprises("write") == before + 1
    await hub.reconciler.report(["bad"])
    (told,) = hub.status("bad")["attention"]
    assert (told["cluster"], told["reason"]) == ("c2", "InternalError")


async def test_nothing_runs_on_after_a_pass_was_cancelled() -> None:
    """The leader's lease is lost in the middle of a pass: another replica writes now."""
    hub = await two_modules()
    ended: list[str] = []
    began: asyncio.Queue[str] = asyncio.Queue()

    async def slow(where: str) -> None:
        began.put_nowait(where)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02 * int(where[1]))  # some connections take longer to close
            ended.append(where)

    hub.kube.fault = lambda verb, resource, where: (
        slow(where) if verb == "create" and resource == MANIFEST_WORKS else None
    )
    before = asyncio.all_tasks()
    running = asyncio.create_task(hub.dispatcher.run(asyncio.Event(), resync_seconds=60))
    for _ in pairs("bad", "good"):
        await began.get()
    running.cancel()
    await asyncio.wait({running})
    assert asyncio.all_tasks() - before == set()
    assert len(ended) == len(pairs("bad", "good"))
    assert running.cancelled()


async def test_a_bug_in_one_decision_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await two_modules()
    raises_for(
        monkeypatch, services.dispatcher.picture, "decide", lambda *, module, **_: module.name == "bad"
    )
    outcome = await hub.reconciler.reconcile(EVERYTHING)
    assert hub.works() == pairs("good")
    assert outcome.failed == set(announce_again(pairs("bad")))
    assert await hub.reconciler.report(["bad", "good"]) == {"bad"}
    assert hub.status("good")["numberDesired"] == len(CLUSTERS)


async def test_a_bug_in_reading_one_module_takes_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await two_modules()
    await hub.reconciler.reconcile(EVERYTHING)
    hub.state.delete(MANIFEST_WORKS, "good", namespace="c1")
    await hub.observe()
    raises_for(
        monkeypatch, services.dispatcher.catalog.Catalog, "read", lambda _, stored: stored.name == "bad"
    )
    assert not (await hub.reconciler.reconcile(EVERYTHING)).failed
    assert hub.works() == pairs("bad", "good")
    assert not await hub.reconciler.report(["bad", "good"])
    told = {one["type"]: one for one in hub.status("bad")["conditions"]}
    assert (told["Degraded"]["status"], told["Degraded"]["reason"]) == ("True", "InternalError")


@pytest.mark.parametrize(
    ("place", "name"),
    [(services.dispatcher.catalog, "demand"), (services.dispatcher.picture, "outcome_of")],
    ids=["demand", "outcome"],
)
async def test_a_bug_about_one_kernel_holds_back_that_kernel_alone(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    hub = await two_modules()
    await hub.add_cluster("c0", kernels=(KERNELS[0],))
    await hub.add_module("bare", raw_spec({"regexp": ".", "containerImage": "r.example/bare"}))
    raises_for(monkeypatch, place, name, lambda *_, **__: True)
    assert not (await hub.reconciler.reconcile(EVERYTHING)).failed
    assert hub.works() == pairs("bad", "good")
    await hub.reconciler.report(["bare"])
    told = [one for one in hub.status("bare")["attention"] if one.get("kernel")]
    assert [(one["kernel"], one["reason"]) for one in told] == [(KERNELS[0], "InternalError")]


async def test_a_bug_about_one_clusters_permissions_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await two_modules(grant=Grant.AGGREGATE)
    raises_for(
        monkeypatch,
        services.dispatcher.reconcile,
        "decide_permissions",
        lambda *, cluster, **_: cluster.name == "c2",
    )
    outcome = await hub.reconciler.reconcile(EVERYTHING)
    assert outcome.failed == set(announce_again([(PERMISSIONS_WORK, "c2")]))
    assert hub.works() == pairs("bad", "good", PERMISSIONS_WORK) - {(PERMISSIONS_WORK, "c2")}


async def test_a_bug_about_one_modules_finalizer_blocks_that_one_alone() -> None:
    hub = await two_modules()
    hub.kube.fault = lambda verb, resource, where: 1 / 0 if (verb, where) == ("patch", "bad") else None
    outcome = await hub.reconciler.reconcile(EVERYTHING)
    assert outcome.failed == set(announce_again(pairs("bad")))
    assert hub.works() == pairs("good")


async def test_a_bug_in_one_modules_release_lets_the_others_go() -> None:
    hub = await two_modules()
    await hub.reconciler.reconcile(EVERYTHING)
    for name in ("bad", "good"):
        hub.state.delete(MODULES, name)
    await hub.observe()
    await hub.reconciler.reconcile(EVERYTHING)
    await hub.observe()
    hub.kube.fault = lambda verb, resource, where: 1 / 0 if (verb, where) == ("patch", "bad") else None
    outcome = await hub.reconciler.reconcile(EVERYTHING)
    assert outcome.failed == {Changed(kind=Kind.MODULE, name="bad")}
    assert [one["metadata"]["name"] for one in hub.state.objects(MODULES)] == ["bad"]


async def test_a_bug_in_one_report_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await two_modules()
    await hub.reconciler.reconcile(EVERYTHING)
    raises_for(
        monkeypatch,
        services.dispatcher.reconcile,
        "survey_places",
        lambda _, read, __: read.module.name == "bad",
    )
    before = surprises("report")
    assert await hub.reconciler.report(["bad", "good"]) == {"bad"}
    assert surprises("report") == before + 1
    assert hub.status("good")["numberDesired"] == len(CLUSTERS)
    assert hub.status("bad") == {}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (services.dispatcher.reconcile.Reconciler, "reconcile"),
        (services.dispatcher.reconcile.Reconciler, "report"),
        (services.dispatcher.main.artifacts, "announce_overdue"),
    ],
    ids=["pass", "report", "sweep"],
)
def test_a_bug_that_strikes_always_is_met_again_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    """Nothing ends; and once the bug's cause is gone, everything comes right without a restart."""
    calls: Counter[bool] = Counter()
    is_bad = True

    def strike(*_: Any, **__: Any) -> bool:
        calls[is_bad] += 1
        return is_bad

    async def scenario(_: SimulationLoop) -> None:
        nonlocal is_bad
        hub = await two_modules(delay=0.005)
        async with hub.dispatching() as running:
            await asyncio.sleep(600)
            assert not running.done()
            # As often as every 15 to 30 seconds, and by the resync each minute.
            assert 10 < calls[True] < 80
            is_bad = False
            await asyncio.sleep(45)
            assert hub.works() == pairs("bad", "good")
            assert {hub.status(name)["numberDesired"] for name in ("bad", "good")} == {len(CLUSTERS)}
            assert calls[False] > 0
        assert len(hub.dispatcher._again) == len(hub.dispatcher._unreported) == 0

    raises_for(monkeypatch, place, name, strike)
    simulate(scenario, seed=1)


def test_changes_that_fail_together_with_a_bad_one_are_looked_at_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(_: SimulationLoop) -> None:
        hub = await two_modules(delay=0.005)
        changes = {Changed(kind=Kind.MODULE, name=name) for name in ("bad", "good", "m1", "m2", "m3")}
        hub.dispatcher._again.failed(changes)
        async with hub.dispatching(resync_seconds=1e9):
            await asyncio.sleep(120)
            assert hub.works() == pairs("good")
            assert len(hub.dispatcher._again) == 2  # the bad one, and everything of the first resync

    raises_for(
        monkeypatch,
        services.dispatcher.reconcile.Reconciler,
        "reconcile",
        lambda _, changes: any(one.name in {"bad", "resync"} for one in changes),
    )
    simulate(scenario, seed=1)

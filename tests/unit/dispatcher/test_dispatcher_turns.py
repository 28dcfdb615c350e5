"""Long passes leave turns for everything else on the event loop, and equal works are made once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from fleet_values import KERNELS, NAME, a_cluster, a_module, posted, raw_spec, shipment, stored_module
from small_hub import EVERYTHING, small_hub

import services.dispatcher.picture
from services.dispatcher.catalog import Catalog
from services.dispatcher.decide import Cluster, Create, Leave, Patch, Pending, decide
from services.dispatcher.permissions import Grant
from services.dispatcher.picture import Picture
from services.dispatcher.reconcile import STEPS_AT_ONCE, WRITERS
from shared.domain.kernel import KernelVersion
from shared.domain.work import StoredWork
from shared.kube.client import MANIFEST_WORKS

A, B, C = KERNELS[:3]


@contextlib.contextmanager
def turns(count: list[int]) -> Iterator[None]:
    """Counts the turns that another task gets."""

    async def take() -> None:
        while True:
            count[0] += 1
            await asyncio.sleep(0)

    taking = asyncio.ensure_future(take())
    try:
        yield
    finally:
        taking.cancel()


@pytest.mark.parametrize("grant", [Grant.OFF, Grant.AGGREGATE])
async def test_no_pass_and_no_report_decides_for_long_without_a_pause(
    monkeypatch: pytest.MonkeyPatch, grant: Grant
) -> None:
    """Else the lease of the leader runs out in the middle of each pass over a large fleet."""
    hub = await small_hub(grant=grant)
    await hub.add_cluster(*(f"c{number}" for number in range(500)))
    for name in ("m1", "m2"):
        await hub.add_module(name)
    decided: Counter[int] = Counter()
    turn = [0]
    right = services.dispatcher.picture.decide

    def counted(**named: Any) -> Any:
        decided[turn[0]] += 1
        return right(**named)

    monkeypatch.setattr(services.dispatcher.picture, "decide", counted)
    acts: list[Callable[[], Awaitable[Any]]] = [
        lambda: hub.reconciler.reconcile(EVERYTHING),
        lambda: hub.reconciler.report(["m1", "m2"]),
    ]
    for act in acts:
        decided.clear()
        with turns(turn):
            await act()
        assert sum(decided.values()) == 1000
        assert max(decided.values()) <= STEPS_AT_ONCE


async def test_only_so_many_works_are_written_at_once() -> None:
    hub = await small_hub()
    await hub.add_cluster(*(f"c{number}" for number in range(3 * WRITERS)), kernels=())
    await hub.add_module("m", {**raw_spec(), "moduleSpec": {"devicePlugin": {"container": {"image": "r/p"}}}})
    under_way = most = 0

    async def slow() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1

    hub.kube.fault = lambda verb, resource, _: (
        slow() if verb == "create" and resource == MANIFEST_WORKS else None
    )
    await hub.reconciler.reconcile(EVERYTHING)
    assert most == WRITERS
    assert len(hub.works()) == 3 * WRITERS


def the_picture(fleet: list[Cluster], works: dict[str, StoredWork]) -> Picture:
    outcomes = {A: shipment(A), B: shipment(B), C: Pending(reason="Building", message="")}
    return Picture(
        modules={NAME: Catalog().read(stored_module())},
        clusters={cluster.name: cluster for cluster in fleet},
        works={(NAME, cluster): stored for cluster, stored in works.items()},
        pairs=frozenset((NAME, cluster.name) for cluster in fleet),
        needs={},
        outcomes={(NAME, kernel): outcome for kernel, outcome in outcomes.items()},
    )


@pytest.mark.parametrize("is_reversed", [False, True])
def test_what_clusters_share_changes_no_decision(is_reversed: bool) -> None:
    kernels: dict[str, tuple[KernelVersion, ...]] = {
        "ab": (A, B),
        "ab-too": (A, B),
        "b": (B,),
        "abc": (A, B, C),
        "posted": (A, B),
        "edited": (A, B),
    }
    fleet = [a_cluster(*those, name=name) for name, those in kernels.items()]
    work = posted([shipment(A), shipment(B)], cluster="posted")
    works = {
        "posted": StoredWork(work=work, posted_hash=work.observed_hash),
        "edited": StoredWork(work=posted([shipment(A)], cluster="edited"), posted_hash="another"),
    }
    seen = the_picture(fleet, works)
    decisions = {
        cluster.name: seen.decide((NAME, cluster.name))
        for cluster in (reversed(fleet) if is_reversed else fleet)
    }
    for cluster in fleet:
        stored = works.get(cluster.name)
        alone = decide(
            module=a_module(),
            cluster=cluster,
            outcomes={kernel: seen.outcomes[NAME, kernel] for kernel in cluster.kernels},
            work=stored.work if stored else None,
            posted_hash=stored.posted_hash if stored else None,
        )
        assert decisions[cluster.name] == alone
    one, other = decisions["ab"], decisions["ab-too"]
    assert isinstance(one, Create)
    assert isinstance(other, Create)
    assert one.work["spec"] is other.work["spec"]
    assert (one.work["metadata"]["namespace"], other.work["metadata"]["namespace"]) == ("ab", "ab-too")
    assert isinstance(decisions["posted"], Leave)
    assert isinstance(decisions["edited"], Patch)

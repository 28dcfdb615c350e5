"""What the watcher stored and Postgres lost comes back; and a list that finds nothing new writes nothing."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from services.watcher.main import MAX_SILENCE_SECONDS, leading_watcher
from shared.domain.errors import HubError
from shared.domain.work import ObservedWork
from shared.events.messages import decode_changed
from shared.kube.client import (
    CONFIG_MAPS,
    MANAGED_CLUSTERS,
    MANIFEST_WORKS,
    NAMESPACES,
    WATCH_SECONDS,
    Resource,
)
from shared.kube.errors import Forbidden
from shared.kube.reflector import ASKED_LIST_SECONDS, MAX_BACKOFF_SECONDS, RELIST_SECONDS
from shared.relay.backbone import Backbone
from shared.relay.relay import Relay
from shared.runtime.process import Process
from shared.store.port import Facts
from simulation.bus import Broker, BrokerWeather, SimulatedBus
from simulation.hub import HubState, SimulatedKube
from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.run import simulate
from simulation.store import SimulatedStore, StoreState
from simulation.store_rows import OUTBOX

NAMESPACE = "kmm-operator"
LISTED_WITHIN = 1.2 * RELIST_SECONDS + WATCH_SECONDS + 5.0
ASKED_WITHIN = 1.2 * ASKED_LIST_SECONDS + WATCH_SECONDS + 5.0
Told = Counter[tuple[str, str]]


class ClosableKube(SimulatedKube):
    """A hub that refuses all lists and watches while `error` is set."""

    error: HubError | None = None

    async def list_page(self, resource: Resource, **rest: Any) -> bytes:
        if self.error:
            raise self.error
        return await super().list_page(resource, **rest)

    async def watch(self, resource: Resource, **rest: Any) -> Any:
        if self.error:
            raise self.error
        async for line in super().watch(resource, **rest):
            yield line


@dataclass(slots=True, kw_only=True)
class Bench:
    """A hub, a store, and a watcher between them that nobody listens to."""

    loop: SimulationLoop
    hub: HubState
    store: StoreState
    kube: ClosableKube
    process: Process
    backbone: Backbone

    def start(self) -> asyncio.Task[None]:
        watch = leading_watcher(self.kube, self.backbone, self.process, namespace=NAMESPACE)
        return asyncio.create_task(watch(asyncio.Event()))

    def add(self, resource: Resource, name: str, *, namespace: str | None = None, **rest: Any) -> None:
        self.hub.create(resource, {"metadata": {"name": name}, **rest}, namespace=namespace)

    def told(self) -> Told:
        """(kind, name) of what was announced since this was last asked, and how often."""
        found = [decode_changed(row.payload) for row in self.store.table(OUTBOX).values()]
        self.store.rows = {key: row for key, row in self.store.rows.items() if key[0] != OUTBOX}
        return Counter((str(one.kind), one.name) for one in found)

    def rows(self) -> dict[Any, Any]:
        return dict(self.store.rows)

    def is_in_contact(self) -> bool:
        return self.process.checks["hub"]()


def watched(case: Callable[[Bench], Awaitable[None]]) -> None:
    """Run a case once the watcher has listed a cluster, a ConfigMap and a work."""

    async def main(loop: SimulationLoop) -> None:
        def line(name: str) -> Line:
            return Line("watcher", Weather(), loop.chance(name), to=name)

        hub = HubState(loop.chance("hub"), loop.time)
        state = StoreState(clock=loop.time)
        store = SimulatedStore(state, line("store"))
        broker = Broker(clock=loop.time, chance=loop.chance("broker"), weather=BrokerWeather())
        bus = SimulatedBus(broker, line("bus"))
        bench = Bench(
            loop=loop,
            hub=hub,
            store=state,
            kube=ClosableKube(hub, line("hub")),
            process=Process(),
            backbone=Backbone(store=store, bus=bus, relay=Relay(store, bus, subjects=("",))),
        )
        for name in (NAMESPACE, "east"):
            bench.add(NAMESPACES, name)
        bench.add(MANAGED_CLUSTERS, "east")
        bench.add(CONFIG_MAPS, "recipe", namespace=NAMESPACE, data={"dockerfile": "FROM a"})
        bench.add(MANIFEST_WORKS, "module", namespace="east", spec={"workload": {"manifests": []}})
        task = bench.start()
        await asyncio.sleep(5.0)
        assert bench.is_in_contact()
        await case(bench)
        assert not task.done()
        task.cancel()

    for seed in range(3):
        simulate(main, seed=seed)


RESOURCES = ("clusters", "modules", "config_maps", "secrets", "works")
FIRST = Counter(("everything", name) for name in RESOURCES) + Counter(
    [("cluster", "east"), ("config-map", "recipe"), ("work", "module")]
)


def test_commits_that_postgres_lost_unnoticed_come_back_with_a_later_list() -> None:
    async def case(bench: Bench) -> None:
        assert bench.told() == FIRST
        before = bench.rows()
        bench.hub.merge_patch(MANAGED_CLUSTERS, "east", {"metadata": {"labels": {"a": "b"}}})
        bench.add(MANAGED_CLUSTERS, "west")
        bench.hub.delete(CONFIG_MAPS, "recipe", namespace=NAMESPACE)
        bench.hub.delete(MANIFEST_WORKS, "module", namespace="east")
        await asyncio.sleep(5.0)
        after, news = bench.rows(), bench.told()
        assert news == Counter(
            [("cluster", "east"), ("cluster", "west"), ("config-map", "recipe"), ("work", "module")]
        )

        bench.store.rows = dict(before)

        await asyncio.sleep(LISTED_WITHIN)
        assert bench.told() == news
        async with bench.backbone.store.begin() as transaction:
            assert (await transaction.read_facts(Facts.CLUSTERS))["east"]["labels"] == {"a": "b"}
            assert await transaction.read_facts(Facts.CLUSTERS) == {
                name: row for (table, name), row in after.items() if table == Facts.CLUSTERS
            }
            assert await transaction.read_facts(Facts.CONFIG_MAPS) == {}
            assert await transaction.known_works() == set()

    watched(case)


def test_commits_that_postgres_lost_as_it_failed_over_come_back_soon() -> None:
    async def case(bench: Bench) -> None:
        before = bench.rows()
        bench.add(MANAGED_CLUSTERS, "west")
        bench.hub.delete(MANIFEST_WORKS, "module", namespace="east")
        await asyncio.sleep(5.0)

        bench.store.is_down = True
        bench.add(CONFIG_MAPS, "late", namespace=NAMESPACE)
        await asyncio.sleep(20.0)
        bench.store.rows = dict(before)
        bench.store.is_down = False

        await asyncio.sleep(ASKED_WITHIN)
        async with bench.backbone.store.begin() as transaction:
            assert (await transaction.read_facts(Facts.CLUSTERS)).keys() == {"east", "west"}
            assert (await transaction.read_facts(Facts.CONFIG_MAPS)).keys() == {"recipe", "late"}
            assert await transaction.known_works() == set()

    watched(case)


def test_a_work_that_was_stored_after_its_end_had_passed_is_found_to_be_gone() -> None:
    """The answer to the dispatcher's write came late: the work was made, and deleted, before the watcher's list."""

    async def case(bench: Bench) -> None:
        bench.told()
        late = ObservedWork(
            cluster="east",
            name="ghost",
            uid="u",
            resource_version=1,
            module="ghost",
            content_hash="c",
            observed_hash="o",
            served={},
            conditions={},
            feedback={},
        )
        async with bench.backbone.store.begin() as transaction:
            assert await transaction.record_works([late], is_own_write=True)

        await asyncio.sleep(LISTED_WITHIN)
        async with bench.backbone.store.begin() as transaction:
            assert await transaction.known_works() == {("east", "module")}
        assert bench.told() == Counter([("work", "ghost")])

    watched(case)


def test_lists_that_find_nothing_new_commit_nothing() -> None:
    async def case(bench: Bench) -> None:
        commits, rows = bench.store.commits, bench.rows()
        await asyncio.sleep(3 * LISTED_WITHIN)
        assert (bench.store.commits, bench.rows()) == (commits, rows)

    watched(case)


def test_a_watcher_that_starts_again_announces_what_it_missed_and_no_more() -> None:
    async def case(bench: Bench) -> None:
        assert bench.told() == FIRST
        bench.kube.error = Forbidden("nobody watches")
        bench.hub.cut_watches()
        await asyncio.sleep(1.0)
        bench.add(MANAGED_CLUSTERS, "west")
        bench.hub.compact()
        bench.kube.error = None
        again = bench.start()
        await asyncio.sleep(5.0)
        assert bench.told() == Counter([("cluster", "west")])
        again.cancel()

    watched(case)


def test_the_watcher_is_not_ready_while_nothing_is_heard_of_the_hub() -> None:
    async def case(bench: Bench) -> None:
        for _ in range(100):
            await asyncio.sleep(10.0)
            assert bench.is_in_contact()

        bench.kube.error = Forbidden("a right was taken away")
        bench.hub.cut_watches()
        await asyncio.sleep(MAX_SILENCE_SECONDS - WATCH_SECONDS - 5.0)
        assert bench.is_in_contact()
        await asyncio.sleep(WATCH_SECONDS + 5.0)
        assert not bench.is_in_contact()

        bench.kube.error = None
        await asyncio.sleep(1.2 * MAX_BACKOFF_SECONDS + WATCH_SECONDS + 5.0)
        assert bench.is_in_contact()

    watched(case)


def test_a_store_that_is_away_is_not_the_hubs_silence() -> None:
    async def case(bench: Bench) -> None:
        bench.store.is_down = True
        for number in range(2 * 2001):
            bench.hub.merge_patch(MANAGED_CLUSTERS, "east", {"metadata": {"labels": {"a": str(number)}}})
        await asyncio.sleep(2 * MAX_SILENCE_SECONDS)
        assert bench.is_in_contact()
        bench.store.is_down = False
        await asyncio.sleep(10.0)
        assert bench.is_in_contact()
        async with bench.backbone.store.begin() as transaction:
            assert (await transaction.read_facts(Facts.CLUSTERS))["east"]["labels"] == {"a": "4001"}

    watched(case)

"""A dispatcher on the simulation's servers, without the other services: what is stored is put there by the test."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from fleet_values import raw_spec

from services.dispatcher.gather import RESOURCES
from services.dispatcher.main import Dispatcher
from services.dispatcher.permissions import Grant
from services.dispatcher.reconcile import Reconciler
from shared.domain.work import observe_work
from shared.events.messages import Changed, Kind
from shared.kube.client import MANIFEST_WORKS, MODULES, NAMESPACES, Resource
from shared.relay.backbone import Backbone
from shared.relay.relay import Relay
from shared.store.port import Facts
from simulation.broker import Broker
from simulation.bus import SimulatedBus
from simulation.hub import SimulatedKube
from simulation.hub_state import HubState
from simulation.line import Line, Weather
from simulation.store import SimulatedStore, StoreState

Json = dict[str, Any]
EVERYTHING = {Changed(kind=Kind.EVERYTHING, name="test")}
Fault = Callable[[str, Resource, str], Any]
"""Called before each write with verb, resource, and namespace/name/subresource. It may raise; what it returns, if
anything, is the answer of a proxy that lets nothing through."""


class FaultyKube(SimulatedKube):
    """The simulated API, behind a proxy that a test may put in a bad mood; `writes` tells what was asked for."""

    fault: Fault = staticmethod(lambda *_: None)

    def __init__(self, state: HubState, line: Line) -> None:
        super().__init__(state, line)
        self.writes: list[tuple[str, str, str]] = []

    async def create(
        self, resource: Resource, body: Mapping[str, Any], *, namespace: str | None = None
    ) -> Json:
        answer = await self._meddle("create", resource, f"{namespace}/{body['metadata']['name']}")
        return answer if answer is not None else await super().create(resource, body, namespace=namespace)

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> Json:
        answer = await self._meddle("patch", resource, "/".join(filter(None, [namespace, name, subresource])))
        if answer is not None:
            return answer
        return await super().merge_patch(resource, name, body, namespace=namespace, subresource=subresource)

    async def list_page(self, resource: Resource, **rest: Any) -> bytes:
        answer: bytes | None = await self._meddle("list", resource, "")
        return answer if answer is not None else await super().list_page(resource, **rest)

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Json:
        answer = await self._meddle("get", resource, name)
        return answer if answer is not None else await super().get(resource, name, namespace=namespace)

    async def _meddle(self, verb: str, resource: Resource, where: str) -> Any:
        self.writes.append((verb, resource.plural, where))
        answer = self.fault(verb, resource, where)
        return await answer if asyncio.iscoroutine(answer) else answer


class SmallHub:
    """Servers, a reconciler and a dispatcher in the running loop; all facts were listed once."""

    def __init__(self, *, grant: Grant = Grant.OFF, delay: float = 0.0) -> None:
        clock = asyncio.get_running_loop().time
        line = Line("test", Weather(delay=delay), random.Random(1))
        self.state = HubState(random.Random(2), clock)
        self.kube = FaultyKube(self.state, line)
        self.rows = StoreState(clock=clock)
        self.store = SimulatedStore(self.rows, line)
        bus = SimulatedBus(Broker(clock=clock, chance=random.Random(3)), line)
        bus.broker.ensure()
        self.reconciler = Reconciler(
            kube=self.kube,
            store=self.store,
            namespace="kmm",
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
            grant=grant,
        )
        backbone = Backbone(store=self.store, bus=bus, relay=Relay(self.store, bus))
        self.dispatcher = Dispatcher(self.reconciler, backbone)

    async def synced(self) -> None:
        """Everything was listed."""
        async with self.store.begin() as transaction:
            for resource in RESOURCES:
                await transaction.mark_synced(resource, resource_version=1)

    async def add_cluster(self, *names: str, kernels: tuple[str, ...] = (), **labels: str) -> None:
        """Clusters that OCM has accepted; those that are known get these labels."""
        for name in names:
            with contextlib.suppress(Exception):
                self.state.create(NAMESPACES, {"metadata": {"name": name}})
        rows = [
            {
                "name": name,
                "uid": f"uid-{name}",
                "labels": labels,
                "kernels": list(kernels),
                "invalid_kernels": [],
                "claim_is_present": True,
                "claim_is_near_limit": False,
                "is_deleting": False,
                "resource_version": 1,
            }
            for name in names
        ]
        async with self.store.begin() as transaction:
            await transaction.put_facts(Facts.CLUSTERS, rows)

    async def add_module(self, name: str, spec: Json | None = None) -> None:
        """A module that a user makes, and the watcher stores."""
        body = {"metadata": {"name": name}, "spec": raw_spec() if spec is None else spec}
        self.state.create(MODULES, body)
        await self.observe()

    async def observe(self) -> None:
        """The watcher stores modules and works as they are now."""
        modules = [
            {
                "name": one["metadata"]["name"],
                "uid": one["metadata"]["uid"],
                "generation": one["metadata"]["generation"],
                "spec": one["spec"],
                "status": one.get("status", {}),
                "finalizers": one["metadata"].get("finalizers", []),
                "is_deleting": "deletionTimestamp" in one["metadata"],
                "resource_version": int(one["metadata"]["resourceVersion"]),
            }
            for one in self.state.objects(MODULES)
        ]
        works = [observe_work(one) for one in self.state.objects(MANIFEST_WORKS)]
        async with self.store.begin() as transaction:
            gone = set(await transaction.read_facts(Facts.MODULES)) - {one["name"] for one in modules}
            await transaction.remove_facts(Facts.MODULES, gone)
            await transaction.put_facts(Facts.MODULES, modules)
            await transaction.record_works(works, is_own_write=False)
            there = {(work.cluster, work.name) for work in works}
            lost = await transaction.known_works() - there
            await transaction.mark_works_gone(lost, resource_version=self.state.version)

    def works(self) -> set[tuple[str, str]]:
        """(module, cluster) of all works on the hub."""
        objects = self.state.objects(MANIFEST_WORKS)
        return {(one["metadata"]["name"], one["metadata"]["namespace"]) for one in objects}

    def status(self, module: str) -> Json:
        """A module's status on the hub."""
        found: Json = orjson.loads(self.state.get(MODULES, module))
        return dict(found.get("status") or {})

    @contextlib.asynccontextmanager
    async def dispatching(self, *, resync_seconds: float = 60.0) -> AsyncIterator[asyncio.Task[None]]:
        """The dispatcher runs; at the end it is asked to stop, and must."""
        stop = asyncio.Event()
        running = asyncio.create_task(self.dispatcher.run(stop, resync_seconds=resync_seconds))
        try:
            yield running
        finally:
            stop.set()
            async with asyncio.timeout(60):
                await running


async def small_hub(*, grant: Grant = Grant.OFF, delay: float = 0.0) -> SmallHub:
    """An empty hub."""
    hub = SmallHub(grant=grant, delay=delay)
    await hub.synced()
    return hub

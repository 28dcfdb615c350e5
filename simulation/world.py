"""The simulated data centre: one hub API, one store, one broker, one registry, and the services on them."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from services.builder.stage import BuildStage
from services.dispatcher.main import Dispatcher
from services.dispatcher.reconcile import Reconciler
from services.signer.stage import SignStage
from services.watcher.main import leading_watcher
from shared.bus.permissions import Identity, announced_prefixes
from shared.bus.topology import BUILDS, SIGNATURES
from shared.domain.artifact import EPOCH, Stage
from shared.domain.leadership import Terms
from shared.kube.client import NAMESPACES
from shared.kube.leadership import Work, lead
from shared.leasing.secrets import SecretReader
from shared.leasing.worker import Perform, StageWorker
from shared.relay.backbone import Backbone
from shared.relay.relay import Relay
from shared.runtime.process import Process
from simulation.builder_tools import SimulatedBuildah
from simulation.bus import Broker, BrokerWeather, SimulatedBus
from simulation.hub import SimulatedKube
from simulation.hub_state import HubState
from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.process import SimulatedProcess
from simulation.registry import RegistryState, SimulatedRegistry
from simulation.store import SimulatedStore, StoreState

NAMESPACE = "kmm-operator"
LEASE_SECONDS = 30.0
BUILD_SECONDS = 600.0
RESYNC_SECONDS = 60.0
LEADER_SECONDS = 60

SERVICES = (
    "watcher-a",
    "watcher-b",
    "dispatcher-a",
    "dispatcher-b",
    "builder-a",
    "builder-b",
    "signer-a",
    "signer-b",
    "streams",
)
"""The processes; what follows a dash tells replicas apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Healers:
    """What puts right whatever a message missed; the proof runs without each of them, too.

    Attributes:
        sweeps: the dispatcher announces what is overdue.
        polls: workers look for what nobody took.
        resyncs: the dispatcher compares everything now and then.
    """

    sweeps: bool = True
    polls: bool = True
    resyncs: bool = True


@dataclass(slots=True, kw_only=True)
class Ports:
    """One process's lines to everything."""

    process: SimulatedProcess
    kube: SimulatedKube
    store: SimulatedStore
    bus: SimulatedBus
    registry: SimulatedRegistry
    tools: SimulatedBuildah


@dataclass(slots=True)
class World:
    """Everything outside of the services' code.

    Attributes:
        weather: of all lines.
        journal: (second, what happened), in the domain's terms.
        poison: messages that nobody can read, by payload.
    """

    loop: SimulationLoop
    healers: Healers = field(default_factory=Healers)
    weather: Weather = field(default_factory=Weather)
    broker_weather: BrokerWeather = field(default_factory=BrokerWeather)
    journal: list[tuple[float, str]] = field(default_factory=list)
    poison: set[bytes] = field(default_factory=set)
    processes: dict[str, SimulatedProcess] = field(default_factory=dict)
    store: StoreState = field(init=False)
    hub: HubState = field(init=False)
    broker: Broker = field(init=False)
    registry: RegistryState = field(init=False)
    _lives: int = 0

    def __post_init__(self) -> None:
        """Empty servers."""
        clock = self.loop.time
        self.store = StoreState(clock=clock)
        self.hub = HubState(self.chance("hub"), clock)
        self.broker = Broker(clock=clock, chance=self.chance("broker"), weather=self.broker_weather)
        self.registry = RegistryState(chance=self.chance("registry"))
        self.hub.create(NAMESPACES, {"metadata": {"name": NAMESPACE}})

    def chance(self, name: str) -> random.Random:
        """A generator of its own for each part, so that one part's draws do not shift another's."""
        return self.loop.chance(name)

    def note(self, what: str) -> None:
        """Write something into the journal."""
        self.journal.append((self.loop.time(), what))

    def now(self) -> dt.datetime:
        """The time of day."""
        return EPOCH + dt.timedelta(days=20_000, seconds=self.loop.time())

    def start(self, name: str) -> None:
        """Start a service that does not run."""
        if name in self.processes and self.processes[name].is_alive:
            return
        self._lives += 1
        process = SimulatedProcess(f"{name}#{self._lives}", self.loop)
        self.processes[name] = process
        ports = self._connect(process)
        process.start(lambda: self._main(name, ports))
        self.note(f"{process.name} starts")

    def _connect(self, process: SimulatedProcess) -> Ports:
        def line(where: str) -> Line:
            made = Line(process.name, self.weather, self.chance(f"{process.name} to {where}"), to=where)
            process.lines.append(made)
            return made

        return Ports(
            process=process,
            kube=SimulatedKube(self.hub, line("hub")),
            store=SimulatedStore(self.store, line("store")),
            bus=SimulatedBus(self.broker, line("bus")),
            registry=SimulatedRegistry(self.registry, line("registry")),
            tools=SimulatedBuildah(self.registry, line("tools"), self.chance(f"{process.name}'s builds")),
        )

    async def _main(self, name: str, ports: Ports) -> None:
        """As `main` of each service: the relay, and the service's work."""
        service = name.partition("-")[0]
        if service == "streams":
            await self._keep_streams(ports.process)
            return
        relay = Relay(ports.store, ports.bus, subjects=announced_prefixes(Identity(service)))
        backbone = Backbone(store=ports.store, bus=ports.bus, relay=relay)
        stop = ports.process.stopping
        work: dict[str, Callable[[], Awaitable[None]]] = {
            "watcher": lambda: self._lead(
                "watcher",
                ports,
                leading_watcher(ports.kube, backbone, Process(stop=stop), namespace=NAMESPACE),
            ),
            "dispatcher": lambda: self._lead(
                "dispatcher",
                ports,
                lambda leading: self._dispatcher(ports, backbone).run(
                    leading, resync_seconds=RESYNC_SECONDS if self.healers.resyncs else 1e9
                ),
            ),
            "builder": lambda: self._builder(ports, backbone).run(BUILDS),
            "signer": lambda: self._signer(ports, backbone).run(SIGNATURES),
        }
        async with asyncio.TaskGroup() as group:
            relaying = group.create_task(relay.run(stop))
            await work[service]()
            relay.wake()
            await relaying

    async def _lead(self, name: str, ports: Ports, work: Work) -> None:
        await lead(
            ports.kube,
            name=f"kmm-hub-{name}",
            namespace=NAMESPACE,
            identity=ports.process.name,
            stop=ports.process.stopping,
            work=work,
            terms=Terms(lease_seconds=LEADER_SECONDS),
            wall=self.now,
        )

    async def _keep_streams(self, process: SimulatedProcess) -> None:
        """As `kmmhub streams --watch`."""
        while not process.stopping.is_set():
            if not self.broker.is_stopped:
                self.broker.ensure()
            await asyncio.sleep(3.0)

    def _dispatcher(self, ports: Ports, backbone: Backbone) -> Dispatcher:
        reconciler = Reconciler(kube=ports.kube, store=ports.store, namespace=NAMESPACE, now=self.now)
        return (Dispatcher if self.healers.sweeps else SweeplessDispatcher)(reconciler, backbone)

    def _builder(self, ports: Ports, backbone: Backbone) -> StageWorker:
        stage = BuildStage(
            registry=ports.registry,
            secrets=SecretReader(ports.kube, NAMESPACE),
            buildah=ports.tools,
            time_limit=BUILD_SECONDS,
        )
        return self._worker(Stage.BUILD, stage.perform, ports, backbone)

    def _signer(self, ports: Ports, backbone: Backbone) -> StageWorker:
        stage = SignStage(registry=ports.registry, secrets=SecretReader(ports.kube, NAMESPACE))
        return self._worker(Stage.SIGN, stage.perform, ports, backbone)

    def _worker(self, stage: Stage, perform: Perform, ports: Ports, backbone: Backbone) -> StageWorker:
        return (StageWorker if self.healers.polls else PolllessWorker)(
            stage,
            perform,
            backbone=backbone,
            owner=ports.process.name,
            lease_seconds=LEASE_SECONDS,
            concurrency=2,
            stop=ports.process.stopping,
        )


class SweeplessDispatcher(Dispatcher):
    """A dispatcher without its sweeper: what it heals must then come right another way."""

    async def sweep(self, stop: asyncio.Event) -> None:
        """Only wait."""
        await stop.wait()


class PolllessWorker(StageWorker):
    """A worker that takes only what the bus brings."""

    async def poll(self) -> None:
        """Only wait."""
        await self._stop.wait()

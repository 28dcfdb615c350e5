"""One run: plan, storm, calm, verdict."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chaos.calm import Calm
from chaos.inputs import Action
from chaos.material import make_material
from chaos.nemesis import Nemesis
from chaos.oracle import Breach
from chaos.plan import Fault, Plan
from chaos.user import User
from chaos.witness import Witness
from chaos.world import World, open_world
from shared.domain.errors import HubError
from shared.kube.client import KubeClient
from shared.registry.client import RegistryClient

RESYNC_SECONDS = 6.0
"""How often the dispatcher compares everything; so short that a minute of silence holds ten of them."""

CONVERGENCE_SECONDS = 300.0
"""Within this time after the last fault everything is as it should be."""

SILENT_RESYNCS = 10
SETTLE_SECONDS = 2.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run is made.

    Attributes:
        directory: for the hub, logs and journal.
        resync_seconds: how often the dispatcher compares everything.
        silence_seconds: how long nothing may be written in the end.
        keep: leave the hub running.
    """

    directory: Path
    resync_seconds: float = RESYNC_SECONDS
    silence_seconds: float = RESYNC_SECONDS * SILENT_RESYNCS
    convergence_seconds: float = CONVERGENCE_SECONDS
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of a run.

    Attributes:
        faults: how many of each kind happened; `skipped` those that this machine cannot have.
        counts: builds, works, images and the like that were seen.
        breaches: properties that did not hold.
        converged_seconds: how long it took after the last fault; None if it did not.
        retried: modules whose failed images the user tried again.
        restarts: services that ended by themselves, with their exit statuses.
    """

    seed: int
    faults: dict[str, int]
    skipped: dict[str, int]
    counts: dict[str, int]
    breaches: tuple[Breach, ...]
    converged_seconds: float | None
    retried: tuple[str, ...]
    restarts: dict[str, list[int]]
    seconds: float


class Journal:
    """The run as lines of JSON: what happened, at which second."""

    def __init__(self, path: Path, started: float) -> None:
        self._file = path.open("w", buffering=1)
        self._started = started

    def write(self, event: str, **fields: Any) -> None:
        """One line."""
        line = {"at": round(time.time() - self._started, 2), "event": event, **fields}
        self._file.write(json.dumps(line, default=str) + "\n")

    def write_breach(self, breach: Breach) -> None:
        """One line of a breach."""
        self.write("breach", **asdict(breach))

    def close(self) -> None:
        """Nothing more is written."""
        self._file.close()


async def run(plan: Plan, settings: Settings, tell: Tell) -> Report:
    """Carry a plan out against real processes.

    Args:
        plan: what happens.
        settings: where and how.
        tell: receives a line for each fault and each phase.

    Raises:
        HubError: the hub itself cannot be started.
    """
    async with open_world(
        settings.directory, resync_seconds=settings.resync_seconds, keep=settings.keep
    ) as world:
        started = time.time()
        journal = Journal(settings.directory / "journal.jsonl", started)
        try:
            async with (
                await KubeClient.connect(world.addresses.kubeconfig) as kube,
                RegistryClient() as registry,
            ):
                material = make_material(settings.directory)
                user = User(
                    world, material, kube=kube, registry=registry, clock=lambda: time.time() - started
                )
                witness = Witness(
                    world,
                    user,
                    material,
                    kube=kube,
                    registry=registry,
                    started=started,
                    on_breach=journal.write_breach,
                )
                calm = Calm(world, user, witness, kube=kube, registry=registry)
                storm = _Run(
                    plan=plan,
                    settings=settings,
                    tell=tell,
                    world=world,
                    journal=journal,
                    user=user,
                    witness=witness,
                    calm=calm,
                )
                return await storm.whole()
        finally:
            journal.close()


class _Run:
    """The parts of one run, and their order."""

    def __init__(
        self,
        *,
        plan: Plan,
        settings: Settings,
        tell: Tell,
        world: World,
        journal: Journal,
        user: User,
        witness: Witness,
        calm: Calm,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._tell = tell
        self._world = world
        self._journal = journal
        self._user = user
        self._witness = witness
        self._calm = calm
        self._nemesis = Nemesis(world)
        self._faults: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._to_do: asyncio.Queue[Action] = asyncio.Queue()

    async def whole(self) -> Report:
        """Storm, calm, verdict."""
        await self._user.prepare()
        async with self._watched():
            self._world.start_services()
            async with self._acting():
                for action in self._plan.first:
                    self._to_do.put_nowait(action)
                await self._to_do.join()
                await self._storm()
                await self._to_do.join()
            self._tell(f"all {len(self._plan.faults)} faults are over; now everything must come to rest")
            await self._nemesis.heal()
            took = await self._calm.converge(seconds=self._settings.convergence_seconds)
            self._journal.write("converged" if took is not None else "not converged", seconds=took)
            if took is not None:
                self._tell(
                    f"converged after {took:.0f} s; {self._settings.silence_seconds:.0f} s of silence now"
                )
                await asyncio.sleep(SETTLE_SECONDS)
                await self._calm.silence(seconds=self._settings.silence_seconds)
        statuses = await self._world.end_services()
        self._judge_endings(statuses)
        await self._witness.conclude()
        return self._report(took)

    async def _storm(self) -> None:
        """All faults, each at its time; the next begins while some go on."""
        stop = asyncio.Event()
        keeping = asyncio.create_task(self._nemesis.keep_running(stop))
        try:
            async with asyncio.TaskGroup() as group:
                for fault in self._plan.faults:
                    for action in fault.actions:
                        self._to_do.put_nowait(action)
                    group.create_task(self._strike(fault))
                    await asyncio.sleep(fault.gap)
        finally:
            stop.set()
            await keeping

    async def _strike(self, fault: Fault) -> None:
        count, breaches = len(self._plan.faults), len(self._witness.breaches)
        where = f" ({fault.target})" if fault.target else ""
        self._tell(f"fault {fault.number:3} of {count}: {fault.kind}{where}; breaches so far: {breaches}")
        self._journal.write(
            "fault", number=fault.number, kind=fault.kind, target=fault.target, seconds=fault.seconds
        )
        happened = await self._nemesis.perform(fault)
        (self._faults if happened else self._skipped)[fault.kind] += 1
        self._journal.write("healed", number=fault.number)

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        watching = asyncio.create_task(self._witness.watch(stop))
        try:
            yield
        finally:
            stop.set()
            await watching

    @contextlib.asynccontextmanager
    async def _acting(self) -> AsyncIterator[None]:
        """The user does one thing after the other."""

        async def act() -> None:
            while True:
                action = await self._to_do.get()
                self._journal.write("user", action=type(action).__name__, **asdict(action))
                try:
                    await self._user.do(action)
                except HubError as error:
                    self._witness.note(
                        Breach(
                            invariant="the user is served",
                            what=str(error),
                            where=type(action).__name__,
                            when=self._witness.clock(),
                        )
                    )
                self._to_do.task_done()

        acting = asyncio.create_task(act())
        try:
            yield
        finally:
            acting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await acting

    def _judge_endings(self, statuses: dict[str, int | None]) -> None:
        unwilling = [*self._nemesis.unwilling, *(name for name, status in statuses.items() if status is None)]
        for name in unwilling:
            what = "it did not end on SIGTERM within the time that Kubernetes gives"
            self._witness.note(
                Breach(invariant="clean shutdown", what=what, where=name, when=self._witness.clock())
            )

    def _report(self, took: float | None) -> Report:
        injected = self._world.api.injected.total() + self._world.registry.injected.total()
        counts = {
            **self._witness.counts,
            "wrong answers given": injected,
            "lives of services": sum(len(one.lives) for one in self._world.services.values()),
            "things the user did": len(self._user.history) - 1,
        }
        return Report(
            seed=self._plan.seed,
            faults=dict(self._faults),
            skipped=dict(self._skipped),
            counts=counts,
            breaches=tuple(replace(one, when=round(one.when, 1)) for one in self._witness.breaches),
            converged_seconds=round(took, 1) if took is not None else None,
            retried=tuple(sorted(self._calm.retried)),
            restarts={one.name: one.ended for one in self._world.services.values() if one.ended},
            seconds=round(self._witness.clock(), 1),
        )

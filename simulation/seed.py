"""One seed: a fleet, trouble, calm, and silence."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest.mock import patch

import services.signer.stage
import shared.bus.consuming
import shared.relay.relay
from services.dispatcher.surprise import SURPRISES
from services.signer.module_signature import load_private_key
from simulation.calm import unmet
from simulation.invariants import Oracle
from simulation.loop import SimulationLoop
from simulation.nemesis import Nemesis
from simulation.run import simulate
from simulation.user import User
from simulation.world import SERVICES, Healers, World

CONVERGES_WITHIN = 900.0
"""Virtual seconds of calm in which everything must come right: several times the longest pause between tries."""

IDLE_SECONDS = 15.0
"""Virtual seconds between looks of those who wait for nothing in particular."""

SETTLES_WITHIN = 150.0
"""Virtual seconds after which also what nobody needs any more was given up: two rounds of comparing everything."""

SILENCE = 600.0
"""Virtual seconds in which then nothing may be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is simulated.

    Attributes:
        steps: acts of the user and faults, together.
        gentle: no fault kills or loses anything.
        healers: what puts right whatever was missed.
    """

    steps: int = 30
    gentle: bool = False
    healers: Healers = field(default_factory=Healers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a seed went.

    Attributes:
        breaches: broken invariants, in words; empty if all is well.
        journal: what happened, in the domain's terms.
        faults: how many of which kind.
        converged_in: virtual seconds of calm, None if not in time.
        seconds: virtual.
        wall_seconds: real.
    """

    seed: int
    breaches: tuple[str, ...]
    journal: tuple[str, ...]
    faults: Counter[str]
    converged_in: float | None
    seconds: float
    steps: int
    wall_seconds: float


def run_seed(seed: int, options: Options | None = None) -> Report:
    """Simulate one seed; the same seed and options give the same report, but for `wall_seconds`."""
    chosen = options or Options()
    started = time.perf_counter()
    seen: list[_Run] = []

    async def main(loop: SimulationLoop) -> None:
        run = _Run(World(loop, healers=chosen.healers), chosen)
        seen.append(run)
        await run.play()

    failures: list[str] = []
    surprised = _surprises()
    try:
        with _unhurried():
            simulate(main, seed=seed)
    except BaseExceptionGroup as group:
        failures += [
            f"failure: {one!r} {' '.join(getattr(one, '__notes__', []))}" for one in group.exceptions
        ]
    except Exception as error:  # noqa: BLE001 - whatever stops a run is what it found
        failures.append(f"failure: {error!r} {' '.join(getattr(error, '__notes__', []))}")
    failures += [f"failure: the dispatcher met a bug {what}" for what in sorted(_surprises() - surprised)]
    (run,) = seen
    breaches = [f"{one.second:.1f} s: {one.invariant}: {one.what}" for one in run.oracle.breaches]
    return Report(
        seed=seed,
        breaches=(*breaches, *run.unmet, *failures),
        journal=tuple(f"{second:8.1f}  {what}" for second, what in run.world.journal),
        faults=run.nemesis.counts,
        converged_in=run.converged_in,
        seconds=run.world.loop.time(),
        steps=run.world.loop.steps,
        wall_seconds=time.perf_counter() - started,
    )


def _surprises() -> Counter[str]:
    """How often the dispatcher met what no rule expects, which it survives: by what it was doing."""
    return Counter(
        {
            f"while doing {sample.labels['doing']!r}": int(sample.value)
            for metric in SURPRISES.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }
    )


@contextlib.contextmanager
def _unhurried() -> Iterator[None]:
    """What services do every second while nothing happens is most of the work of a simulation: let it be rarer.

    Nothing that is woken up waits for these. The key is the same for all, and reading it is slow.
    """
    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(shared.relay.relay, "IDLE_SECONDS", IDLE_SECONDS))
        patches.enter_context(patch.object(shared.bus.consuming, "FETCH_TIMEOUT_SECONDS", IDLE_SECONDS))
        patches.enter_context(patch.object(services.signer.stage, "load_private_key", _load_private_key))
        yield


_load_private_key = functools.cache(load_private_key)


class _Run:
    def __init__(self, world: World, options: Options) -> None:
        self.world = world
        self.user = User(world, world.chance("user"), gentle=options.gentle)
        self.oracle = Oracle(world, self.user)
        self.nemesis = Nemesis(world, world.chance("nemesis"), gentle=options.gentle)
        self.unmet: list[str] = []
        self.converged_in: float | None = None
        self._options = options
        self._pace = world.chance("pace")

    async def play(self) -> None:
        """Trouble, calm, silence."""
        self.oracle.watch()
        self.user.begin()
        for name in SERVICES:
            self.world.start(name)
        agents = asyncio.create_task(self._every(2.0, self._tend), name="agents")
        for _ in range(self._options.steps):
            await asyncio.sleep(self._pace.expovariate(1 / 4.0))
            if self._pace.random() < 0.5:
                self.user.act()
            else:
                self.nemesis.act()
        await self.nemesis.heal()
        self.user.mend_everything()
        self.world.note("calm")
        await self._converge()
        if not self.unmet:
            await self._keep_silent()
        agents.cancel()

    def _tend(self) -> None:
        self.user.run_agents()
        self.world.hub.finish_namespaces()

    async def _every(self, seconds: float, act: Callable[[], None]) -> None:
        while True:
            act()
            await asyncio.sleep(seconds)

    async def _converge(self) -> None:
        began = self.world.loop.time()
        while self.world.loop.time() < began + CONVERGES_WITHIN:
            await asyncio.sleep(5.0)
            left = unmet(self.world, self.user)
            if not left:
                self.converged_in = self.world.loop.time() - began
                self.world.note(f"converged after {self.converged_in:.0f} s")
                return
        self.unmet = [f"not within {CONVERGES_WITHIN:.0f} s: {one}" for one in left]

    async def _keep_silent(self) -> None:
        await asyncio.sleep(SETTLES_WITHIN)
        before = self._writes()
        await asyncio.sleep(SILENCE)
        for what, count in self._writes().items():
            self.oracle.check(
                count == before[what], "S12 then there is silence", f"{count - before[what]} {what}"
            )

    def _writes(self) -> dict[str, int]:
        return {
            "writes to the hub": self.oracle.writes,
            "commits": self.world.store.commits,
            "tags set in the registry": self.oracle.tags_set,
        }

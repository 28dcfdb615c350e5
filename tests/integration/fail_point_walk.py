"""A walk through fail points: services that die or freeze at one place after the other, and what they work on."""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

from fleet import PLAIN, Fleet, served
from running_services import Service, eventually

from shared.domain.image import ImageReference
from shared.kube.client import MODULES
from shared.registry.client import RegistryClient
from shared.runtime.fail_point import Action, FailPoint
from shared.store.database import IDLE_IN_TRANSACTION_SECONDS

LEASE_SECONDS = 3.0
"""What the fleet's services are started with."""

IN_TRANSACTION = frozenset(
    {
        FailPoint.OUTBOX_LOCKED,
        FailPoint.OUTBOX_PUBLISHED,
        FailPoint.OUTBOX_DELETED,
        FailPoint.LEASE_EXTENDED,
        FailPoint.BATCH_WRITTEN,
    }
)
"""Where a frozen process holds locks, until the server ends its transaction."""

DISARMED = "not yet"
STILL_SECONDS = 2.0
FEED_SECONDS = 3.0
REACH_SECONDS = 90.0
CONVERGE_SECONDS = 90.0


class Walker:
    """One service that walks through places: each life has one of them, at which it is armed when it is told so."""

    def __init__(
        self, service: Service, points: Iterable[FailPoint], *, action: Action, directory: Path
    ) -> None:
        self.service = service
        self.point: FailPoint | None = None
        self.is_awaited = False
        """Whether it is armed and has not reached its place."""
        self._points = deque(points)
        self._action = action
        self._file = directory / f"{service.log.stem}-reached"

    def start(self) -> None:
        """Begin a life; its place is not armed yet."""
        self.point = self._points.popleft() if self._points else None
        self._file.write_text(DISARMED)
        trigger = f"{self.point}={self._action}" if self.point else ""
        self.service.start(KMMHUB_FAIL_POINT=trigger, KMMHUB_FAIL_POINT_FILE=str(self._file))

    def arm(self) -> None:
        """From now on it acts."""
        if self.point is not None:
            self._file.write_text("")
            self.is_awaited = True

    async def reach(self) -> None:
        """Wait until it has died or frozen at its place."""

        async def look() -> bool:
            return self._file.read_text() == self.point

        what = f"{self.service.log.stem} reaches {self.point}"
        try:
            await eventually(look, what=what, seconds=REACH_SECONDS, every=0.02)
        finally:
            self.is_awaited = False

    async def recover(self) -> None:
        """Start it again, or let it go on once its lease has run out and the server has dropped its transaction."""
        if self._action == "kill":
            assert self.service.status() == -signal.SIGKILL
            self.start()
            return
        await asyncio.sleep(
            IDLE_IN_TRANSACTION_SECONDS + 1 if self.point in IN_TRANSACTION else LEASE_SECONDS + 0.5
        )
        assert is_stopped(self.service.pid), f"{self.service.name} did not freeze at {self.point}"
        os.kill(self.service.pid, signal.SIGCONT)

    async def next_life(self) -> None:
        """End a life that went on after it was frozen, and begin the next."""
        if self._action == "stop":
            assert await asyncio.to_thread(self.service.end) == 0
            self.start()


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal (proc(5), the state behind the name)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class Work:
    """What the services are given to do: each feed reaches every place that work on modules can reach."""

    def __init__(
        self,
        fleet: Fleet,
        registry: RegistryClient,
        *,
        build: dict[str, Any],
        sign: dict[str, Any],
        base: str,
    ) -> None:
        """`build`, `sign`: sections of a container; `base`: the image that is built on, which can be signed."""
        self.fleet = fleet
        self.sign, self.base = sign, base
        self._build = build
        self._registry = registry
        self._kernels = itertools.count(1)
        self._signed = ""
        self._gone: set[str] = set()
        self._kernels_of: dict[str, list[str]] = {}
        """By the name of a module that should be there: what the one cluster that it selects claims."""

    async def begin(self) -> None:
        """A module that is built and signed, on a cluster of its own, takes the place of all before it."""
        await self._remove(*self._kernels_of)
        self._signed = await self._add(build=self._build, sign=self.sign)

    async def feed(self) -> None:
        """A claim grows by a kernel; a module that is only built comes, and the one before it goes."""
        kernels = self._kernels_of[self._signed]
        kernels.append(self._new_kernel())
        await self.fleet.claim(cluster_of(self._signed), kernels)
        await self._remove(*(name for name in self._kernels_of if name != self._signed))
        await self._add(build=self._build)

    async def _add(self, **container: Any) -> str:
        name = self.fleet.new_name()
        self._kernels_of[name] = [self._new_kernel()]
        await self.fleet.add_cluster(cluster_of(name), label=name, kernels=self._kernels_of[name])
        await self.fleet.add_module(name, **container)
        return name

    async def _remove(self, *names: str) -> None:
        for name in names:
            del self._kernels_of[name]
            self._gone.add(name)
            await self.fleet.kube.delete(MODULES, name)

    def _new_kernel(self) -> str:
        return f"6.1.0-{next(self._kernels)}-amd64"

    async def converges(self, what: str) -> None:
        """Wait until all is as the user asked for, and nothing is written any more."""

        async def look() -> bool:
            await self._look()
            before = await self.fleet.versions()
            await asyncio.sleep(STILL_SECONDS)
            await self._look()
            assert await self.fleet.versions() == before, "something is still written"
            return True

        await eventually(look, what=f"everything converges ({what})", seconds=CONVERGE_SECONDS, every=0.25)

    async def _look(self) -> None:
        assert await self.fleet.database.fetchval("SELECT count(*) FROM outbox") == 0
        waiting = await self.fleet.database.fetch(
            "SELECT target, state, reason, message FROM artifacts WHERE state NOT IN ('ready', 'unwanted')"
        )
        assert not waiting, f"artifacts are not ready: {waiting}"
        rows = await self.fleet.database.fetch("SELECT target, digest FROM artifacts")
        digests = {row["target"]: row["digest"] for row in rows}
        assert len(digests) == len(rows), "two artifacts have one target"
        versions = await self.fleet.versions()
        assert not {name for _, name in versions} & self._gone
        for name, kernels in self._kernels_of.items():
            condition = await self.fleet.condition(name, "Ready")
            assert condition["status"] == "True", f"{name}: {condition}"
            assert {place for place, other in versions if other == name} == {"", cluster_of(name)}
            work = await self.fleet.work(cluster_of(name), name)
            assert work is not None
            assert set(served(work)) == set(kernels)
            for kernel, image in served(work).items():
                target = self.fleet.image(name, kernel)
                stored = await self._registry.head(ImageReference.parse(target), access=PLAIN)
                assert stored is not None, f"the registry lacks {target}"
                assert stored.digest == digests[target] == image.partition("@")[2], target


def cluster_of(module: str) -> str:
    """The cluster that a module selects."""
    return f"{module}-c"


async def walk(walkers: Sequence[Walker], work: Work) -> None:
    """Let every service reach each of its places, one of each at the same time; everything converges each time."""
    for walker in walkers:
        walker.start()
    await asyncio.gather(*(walker.service.started() for walker in walkers))
    while any(walker.point for walker in walkers):
        going = [walker for walker in walkers if walker.point]
        what = ", ".join(f"{walker.service.log.stem}: {walker.point}" for walker in going)
        for walker in going:
            walker.arm()
        await work.begin()
        async with feeding(work, going):
            reached = await asyncio.gather(
                *(reach_and_recover(walker) for walker in going), return_exceptions=True
            )
        failures = [error for error in reached if isinstance(error, BaseException)]
        assert not failures, (what, failures)
        await work.converges(what)
        await asyncio.gather(*(walker.next_life() for walker in going))


async def reach_and_recover(walker: Walker) -> None:
    """To its place, and on."""
    await walker.reach()
    await walker.recover()


@contextlib.asynccontextmanager
async def feeding(work: Work, walkers: Sequence[Walker]) -> AsyncIterator[None]:
    """Give work at least once, and again while somebody has not reached its place."""

    async def feed() -> None:
        await work.feed()
        fed = time.monotonic()
        while any(walker.is_awaited for walker in walkers):
            await asyncio.sleep(0.1)
            if time.monotonic() > fed + FEED_SECONDS:
                await work.feed()
                fed = time.monotonic()

    task = asyncio.create_task(feed())
    try:
        yield
    finally:
        await task

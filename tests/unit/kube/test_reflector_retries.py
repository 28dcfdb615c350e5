"""When the reflector watches again and when it lists: on virtual time, against a hub that refuses or breaks either."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from shared.domain.errors import HubError
from shared.kube.client import CONFIG_MAPS, MANIFEST_WORKS, WATCH_SECONDS, Resource, WatchBroken
from shared.kube.errors import ApiUnavailable, Forbidden, Gone
from shared.kube.reflector import (
    ASKED_LIST_SECONDS,
    FAILED_LIST_SECONDS,
    RELIST_SECONDS,
    Listed,
    Metadata,
    Reflector,
    Removed,
    Seen,
)
from simulation.hub import HubState, SimulatedKube
from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.run import simulate

LONGEST_PAUSE = 36.0 + 1.0
"""The longest backoff with its jitter, and a second for the requests."""


class MoodyKube(SimulatedKube):
    """A hub whose lists and watches fail as a test says; `lists` and `watches` are the seconds they were asked for."""

    list_error: HubError | None = None
    watch_error: HubError | None = None
    open_seconds: float | None = None
    """How long a watch is open before it breaks, or ends if `ends_well`; None: as the server likes."""
    ends_well: bool = False

    def __init__(self, state: HubState, line: Line) -> None:
        super().__init__(state, line)
        self.lists: list[float] = []
        self.watches: list[float] = []

    async def list_page(self, resource: Resource, **rest: Any) -> bytes:
        self.lists.append(now())
        if self.list_error:
            raise self.list_error
        return await super().list_page(resource, **rest)

    async def watch(
        self, resource: Resource, *, resource_version: str, namespace: str | None = None
    ) -> AsyncIterator[bytes]:
        self.watches.append(now())
        if self.watch_error:
            raise self.watch_error
        try:
            async with asyncio.timeout(self.open_seconds):
                async for line in super().watch(
                    resource, resource_version=resource_version, namespace=namespace
                ):
                    yield line
        except TimeoutError:
            if not self.ends_well:
                raise WatchBroken("the proxy closed it") from None


def now() -> float:
    return asyncio.get_running_loop().time()


class Note(msgspec.Struct):
    metadata: Metadata


class Follower:
    """Follows the ConfigMaps of a hub, as a watcher would."""

    def __init__(self, kube: MoodyKube, user: SimulatedKube) -> None:
        self.kube, self.user = kube, user
        self.stop = asyncio.Event()
        self.names: set[str] = set()
        self.lists = 0
        self.reflector = Reflector(kube, CONFIG_MAPS, Note, namespace="default")

    async def run(self) -> None:
        async for happening in self.reflector.run(self.stop):
            match happening:
                case Seen(object=note):
                    self.names.add(note.metadata.name)
                case Removed(object=note):
                    self.names.discard(note.metadata.name)
                case Listed(keys=keys):
                    self.lists += 1
                    self.names &= {name for _, name in keys}

    async def add(self, name: str) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        await self.user.create(CONFIG_MAPS, body, namespace="default")

    async def knows(self, *names: str, within: float) -> None:
        async with asyncio.timeout(within):
            while self.names != set(names):  # noqa: ASYNC110 - as an onlooker
                await asyncio.sleep(0.05)


def followed(case: Callable[[Follower, HubState], Awaitable[None]]) -> None:
    """Run a case beside a follower that has listed `first`."""

    async def main(loop: SimulationLoop) -> None:
        state = HubState(loop.chance("hub"), loop.time)
        lines = [Line(name, Weather(), loop.chance(name)) for name in ("watcher", "user")]
        follower = Follower(MoodyKube(state, lines[0]), SimulatedKube(state, lines[1]))
        await follower.add("first")
        task = asyncio.create_task(follower.run())
        await follower.knows("first", within=5)
        await asyncio.sleep(1.0)
        await case(follower, state)
        assert not task.done()
        task.cancel()

    for seed in range(3):
        simulate(main, seed=seed)


def gaps(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


@pytest.mark.parametrize(
    "error",
    [
        Forbidden("not yet"),
        ApiUnavailable("500"),
        WatchBroken("reset at once"),
        pytest.param(None, id="ends-at-once"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_watch_that_is_refused_is_no_storm_of_lists_and_heals(error: HubError | None) -> None:
    async def case(follower: Follower, state: HubState) -> None:
        kube = follower.kube
        kube.watch_error, kube.open_seconds, kube.ends_well = error, None if error else 0.1, error is None
        state.cut_watches()
        await asyncio.sleep(1.0)
        await follower.add("second")
        started = len(kube.watches)
        await asyncio.sleep(900.0)
        assert 2 <= follower.lists <= 9
        assert 20 <= len(kube.watches) - started <= 50
        assert follower.names == {"first", "second"}
        assert max(gaps(kube.watches)[-5:]) > 20.0

        kube.watch_error = kube.open_seconds = None
        await follower.add("third")
        await follower.knows("first", "second", "third", within=LONGEST_PAUSE)
        lists = follower.lists
        await asyncio.sleep(900.0)
        assert follower.lists <= lists + 1

    followed(case)


def test_pauses_between_watches_grow_and_begin_small_after_a_success() -> None:
    async def case(follower: Follower, state: HubState) -> None:
        kube = follower.kube
        for _ in range(2):
            kube.watch_error = ApiUnavailable("503")
            state.cut_watches()
            began = now()
            await asyncio.sleep(7.0)
            tries = [when for when in kube.watches if when >= began]
            assert len(tries) >= 3
            assert all(later > 1.3 * earlier for earlier, later in itertools.pairwise(gaps(tries)))
            assert tries[0] - began < 1.0
            kube.watch_error = None
            await asyncio.sleep(3 * WATCH_SECONDS)
        assert follower.lists == 1

    followed(case)


def test_a_watch_that_breaks_goes_on_where_it_was() -> None:
    async def case(follower: Follower, state: HubState) -> None:
        known = ["first"]
        for number in range(20):
            state.cut_watches()
            await follower.add(f"n{number}")
            known.append(f"n{number}")
            await follower.knows(*known, within=3)
        assert follower.lists == 1

    followed(case)


def test_a_proxy_that_ends_what_is_idle_delays_nothing() -> None:
    async def case(follower: Follower, _: HubState) -> None:
        follower.kube.open_seconds = 30.0
        await asyncio.sleep(600.0)
        assert max(gaps(follower.kube.watches)[3:]) < 32.0
        await follower.add("second")
        await follower.knows("first", "second", within=2)

    followed(case)


def test_what_is_gone_is_listed_at_once_and_then_with_pauses() -> None:
    async def case(follower: Follower, state: HubState) -> None:
        follower.kube.watch_error = Gone("too old")
        state.cut_watches()
        await follower.add("second")
        await follower.knows("first", "second", within=3)
        await asyncio.sleep(600.0)
        assert 10 <= follower.lists <= 35
        assert max(gaps(follower.kube.lists)) > 20.0

    followed(case)


def test_everything_is_listed_now_and_then() -> None:
    async def case(follower: Follower, _: HubState) -> None:
        follower.names = {"what is long gone"}
        await follower.knows("first", within=1.2 * RELIST_SECONDS + WATCH_SECONDS + 2)
        assert follower.lists == 2
        await asyncio.sleep(4 * RELIST_SECONDS)
        assert 4 <= follower.lists <= 7
        await follower.add("second")
        await follower.knows("first", "second", within=2)

    followed(case)


def test_whoever_lost_something_asks_for_a_list() -> None:
    async def case(follower: Follower, _: HubState) -> None:
        follower.names.clear()
        for _ in range(20):
            follower.reflector.list_again()
        await follower.knows("first", within=1.2 * ASKED_LIST_SECONDS + WATCH_SECONDS + 2)
        await asyncio.sleep(600.0)
        assert follower.lists == 2

    followed(case)


def test_a_list_that_fails_does_not_keep_the_watch_from_going_on() -> None:
    async def case(follower: Follower, _: HubState) -> None:
        kube = follower.kube
        kube.list_error = ApiUnavailable("overloaded", retry_after=300.0)
        follower.reflector.list_again()
        await asyncio.sleep(90.0)
        assert len(kube.lists) == 2
        for number in range(20):
            await follower.add(f"n{number}")
            await follower.knows("first", *(f"n{n}" for n in range(number + 1)), within=2)
            await asyncio.sleep(60.0)
        assert follower.lists == 1
        assert min(gaps(kube.lists)[1:]) >= 300.0
        kube.list_error = None
        await asyncio.sleep(300.0 + WATCH_SECONDS + FAILED_LIST_SECONDS)
        assert follower.lists == 2

    followed(case)


def test_silence_is_told_from_quiet() -> None:
    async def case(follower: Follower, state: HubState) -> None:
        assert Reflector(follower.kube, MANIFEST_WORKS, Note).silent_seconds == float("inf")
        for _ in range(60):
            await asyncio.sleep(10.0)
            assert follower.reflector.silent_seconds <= WATCH_SECONDS + 2
        follower.kube.watch_error = follower.kube.list_error = Forbidden("not any more")
        state.cut_watches()
        await asyncio.sleep(300.0)
        assert 300.0 <= follower.reflector.silent_seconds <= 300.0 + WATCH_SECONDS
        follower.kube.watch_error = follower.kube.list_error = None
        await asyncio.sleep(LONGEST_PAUSE + WATCH_SECONDS)
        assert follower.reflector.silent_seconds <= WATCH_SECONDS + 2

    followed(case)


def test_a_consumer_that_takes_its_time_is_not_the_servers_silence() -> None:
    async def main(loop: SimulationLoop) -> None:
        state = HubState(loop.chance("hub"), loop.time)
        kube = MoodyKube(state, Line("watcher", Weather(), loop.chance("watcher")))
        reflector = Reflector(kube, CONFIG_MAPS, Note, namespace="default")
        async with aclosing(reflector.run(asyncio.Event())) as happenings:
            assert isinstance(await anext(happenings), Listed)
            await asyncio.sleep(3600.0)
            assert reflector.silent_seconds == 0.0

    simulate(main, seed=1)

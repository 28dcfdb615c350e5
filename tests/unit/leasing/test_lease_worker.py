"""A worker on the simulation's store and clock: when it waits, how much it does at once, and what it survives."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

from structlog.testing import capture_logs

from shared.bus.port import Retry
from shared.domain.artifact import Artifact, ArtifactRequest, ArtifactState, Stage
from shared.domain.kernel import KernelVersion
from shared.domain.lease import MOST_ATTEMPTS, WORKER_DIED, Built, Lease
from shared.events.messages import Requested
from shared.leasing.worker import Holder, StageWorker
from shared.relay.backbone import Backbone
from shared.relay.relay import Relay
from shared.store import artifacts
from simulation.broker import Broker, BrokerWeather
from simulation.bus import SimulatedBus
from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.process import SimulatedProcess
from simulation.run import simulate
from simulation.store import SimulatedStore, SimulatedTransaction, StoreState
from simulation.store_rows import ARTIFACTS

LEASE_SECONDS = 30.0
DONE = Built(source=f"registry.example/module@sha256:{'1' * 64}", is_adopted=False)


class OddStore(SimulatedStore):
    """A store whose client fails in a way that nobody foresaw, while `is_odd`."""

    is_odd = False

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[SimulatedTransaction]:
        """Raises RuntimeError."""
        if self.is_odd:
            raise RuntimeError("the pool is in a state that it cannot be in")
        async with super().begin() as transaction:
            yield transaction


class Place:
    """A store with artifacts that wait, and workers on it."""

    def __init__(self, loop: SimulationLoop) -> None:
        self.loop = loop
        self.state = StoreState(clock=loop.time)
        self.store = OddStore(self.state, self.line("store"))
        self.stop = asyncio.Event()

    def line(self, to: str) -> Line:
        return Line("test", Weather(), random.Random(1), to=to)

    async def want(self, count: int) -> list[str]:
        """Artifacts that are due at once."""
        requests = [
            ArtifactRequest(
                target=f"registry.example/module:{number}",
                kernel=KernelVersion("6.1.0-13-amd64"),
                architecture="amd64",
            )
            for number in range(count)
        ]
        async with self.store.begin() as transaction:
            return [*await artifacts.want(transaction, requests)]

    def worker(
        self,
        perform: Callable[[Lease, Holder], Awaitable[Built]],
        *,
        concurrency: int = 1,
        store: SimulatedStore | None = None,
    ) -> StageWorker:
        used = store or self.store
        broker = Broker(clock=self.loop.time, chance=random.Random(1), weather=BrokerWeather())
        bus = SimulatedBus(broker, self.line("bus"))
        return StageWorker(
            Stage.BUILD,
            perform,
            backbone=Backbone(store=used, bus=bus, relay=Relay(used, bus)),
            owner="builder-0/1",
            lease_seconds=LEASE_SECONDS,
            concurrency=concurrency,
            stop=self.stop,
        )

    def artifact(self, key: str) -> Artifact:
        artifact = self.state.rows[ARTIFACTS, key]
        assert isinstance(artifact, Artifact)
        return artifact

    def states(self) -> Counter[ArtifactState]:
        return Counter(row.state for (table, _), row in self.state.rows.items() if table == ARTIFACTS)


async def build_for_long(_: Lease, __: Holder) -> Built:
    """Half an hour."""
    await asyncio.sleep(1800)
    return DONE


def test_while_the_database_is_away_a_slot_waits_instead_of_taking_the_next_message() -> None:
    async def main(loop: SimulationLoop) -> None:
        place = Place(loop)
        worker = place.worker(build_for_long)
        place.state.is_down = True
        asked = 0
        while loop.time() < 5:
            verdict = await worker.handle(Requested(stage=Stage.BUILD, artifact="a" * 64, announcement=1))
            assert isinstance(verdict, Retry)
            asked += 1
        assert 3 <= asked <= 10

        place.stop.set()
        began = loop.time()
        await worker.handle(Requested(stage=Stage.BUILD, artifact="a" * 64, announcement=1))
        assert loop.time() - began < 0.1, "a worker that is stopped does not wait"

    simulate(main, seed=1)


def test_without_the_bus_all_slots_are_used_and_none_idles_between_two_artifacts() -> None:
    async def main(loop: SimulationLoop) -> None:
        place = Place(loop)
        await place.want(20)
        began: list[float] = []

        async def build(_: Lease, __: Holder) -> Built:
            began.append(loop.time())
            await asyncio.sleep(60 + len(began))
            return DONE

        polling = asyncio.create_task(place.worker(build, concurrency=3).poll())
        await asyncio.sleep(40)
        assert place.states()[ArtifactState.BUILDING] == len(began) == 3
        await asyncio.sleep(6 * 70)
        assert place.states()[ArtifactState.READY] >= 18, "six rounds of three, and no pauses between them"
        assert max(Counter(began).values()) <= 3

        place.stop.set()
        await asyncio.wait_for(polling, 5)
        assert place.states() == {ArtifactState.READY: 18, ArtifactState.WANTED: 2}

    simulate(main, seed=1)


def test_a_long_build_keeps_no_other_slot_from_its_work() -> None:
    async def main(loop: SimulationLoop) -> None:
        place = Place(loop)
        await place.want(1)
        polling = asyncio.create_task(place.worker(build_for_long, concurrency=2).poll())
        await asyncio.sleep(40)
        assert place.states() == {ArtifactState.BUILDING: 1}
        (key,) = (key for table, key in place.state.rows if table == ARTIFACTS)
        other = replace(place.artifact(str(key)), key="b" * 64, state=ArtifactState.WANTED)
        place.state.rows[ARTIFACTS, "b" * 64] = replace(other, not_before=place.state.now())
        await asyncio.sleep(40)
        assert place.states() == {ArtifactState.BUILDING: 2}
        place.stop.set()
        await asyncio.wait_for(polling, 5)

    simulate(main, seed=1)


def test_a_stopped_worker_with_full_slots_ends_and_gives_everything_back() -> None:
    async def main(loop: SimulationLoop) -> None:
        place = Place(loop)
        keys = await place.want(3)
        worker = place.worker(build_for_long, concurrency=2)
        polling = asyncio.create_task(worker.poll())
        await asyncio.sleep(40)
        request = Requested(stage=Stage.BUILD, artifact=keys[2], announcement=1)
        handling = asyncio.create_task(worker.handle(request))
        await asyncio.sleep(100)
        assert place.states() == {ArtifactState.BUILDING: 2, ArtifactState.WANTED: 1}

        place.stop.set()
        await asyncio.wait_for(asyncio.gather(polling, handling), 5)
        assert place.states() == {ArtifactState.WANTED: 3}

    simulate(main, seed=1)


def test_an_artifact_that_cannot_be_handled_is_named_and_keeps_nobody_from_the_others() -> None:
    async def main(loop: SimulationLoop) -> None:
        place = Place(loop)
        broken, *others = await place.want(4)
        place.state.rows[ARTIFACTS, broken] = replace(place.artifact(broken), attempts=None)  # type: ignore[arg-type]

        async def build(_: Lease, __: Holder) -> Built:
            return DONE

        polling = asyncio.create_task(place.worker(build).poll())
        await asyncio.sleep(200)
        assert {place.artifact(key).state for key in others} == {ArtifactState.READY}
        assert not polling.done()
        await asyncio.sleep(900)
        place.stop.set()
        await asyncio.wait_for(polling, 15)
        errors = [line for line in logs if line["log_level"] == "error"]
        assert {line["artifact"] for line in errors} == {broken}
        assert 3 <= len(errors) <= 5, "looked at again now and then"

    with capture_logs() as logs:
        simulate(main, seed=1)


def test_a_heartbeat_survives_an_error_that_nobody_foresaw_and_tells_it() -> None:
    async def main(loop: SimulationLoop) -> None:
        place = Place(loop)
        (key,) = await place.want(1)

        async def build(_: Lease, __: Holder) -> Built:
            await asyncio.sleep(15)
            place.store.is_odd = True
            await asyncio.sleep(15)
            place.store.is_odd = False
            await asyncio.sleep(100)
            return DONE

        await place.worker(build).handle(Requested(stage=Stage.BUILD, artifact=key, announcement=0))
        assert place.artifact(key).state is ArtifactState.READY

    with capture_logs() as logs:
        simulate(main, seed=1)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["lease.not_extended"]
    assert "lease.lost" not in {line["event"] for line in logs}


def test_a_heartbeat_that_never_comes_back_ends_the_work_with_the_lease() -> None:
    async def main(loop: SimulationLoop) -> None:
        place = Place(loop)
        (key,) = await place.want(1)

        async def build(_: Lease, __: Holder) -> Built:
            place.store.is_odd = True
            await asyncio.sleep(1000)
            return DONE

        await place.worker(build).handle(Requested(stage=Stage.BUILD, artifact=key, announcement=0))
        assert loop.time() < LEASE_SECONDS + 2

    with capture_logs() as logs:
        simulate(main, seed=1)
    assert [line["event"] for line in logs][-1] == "lease.lost"


def test_what_kills_every_builder_waits_says_why_and_fails_at_last() -> None:
    async def main(loop: SimulationLoop) -> None:
        place = Place(loop)
        (key,) = await place.want(1)
        began: list[float] = []
        lives: list[SimulatedProcess] = []

        def live() -> None:
            process = SimulatedProcess(f"builder#{len(lives)}", loop)
            line = Line(process.name, Weather(), random.Random(len(lives)), to="store")
            process.lines.append(line)
            lives.append(process)

            async def build(_: Lease, __: Holder) -> Built:
                began.append(loop.time())
                await asyncio.sleep(5)
                process.kill()
                await asyncio.sleep(1000)
                return DONE

            store = SimulatedStore(place.state, line)
            process.start(lambda: place.worker(build, store=store).poll())

        live()
        shown = {}
        while place.artifact(key).state is not ArtifactState.FAILED:
            await asyncio.sleep(1)
            if not lives[-1].is_alive:
                live()
            artifact = place.artifact(key)
            shown[artifact.attempts] = (artifact.reason, artifact.state)
            assert loop.time() < 4 * 3600
        pauses = [later - sooner for sooner, later in pairwise(began)]
        assert len(began) == MOST_ATTEMPTS
        assert max(pauses[:2]) < 60 < 150 < min(pauses[8:])
        assert [shown[1][0], shown[2][0], shown[3][0]] == [None, None, WORKER_DIED]
        message = place.artifact(key).message
        assert message is not None
        assert "memory limit" in message
        assert "kmmhub retry" in message
        for process in lives:
            process.kill()

    simulate(main, seed=1)

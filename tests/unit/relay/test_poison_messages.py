"""Messages that cannot be handled end in the store, with their cause; no other message suffers from them."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from shared.bus.port import Delivery, Done, Retry, Verdict
from shared.bus.topology import BUILDS, CHANGES
from shared.domain.artifact import ArtifactKey, Stage
from shared.domain.backoff import retry_delay
from shared.domain.errors import MAX_MESSAGE_CHARACTERS, PermanentError, TransientError
from shared.events.messages import Changed, Kind, Requested, decode_changed, decode_requested, encode
from shared.relay.dead_letters import APART_DELIVERIES, MOST_DELIVERIES, DeadLetters, cause_of
from shared.store.port import DeadLetter
from simulation.broker import Broker, BrokerWeather
from simulation.bus import SimulatedBus
from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.run import simulate
from simulation.store import SimulatedStore, StoreState

REQUEST = Requested(stage=Stage.BUILD, artifact=ArtifactKey("a" * 64), announcement=0)


@dataclass
class Bench:
    """A store in memory, and a handler whose verdict a test chooses."""

    loop: SimulationLoop
    state: StoreState
    weather: Weather
    verdict: Callable[[Any], Verdict] = lambda _: Done()
    seen: list[Any] = field(default_factory=list)

    def store(self) -> SimulatedStore:
        return SimulatedStore(self.state, Line("worker", self.weather, self.loop.chance("store")))

    async def handle(self, message: Any) -> Verdict:
        self.seen.append(message)
        return self.verdict(message)

    async def letters(self) -> list[DeadLetter]:
        async with self.store().begin() as transaction:
            return await transaction.read_dead_letters()

    def requests(self) -> Callable[[Delivery], Awaitable[Verdict]]:
        return DeadLetters(self.store(), BUILDS, decode_requested, pause=pause).guarded(self.handle)

    def changes(self) -> Callable[[Sequence[Delivery]], Awaitable[Sequence[Verdict]]]:
        return DeadLetters(self.store(), CHANGES, decode_changed, pause=pause).guarded_batch(self.handle)


def pause(deliveries: int) -> float:
    return retry_delay(deliveries, jitter=0)


def run(case: Callable[[Bench], Coroutine[Any, Any, None]], *, seed: int = 1) -> None:
    async def main(loop: SimulationLoop) -> None:
        await case(Bench(loop, StoreState(clock=loop.time), Weather()))

    simulate(main, seed=seed)


def raising(error: Exception, *, on: str | None = None) -> Callable[[Any], Verdict]:
    """A handler's body that raises: always, or only if a change of that name is among what it gets."""

    def verdict(message: Any) -> Verdict:
        if on is None or any(change.name == on for change in message):
            raise error
        return Done()

    return verdict


def request(deliveries: int = 1) -> Delivery:
    return Delivery(subject=REQUEST.subject, payload=encode(REQUEST), deliveries=deliveries)


def change(name: str, deliveries: int = 1) -> Delivery:
    message = Changed(kind=Kind.CLUSTER, name=name)
    return Delivery(subject=message.subject, payload=encode(message), deliveries=deliveries)


def names(batches: Collection[Collection[Changed]]) -> list[list[str]]:
    return [[one.name for one in batch] for batch in batches]


def buried(queue: str) -> float:
    return REGISTRY.get_sample_value("kmmhub_dead_letters_total", {"queue": queue}) or 0.0


GARBAGE = [b"", b"garbage", b"\xff\0\xfe", b"{}", b"x" * 60_000, encode(REQUEST).replace(b".v1", b".v2")]


@pytest.mark.parametrize("payload", GARBAGE, ids=lambda payload: repr(payload[:12]))
def test_what_cannot_be_read_is_buried_at_once(payload: bytes) -> None:
    async def case(bench: Bench) -> None:
        before = buried(BUILDS.stream)
        with capture_logs() as lines:
            verdict = await bench.requests()(Delivery(subject="kmm.build.x", payload=payload, deliveries=1))
        assert verdict == Done()
        assert bench.seen == []
        (letter,) = await bench.letters()
        assert (letter.queue, letter.subject, letter.payload) == (BUILDS.stream, "kmm.build.x", payload)
        assert letter.cause.startswith("UnreadableMessage: a message does not follow its schema: ")
        assert letter.deliveries == 1
        assert buried(BUILDS.stream) == before + 1
        (line,) = lines
        assert line == {
            "event": "letter.buried",
            "log_level": "warning",
            "id": letter.id,
            "queue": BUILDS.stream,
            "subject": "kmm.build.x",
            "cause": letter.cause,
        }

    run(case)


def test_what_can_be_read_reaches_the_handler_and_its_verdict_the_bus() -> None:
    async def case(bench: Bench) -> None:
        for verdict in (Done(), Retry(seconds=1.5)):
            bench.verdict = lambda _, verdict=verdict: verdict  # type: ignore[misc]
            assert await bench.requests()(request(deliveries=MOST_DELIVERIES + 1)) == verdict
        assert bench.seen == [REQUEST, REQUEST]
        assert await bench.letters() == []

    run(case)


def test_a_handler_that_raises_gets_its_message_again_ever_later_and_at_last_not_at_all() -> None:
    async def case(bench: Bench) -> None:
        bench.verdict = raising(KeyError("odd"))
        handler = bench.requests()
        verdicts = [await handler(request(number)) for number in range(1, MOST_DELIVERIES)]
        assert verdicts == [Retry(seconds=2.0**number) for number in range(1, MOST_DELIVERIES)]
        assert await bench.letters() == []
        assert await handler(request(MOST_DELIVERIES)) == Done()
        (letter,) = await bench.letters()
        assert (letter.cause, letter.deliveries, letter.payload) == ("KeyError: 'odd'", 8, encode(REQUEST))

    run(case)


def test_a_fault_of_the_outside_buries_nothing() -> None:
    async def case(bench: Bench) -> None:
        bench.verdict = raising(TransientError("the registry is away"))
        verdict = await bench.requests()(request(1000))
        assert isinstance(verdict, Retry)
        assert await bench.changes()([change("a", 1000), change("b", 1000)]) == [verdict, verdict]
        assert await bench.letters() == []

    run(case)


def test_a_permanent_error_of_the_handler_is_tried_as_often_as_any() -> None:
    async def case(bench: Bench) -> None:
        bench.verdict = raising(PermanentError("the API server says no", reason="Refused"))
        assert isinstance(await bench.requests()(request(7)), Retry)
        assert await bench.requests()(request(8)) == Done()
        (letter,) = await bench.letters()
        assert letter.cause == "Refused: the API server says no"

    run(case)


def test_a_store_that_is_away_loses_nothing() -> None:
    async def case(bench: Bench) -> None:
        handler, garbage = bench.requests(), Delivery(subject="kmm.build.x", payload=b"?", deliveries=3)
        before = buried(BUILDS.stream)
        bench.state.is_down = True
        assert await handler(garbage) == Retry(seconds=8.0)
        bench.verdict = raising(ValueError("odd"))
        assert isinstance(await handler(request(20)), Retry)
        bench.state.is_down = False
        assert await bench.letters() == []
        assert buried(BUILDS.stream) == before
        assert await handler(replace(garbage, deliveries=4)) == Done()
        assert [letter.deliveries for letter in await bench.letters()] == [4]

    run(case)


def test_a_message_whose_acknowledgement_was_lost_is_buried_once() -> None:
    async def case(bench: Bench) -> None:
        for deliveries in (1, 2):
            garbage = Delivery(subject="kmm.build.x", payload=b"?", deliveries=deliveries)
            assert await bench.requests()(garbage) == Done()
        assert [letter.deliveries for letter in await bench.letters()] == [2]

    run(case)


def test_the_readable_messages_of_a_batch_are_handled_at_once() -> None:
    async def case(bench: Bench) -> None:
        garbage = Delivery(subject="kmm.changed.x.y", payload=b"?", deliveries=1)
        nul = b'{"kind":"cluster","name":"\\u0000"}'
        bench.verdict = lambda _: Retry(seconds=9)
        verdicts = await bench.changes()(
            [change("a"), garbage, change("b"), replace(garbage, payload=nul), change("c")]
        )
        assert verdicts == [Retry(seconds=9), Done(), Retry(seconds=9), Done(), Retry(seconds=9)]
        assert names(bench.seen) == [["a", "b", "c"]]
        assert [letter.payload for letter in await bench.letters()] == [b"?", nul]

    run(case)


def test_a_batch_of_garbage_reaches_no_handler() -> None:
    async def case(bench: Bench) -> None:
        garbage = [Delivery(subject="kmm.changed.x", payload=bytes([n]), deliveries=1) for n in range(20)]
        assert await bench.changes()(garbage) == [Done()] * 20
        assert bench.seen == []
        assert len(await bench.letters()) == 20

    run(case)


def test_a_batch_that_fails_again_is_taken_apart() -> None:
    async def case(bench: Bench) -> None:
        handler = bench.changes()
        bench.verdict = raising(ValueError("odd"), on="b")
        for deliveries in range(1, APART_DELIVERIES):
            batch = [change(name, deliveries) for name in "abc"]
            assert await handler(batch) == [Retry(seconds=2.0**deliveries)] * 3
        assert names(bench.seen) == [["a", "b", "c"]] * (APART_DELIVERIES - 1)
        bench.seen.clear()
        batch = [change("a", 3), change("b", 3), change("new", 1), change("c", 8)]
        assert await handler(batch) == [Done(), Retry(seconds=8.0), Retry(seconds=2.0), Done()]
        assert names(bench.seen) == [["a", "b", "new", "c"], ["a"], ["b"], ["c"]]
        assert await bench.letters() == []

    run(case)


def test_only_the_poison_of_a_batch_is_buried() -> None:
    async def case(bench: Bench) -> None:
        bench.verdict = raising(ValueError("odd"), on="b")
        batch = [change(name, MOST_DELIVERIES) for name in "abc"]
        assert await bench.changes()(batch) == [Done()] * 3
        (letter,) = await bench.letters()
        assert (letter.payload, letter.cause) == (batch[1].payload, "ValueError: odd")

    run(case)


def test_a_poison_alone_is_not_handled_twice() -> None:
    async def case(bench: Bench) -> None:
        bench.verdict = raising(ValueError("odd"), on="b")
        assert await bench.changes()([change("b", 5)]) == [Retry(seconds=32.0)]
        assert names(bench.seen) == [["b"]]

    run(case)


# --------------------------------------------------------------------------------- with the pull loop, in its own time


@pytest.mark.parametrize("seed", range(5))
def test_one_poison_among_many_on_the_bus(seed: int) -> None:
    """The production's pull loop and pauses: the others are handled within seconds, the poison ends within minutes."""

    async def main(loop: SimulationLoop) -> None:
        bench = Bench(loop, StoreState(clock=loop.time), Weather())
        broker = Broker(clock=loop.time, chance=loop.chance("broker"))
        broker.ensure()
        bus = SimulatedBus(broker, Line("worker", Weather(), loop.chance("bus")))
        times: dict[str, list[float]] = {}
        attempts: list[float] = []

        async def handle(changes: Sequence[Changed]) -> Verdict:
            if any(one.name == "poison" for one in changes):
                attempts.append(loop.time()) if len(changes) == 1 else None
                raise ValueError("odd")
            for one in changes:
                times.setdefault(one.name, []).append(loop.time())
            return Done()

        handler = DeadLetters(bench.store(), CHANGES, decode_changed).guarded_batch(handle)
        stop = asyncio.Event()
        task = asyncio.create_task(bus.consume_batches(CHANGES, handler, batch=500, stop=stop))
        ordinary = [f"c{number}" for number in range(30)]
        for name in [*ordinary[:15], "poison", *ordinary[15:]]:
            await bus.publish(f"kmm.changed.cluster.{name}", change(name).payload, message_id=name)
        await asyncio.sleep(400)
        stop.set()
        await task
        assert set(times) == set(ordinary)
        assert max(itertools.chain(*times.values())) < 20
        (letter,) = await bench.letters()
        assert (letter.subject, letter.deliveries) == ("kmm.changed.cluster.poison", MOST_DELIVERIES)
        pauses = [after - before for before, after in itertools.pairwise(attempts)]
        assert 100 < attempts[-1] < 300
        assert pauses[-1] > 4 * pauses[0]

    simulate(main, seed=seed)


@pytest.mark.parametrize("seed", range(10))
def test_in_bad_weather_every_message_is_handled_or_buried(seed: int) -> None:
    """Lost requests, answers and acknowledgements, duplicates, a store that goes: nothing is lost, nothing is both."""

    async def main(loop: SimulationLoop) -> None:
        bench = Bench(loop, StoreState(clock=loop.time), Weather(loss=0.1, lost_answers=0.1))
        weather = BrokerWeather(duplicates=0.1, disorder=0.5)
        broker = Broker(clock=loop.time, chance=loop.chance("broker"), weather=weather)
        broker.ensure()
        line = Line("worker", Weather(loss=0.05, lost_answers=0.1), loop.chance("bus"))
        bus = SimulatedBus(broker, line)
        handled: Counter[str] = Counter()

        async def handle(message: Requested) -> Verdict:
            if message.artifact.startswith("f"):
                raise ValueError("odd")
            handled[message.artifact] += 1
            return Done()

        handler = DeadLetters(bench.store(), BUILDS, decode_requested).guarded(handle)
        stop = asyncio.Event()
        task = asyncio.create_task(bus.consume(BUILDS, handler, concurrency=3, stop=stop))
        payloads = [
            encode(REQUEST.model_copy(update={"artifact": ArtifactKey(f"{digit:x}" * 64)}))
            for digit in range(16)
        ]
        garbage = [b"?", b"!", b"\0"]
        for number, payload in enumerate([*payloads, *garbage]):
            broker.publish(f"kmm.build.{number}", payload, str(number))
        for is_down in (False, True, False):
            bench.state.is_down = is_down
            await asyncio.sleep(30)
        await asyncio.sleep(1500)
        stop.set()
        await task
        assert {key[0] for key in handled} == set("0123456789abcde")
        bench.weather.loss = bench.weather.lost_answers = 0.0
        dead = [letter.payload for letter in await bench.letters()]
        assert Counter(dead) == Counter([payloads[15], *garbage])
        assert broker.payloads(BUILDS.stream) == []

    simulate(main, seed=seed)


# ------------------------------------------------------------------------------------------------------------- causes


def refused_input() -> Exception:
    with pytest.raises(ValueError, match="hunter2") as caught:
        TypeAdapter(dict[str, int]).validate_python({"a": "hunter2"})
    return caught.value


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("odd"), "ValueError: odd"),
        (ValueError(), "ValueError"),
        (ValueError("a\0b\ud800"), "ValueError: a\ufffdb\ufffd"),
        (PermanentError("no", reason="Refused"), "Refused: no"),
        (
            OSError("cannot reach nats://user:hunter2@host:4222, postgresql://u:hunter2@[::1]/d"),
            "OSError: cannot reach nats://…@host:4222, postgresql://…@[::1]/d",
        ),
        (PermanentError("see https://hunter2@host/a@b"), "Error: see https://…@host/a@b"),
        (OSError("see https://host/a@b"), "OSError: see https://host/a@b"),
        (
            refused_input(),
            "ValidationError: a: Input should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_a_cause_is_the_error_in_words_without_secrets(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


def test_a_cause_has_an_end() -> None:
    assert len(cause_of(ValueError("x" * 100_000))) == MAX_MESSAGE_CHARACTERS
    assert len(cause_of(PermanentError("x" * 100_000))) == MAX_MESSAGE_CHARACTERS

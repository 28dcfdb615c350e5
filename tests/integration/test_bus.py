"""The bus on a real NATS server: verdicts, redelivery, and what a server that is wiped or killed costs."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial

import nats
import pytest
import structlog
from broker import Broker
from nats.js.api import RetentionPolicy
from running_services import eventually

from localhub.server import free_port
from shared.bus import jetstream
from shared.bus.jetstream import Bus, BusUnavailable, Done, Handler, Retry, Verdict
from shared.bus.port import Delivery
from shared.bus.streams import Action, Administrator, Result, open_administrator
from shared.bus.topology import BUILDS, CHANGES, QUEUES, Queue

pytestmark = pytest.mark.integration

numbers = itertools.count(1)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    running = Broker(tmp_path_factory.mktemp("nats"))
    running.start()
    yield running
    running.kill()


@pytest.fixture
async def bus(broker: Broker) -> AsyncIterator[Bus]:
    opened = await jetstream.connect(broker.url, name="test")
    yield opened
    await opened.close()


@pytest.fixture
async def queue(broker: Broker) -> AsyncIterator[Queue]:
    """A queue of the test's own whose messages come back after a second without a sign of life."""
    number = next(numbers)
    made = Queue(
        stream=f"TEST_{number}",
        consumer="worker",
        subjects=(f"test{number}.>",),
        retention=RetentionPolicy.WORK_QUEUE,
        max_age=3600,
        ack_wait=1.0,
    )
    await ensure(broker, made)
    yield made
    async with administrator(broker) as context:
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await context.delete_stream(made.stream)


@contextlib.asynccontextmanager
async def administrator(broker: Broker) -> AsyncIterator[nats.js.JetStreamContext]:
    client = await nats.connect(broker.url)
    try:
        yield client.jetstream()
    finally:
        await client.close()


async def ensure(broker: Broker, *queues: Queue) -> list[Result]:
    opened = await open_administrator(broker.url)
    try:
        return await opened.ensure(queues)
    finally:
        await opened.close()


@contextlib.asynccontextmanager
async def watching(broker: Broker, queue: Queue) -> AsyncIterator[Administrator]:
    """Whoever makes the stream again, beside the test."""
    stop = asyncio.Event()
    opened = await open_administrator(broker.url)
    task = asyncio.create_task(opened.watch(stop, [queue]))
    try:
        yield opened
    finally:
        stop.set()
        await asyncio.wait_for(task, 15)
        await opened.close()


@contextlib.asynccontextmanager
async def consuming(bus: Bus, queue: Queue, handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
    """A worker beside the test, which is drained at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(bus.consume(queue, handler, concurrency=concurrency, stop=stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 15)


class Inbox:
    """A handler that notes what it gets; `then` gives the verdict."""

    def __init__(self, then: Callable[[bytes], Awaitable[Verdict]] | None = None) -> None:
        self.seen: list[bytes] = []
        self._then = then

    async def __call__(self, delivery: Delivery) -> Verdict:
        self.seen.append(delivery.payload)
        return Done() if self._then is None else await self._then(delivery.payload)

    async def has(self, *expected: bytes, seconds: float = 15) -> None:
        async def look() -> bool:
            return Counter(self.seen) == Counter(expected)

        await eventually(look, what=f"messages {expected}", seconds=seconds)


async def publish(bus: Bus, queue: Queue, *payloads: bytes) -> None:
    subject = queue.subjects[0].replace(">", "x")
    for payload in payloads:
        await bus.publish(subject, payload, message_id=payload.decode())


async def test_messages_are_handled_once_and_leave_a_work_queue(
    broker: Broker, bus: Bus, queue: Queue
) -> None:
    inbox = Inbox()
    async with consuming(bus, queue, inbox):
        await publish(bus, queue, b"a", b"b", b"c")
        await inbox.has(b"a", b"b", b"c")
        await asyncio.sleep(1.5)
    assert inbox.seen == [b"a", b"b", b"c"]
    async with administrator(broker) as context:
        assert (await context.stream_info(queue.stream)).state.messages == 0


async def test_the_same_message_id_is_stored_once(bus: Bus, queue: Queue) -> None:
    inbox = Inbox()
    async with consuming(bus, queue, inbox):
        await publish(bus, queue, b"a", b"a")
        await inbox.has(b"a")
        await publish(bus, queue, b"a", b"b")
        await inbox.has(b"a", b"b")


async def test_a_handler_that_fails_gets_its_message_again(bus: Bus, queue: Queue) -> None:
    async def fail_first(_: bytes) -> Verdict:
        if len(inbox.seen) == 1:
            raise ValueError("not today")
        return Done()

    inbox = Inbox(fail_first)
    async with consuming(bus, queue, inbox):
        await publish(bus, queue, b"a")
        await inbox.has(b"a", b"a")


async def test_retry_delivers_again_after_the_pause(bus: Bus, queue: Queue) -> None:
    times = []

    async def later(_: bytes) -> Verdict:
        times.append(time.monotonic())
        return Retry(seconds=0.5) if len(times) < 3 else Done()

    inbox = Inbox(later)
    async with consuming(bus, queue, inbox):
        await publish(bus, queue, b"a")
        await inbox.has(b"a", b"a", b"a")
    assert all(0.45 < after - before < 2 for before, after in itertools.pairwise(times))


async def slow_done(_: bytes) -> Verdict:
    await asyncio.sleep(0.02)
    return Done()


async def delete(broker: Broker, queue: Queue, what: str) -> None:
    async with administrator(broker) as context:
        if what == "stream":
            await context.delete_stream(queue.stream)
        else:
            await context.delete_consumer(queue.stream, queue.consumer)


@pytest.mark.parametrize("what", ["stream", "consumer"])
async def test_what_somebody_deletes_is_made_again(broker: Broker, bus: Bus, queue: Queue, what: str) -> None:
    inbox = Inbox()
    async with watching(broker, queue), consuming(bus, queue, inbox):
        await publish(bus, queue, b"a")
        await inbox.has(b"a")
        await delete(broker, queue, what)
        await eventually(partial(publish_until_taken, bus, queue, b"b"), what="a message is taken again")
        await inbox.has(b"a", b"b")
        assert bus.has_streams


@pytest.mark.parametrize("what", ["stream", "consumer"])
async def test_a_worker_waits_for_what_is_missing_and_says_so_once(
    broker: Broker, bus: Bus, queue: Queue, what: str
) -> None:
    await delete(broker, queue, what)
    inbox = Inbox()

    async def is_missed() -> bool:
        return not bus.has_streams

    with structlog.testing.capture_logs() as lines:
        async with consuming(bus, queue, inbox):
            await eventually(is_missed, what="the worker misses it")
            await asyncio.sleep(2.5)
            made = await ensure(broker, queue)
            assert {one.action for one in made if (one.consumer is None) == (what == "stream")} == {
                Action.CREATED
            }
            await publish(bus, queue, b"a")
            await inbox.has(b"a")
    assert bus.has_streams
    told = [line for line in lines if line["log_level"] in {"warning", "error"}]
    assert [(line["event"], line["name"]) for line in told] == [("bus.stream_missing", queue.stream)]
    assert "kmmhub streams" in told[0]["what_to_do"]


async def publish_until_taken(bus: Bus, queue: Queue, payload: bytes) -> bool:
    try:
        await publish(bus, queue, payload)
    except BusUnavailable:
        return False
    return True


@pytest.mark.parametrize("is_wiped", [False, True])
async def test_work_goes_on_after_nats_was_killed(
    broker: Broker, bus: Bus, queue: Queue, is_wiped: bool
) -> None:
    inbox = Inbox()
    async with watching(broker, queue), consuming(bus, queue, inbox):
        await publish(bus, queue, b"a")
        await inbox.has(b"a")
        restarting = asyncio.create_task(broker.restart(is_wiped=is_wiped, pause=1.5))
        await asyncio.sleep(0.7)
        assert not bus.is_connected
        again = partial(publish_until_taken, bus, queue, b"b")
        await eventually(again, what="a message is taken again", seconds=30)
        await restarting
        await inbox.has(b"a", b"b")
    assert bus.is_connected


async def test_closing_without_a_server_ends(broker: Broker) -> None:
    bus = await jetstream.connect(broker.url, name="orphan")
    broker.kill()
    await asyncio.sleep(0.3)
    try:
        await asyncio.wait_for(bus.close(), 10)
    finally:
        broker.start()


async def test_a_message_that_was_taken_survives_kill_9(broker: Broker, bus: Bus, queue: Queue) -> None:
    await publish(bus, queue, b"a", b"b")
    await broker.restart()
    inbox = Inbox()
    async with consuming(bus, queue, inbox):
        await inbox.has(b"a", b"b")


async def test_the_topology_is_made_and_brought_to_its_configuration(broker: Broker, bus: Bus) -> None:
    assert {one.action for one in await ensure(broker, *QUEUES)} == {Action.CREATED}
    assert {one.action for one in await ensure(broker, *QUEUES)} == {Action.UNCHANGED}
    edited = replace(CHANGES, max_age=3600, ack_wait=90)
    assert {one.action for one in await ensure(broker, edited)} == {Action.CHANGED}
    again = [one.action for one in await ensure(broker, *QUEUES)]
    assert again == [Action.CHANGED, Action.CHANGED, *(4 * [Action.UNCHANGED])]

    async with administrator(broker) as context:
        for queue in QUEUES:
            stream = (await context.stream_info(queue.stream)).config
            consumer = (await context.consumer_info(queue.stream, queue.consumer)).config
            assert (stream.max_age, stream.retention) == (queue.max_age, queue.retention)
            assert (consumer.ack_wait, consumer.max_deliver) == (queue.ack_wait, -1)
    await publish(bus, BUILDS, b"x")


async def test_a_stream_of_an_older_release_is_replaced_once(broker: Broker) -> None:
    older = replace(CHANGES, retention=RetentionPolicy.LIMITS)
    async with administrator(broker) as context:
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await context.delete_stream(older.stream)
        await ensure(broker, older)
        with pytest.raises(nats.js.errors.ServerError, match="to/from workqueue"):
            await context.update_stream(CHANGES.stream_config())

        with structlog.testing.capture_logs() as lines:
            replaced = [one.action for one in await ensure(broker, *QUEUES)][:2]
        assert replaced == [Action.REPLACED, Action.CREATED]
        assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["streams.replacing"]
        assert {one.action for one in await ensure(broker, *QUEUES)} == {Action.UNCHANGED}
        config = (await context.stream_info(CHANGES.stream)).config
        assert config.retention == RetentionPolicy.WORK_QUEUE


async def test_a_subject_without_a_stream_is_an_error(bus: Bus) -> None:
    with pytest.raises(BusUnavailable, match="nowhere"):
        await bus.publish("nowhere.x", b"", message_id="1")


async def test_a_server_that_is_away_is_an_error_at_once() -> None:
    with pytest.raises(BusUnavailable, match="NATS_URL"):
        await asyncio.wait_for(jetstream.connect(f"nats://127.0.0.1:{free_port()}", name="test"), 15)

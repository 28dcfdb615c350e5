"""A bus to test, real or simulated: the same cases run on both, in real or virtual time."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import nats
from broker import Broker
from nats.js.api import RetentionPolicy

from shared.bus import jetstream
from shared.bus.port import Delivery, Done, Handler, MessageBus, Subscription, Verdict
from shared.bus.streams import open_administrator
from shared.bus.topology import Queue
from simulation.broker import Broker as SimulatedBroker
from simulation.bus import SimulatedBus
from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.run import simulate

ACK_WAIT = 1.0
numbers = itertools.count(1)


class TestedBus(MessageBus, Protocol):
    """What the services use, and the level below it."""

    async def subscribe(self, queue: Queue) -> Subscription: ...


class Bench(Protocol):
    """A server of the test's own, which may do to it what it likes."""

    async def connect(self) -> TestedBus: ...
    async def ensure(self, queue: Queue) -> None: ...
    async def delete(self, queue: Queue, *, only_consumer: bool) -> None: ...
    async def count(self, queue: Queue) -> int: ...
    async def stop(self) -> None: ...
    async def start(self, *, is_wiped: bool = False) -> None: ...


@dataclass
class RealBench:
    """A real nats-server."""

    broker: Broker
    stack: AsyncExitStack

    async def connect(self) -> TestedBus:
        bus = await jetstream.connect(self.broker.url, name="test")
        self.stack.push_async_callback(bus.close)
        return bus

    async def ensure(self, queue: Queue) -> None:
        administrator = await open_administrator(self.broker.url)
        try:
            await administrator.ensure([queue])
        finally:
            await administrator.close()

    async def delete(self, queue: Queue, *, only_consumer: bool) -> None:
        async with self._context() as context:
            if only_consumer:
                await context.delete_consumer(queue.stream, queue.consumer)
            else:
                await context.delete_stream(queue.stream)

    async def count(self, queue: Queue) -> int:
        async with self._context() as context:
            return (await context.stream_info(queue.stream)).state.messages

    async def stop(self) -> None:
        self.broker.kill()

    async def start(self, *, is_wiped: bool = False) -> None:
        await self.broker.restart(is_wiped=is_wiped, pause=0)

    @asynccontextmanager
    async def _context(self) -> AsyncIterator[nats.js.JetStreamContext]:
        client = await nats.connect(self.broker.url)
        try:
            yield client.jetstream()
        finally:
            await client.close()


@dataclass
class SimulatedBench:
    """A simulated server with calm lines to it."""

    loop: SimulationLoop
    broker: SimulatedBroker
    lines: Any = field(default_factory=lambda: itertools.count(1))

    async def connect(self) -> TestedBus:
        name = f"line {next(self.lines)}"
        return SimulatedBus(self.broker, Line(name, Weather(), self.loop.chance(name)))

    async def ensure(self, queue: Queue) -> None:
        self.broker.ensure(queue)

    async def delete(self, queue: Queue, *, only_consumer: bool) -> None:
        if only_consumer:
            self.broker.delete_consumer(queue.stream)
        else:
            self.broker.delete_stream(queue.stream)

    async def count(self, queue: Queue) -> int:
        return len(self.broker.payloads(queue.stream))

    async def stop(self) -> None:
        self.broker.stop()

    async def start(self, *, is_wiped: bool = False) -> None:
        self.broker.start(is_wiped=is_wiped)


Case = Callable[[Bench], Coroutine[Any, Any, None]]
Run = Callable[[Case], None]


def run_really(broker: Broker) -> Run:
    """Runs a case on a real server."""

    async def main(case: Case) -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(60):
            await case(RealBench(broker, stack))

    return lambda case: asyncio.run(main(case))


def run_simulated(seed: int) -> Run:
    """Runs a case on a simulated server."""

    async def main(loop: SimulationLoop, case: Case) -> None:
        async with asyncio.timeout(600):
            await case(SimulatedBench(loop, SimulatedBroker(clock=loop.time, chance=loop.chance("broker"))))

    return lambda case: simulate(lambda loop: main(loop, case), seed=seed)


def new_queue(retention: RetentionPolicy = RetentionPolicy.WORK_QUEUE) -> Queue:
    """A queue of the test's own whose messages come back after a second without a sign of life."""
    number = next(numbers)
    return Queue(
        stream=f"TEST_{number}",
        consumer="worker",
        subjects=(f"test{number}.>",),
        retention=retention,
        max_age=3600,
        ack_wait=ACK_WAIT,
    )


async def publish(bus: MessageBus, queue: Queue, *payloads: bytes) -> None:
    """Publish one after the other; the payload is the message id."""
    subject = queue.subjects[0].replace(">", "x")
    for payload in payloads:
        await bus.publish(subject, payload, message_id=payload[:20].decode())


async def eventually(look: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = 20) -> None:
    """Wait until `look` says yes, in the loop's time."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    while True:
        found = look()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert clock() < deadline, f"not within {seconds} seconds: {what}"
        await asyncio.sleep(0.02)


@dataclass
class Inbox:
    """A handler that notes what it gets; `then` gives the verdict."""

    then: Callable[[bytes], Awaitable[Verdict]] | None = None
    seen: list[bytes] = field(default_factory=list)

    async def __call__(self, delivery: Delivery) -> Verdict:
        self.seen.append(delivery.payload)
        return Done() if self.then is None else await self.then(delivery.payload)

    async def has(self, *expected: bytes, seconds: float = 20) -> None:
        await eventually(
            lambda: Counter(self.seen) == Counter(expected), f"{expected} in {self.seen}", seconds
        )


@contextlib.asynccontextmanager
async def consuming(
    bus: MessageBus, queue: Queue, handler: Handler, *, concurrency: int = 1
) -> AsyncIterator[None]:
    """A worker beside the test, which is drained at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(bus.consume(queue, handler, concurrency=concurrency, stop=stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 15)

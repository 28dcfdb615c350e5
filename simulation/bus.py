"""The bus in the simulation: production's own pull loop on a broker in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shared.bus import consuming
from shared.bus.port import BatchHandler, BusUnavailable, Delivery, Handler, StreamMissing
from shared.bus.topology import Queue
from shared.runtime.pause import pause
from simulation.broker import Broker, BrokerWeather
from simulation.line import Line, LineBroken

__all__ = ["Broker", "BrokerWeather", "SimulatedBus", "SimulatedMessage", "SimulatedSubscription"]

ANSWER_SECONDS = 5.0
"""How long a client waits for an answer that was lost (jetstream.PUBLISH_TIMEOUT_SECONDS)."""

MOMENT_SECONDS = 0.001
"""Shortest wait for something that is due: time is a float, and the sum of a moment and a difference may miss it."""


class SimulatedBus:
    """One process's connection to a broker, as `shared.bus.port.MessageBus`; `subscribe` is as `Subscribe`."""

    def __init__(self, broker: Broker, line: Line) -> None:
        self.broker = broker
        self.line = line
        self.is_allowed = True
        self._lacking: set[str] = set()

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands now."""
        return not self.broker.is_stopped and not self.line.is_cut

    @property
    def has_streams(self) -> bool:
        """Whether the streams that we last published to and fetched from were there."""
        return not self._lacking

    async def publish(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """As `MessageBus.publish`."""
        family = ".".join(subject.split(".")[:2])
        try:
            with self.noting(family):
                async with self.line.crossing(f"message on {subject}"):
                    self.broker.publish(subject, payload, message_id)
        except LineBroken as error:
            await asyncio.sleep(ANSWER_SECONDS)
            raise BusUnavailable(f"no acknowledgement of a message on {subject}: {error}") from error

    async def consume(self, queue: Queue, handler: Handler, *, concurrency: int, stop: asyncio.Event) -> None:
        """As `MessageBus.consume`."""
        await consuming.consume(self.subscribe, queue, handler, concurrency=concurrency, stop=stop)

    async def consume_batches(
        self, queue: Queue, handler: BatchHandler, *, batch: int, stop: asyncio.Event
    ) -> None:
        """As `MessageBus.consume_batches`."""
        await consuming.consume_batches(self.subscribe, queue, handler, batch=batch, stop=stop)

    async def subscribe(self, queue: Queue) -> SimulatedSubscription:
        """A subscription; as with NATS, only its first fetch notices that there is no such stream."""
        return SimulatedSubscription(self, queue)

    async def close(self) -> None:
        """As `MessageBus.close`."""

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Remember whether a stream was missing at the last try."""
        try:
            yield
        except StreamMissing:
            self._lacking.add(name)
            raise
        self._lacking.discard(name)


@dataclass(frozen=True, slots=True)
class SimulatedSubscription:
    """As `shared.bus.port.Subscription`: a pull request waits at the server until there is a message."""

    bus: SimulatedBus
    queue: Queue

    async def fetch(self, batch: int, *, timeout: float) -> list[SimulatedMessage]:
        """As `Subscription.fetch`. A request or messages that get lost look as if there were none."""
        broker, clock = self.bus.broker, asyncio.get_running_loop().time
        deadline = clock() + timeout
        with broker.changes(self.queue.stream) as changed:
            while True:
                changed.clear()
                try:
                    with self.bus.noting(self.queue.stream):
                        async with self.bus.line.crossing(f"fetch from {self.queue.stream}"):
                            taken = broker.take(self.queue, batch)
                            wait = broker.seconds_to_next(self.queue)
                except LineBroken:
                    await asyncio.sleep(max(deadline - clock(), 0.0))
                    return []
                if taken:
                    return [SimulatedMessage(self.bus, self.queue, *one) for one in taken]
                await pause(changed, min(max(wait, MOMENT_SECONDS), max(deadline - clock(), 0.0)))
                if clock() >= deadline:
                    return []

    async def close(self) -> None:
        """As `Subscription.close`."""


@dataclass(frozen=True, slots=True)
class SimulatedMessage:
    """As `shared.bus.port.Message`. Nothing answers an acknowledgement, so nobody notices that it was lost."""

    bus: SimulatedBus
    queue: Queue
    number: int
    delivery: Delivery

    async def ack(self) -> None:
        """As `Message.ack`."""
        await self._tell("ack", lambda: self.bus.broker.ack(self.queue, self.number))

    async def nak(self, *, delay: float) -> None:
        """As `Message.nak`."""
        await self._tell("nak", lambda: self.bus.broker.put_off(self.queue, self.number, delay))

    async def in_progress(self) -> None:
        """As `Message.in_progress`."""
        await self._tell(
            "in_progress", lambda: self.bus.broker.put_off(self.queue, self.number, self.queue.ack_wait)
        )

    async def _tell(self, what: str, effect: Callable[[], None]) -> None:
        with contextlib.suppress(LineBroken, StreamMissing):
            async with self.bus.line.crossing(what):
                effect()

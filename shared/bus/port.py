"""What the services ask of the bus: wake-ups that are stored, handed to one worker, and handed out again if it dies.

`shared.bus.jetstream` is the bus; the simulation has another one, which passes the same contract tests. Both leave the
loop that handles messages to `shared.bus.consuming`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from shared.bus.topology import Queue
from shared.domain.errors import TransientError


class BusUnavailable(TransientError):
    """NATS does not answer; work goes on from Postgres when it is back."""

    reason = "BusUnavailable"


class StreamMissing(BusUnavailable):
    """NATS is there, but not the stream or its consumer; it goes on once they were made."""

    reason = "StreamMissing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message as it is handed out. `deliveries`: how often it was so far, this time included."""

    subject: str
    payload: bytes
    deliveries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The message needs no more deliveries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Deliver the message again after so many seconds."""

    seconds: float


Verdict: TypeAlias = "Done | Retry"
Handler: TypeAlias = "Callable[[Delivery], Awaitable[Verdict]]"
BatchHandler: TypeAlias = "Callable[[Sequence[Delivery]], Awaitable[Sequence[Verdict]]]"
"""Answers with one verdict for each delivery, in their order."""


class MessageBus(Protocol):
    """A connection that comes back by itself for as long as the process lives."""

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands now."""

    @property
    def has_streams(self) -> bool:
        """Whether the streams that we last published to and fetched from were there."""

    @property
    def is_allowed(self) -> bool:
        """Whether the server has refused nothing within the last minute."""

    async def publish(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """Store one message in its stream.

        Raises:
            BusUnavailable: no acknowledgement came; publishing again with the same id is safe.
        """

    async def consume(self, queue: Queue, handler: Handler, *, concurrency: int, stop: asyncio.Event) -> None:
        """Hand messages one by one to `handler`, `concurrency` at a time, until `stop` is set.

        A handler that raises has its message delivered again after a pause. Messages in hand when `stop` is
        set are finished first.
        """

    async def consume_batches(
        self, queue: Queue, handler: BatchHandler, *, batch: int, stop: asyncio.Event
    ) -> None:
        """Hand up to `batch` messages at once to `handler` until `stop` is set; if it raises, all come again."""

    async def close(self) -> None:
        """Disconnect; what was published before is sent."""


class Message(Protocol):
    """One delivery of a message. Each method raises BusUnavailable where the server cannot be told."""

    @property
    def delivery(self) -> Delivery:
        """What handlers get."""

    async def ack(self) -> None:
        """It needs no more deliveries."""

    async def nak(self, *, delay: float) -> None:
        """Deliver it again after `delay` seconds."""

    async def in_progress(self) -> None:
        """Wait as long as the queue's `ack_wait` from now on before it is delivered again."""


class Subscription(Protocol):
    """A right to fetch from one queue."""

    async def fetch(self, batch: int, *, timeout: float) -> Sequence[Message]:
        """Up to `batch` messages as soon as there is one; none if nothing came within `timeout` seconds.

        Raises:
            StreamMissing: there is no such stream or consumer.
            BusUnavailable: the server does not answer.
        """

    async def close(self) -> None:
        """Fetch no more. Raises nothing."""


Subscribe: TypeAlias = Callable[[Queue], Awaitable[Subscription]]
"""Opens a subscription to a queue that somebody made. Raises as `fetch`."""

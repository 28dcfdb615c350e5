"""A JetStream server as a value in memory.

Source of the rules: JetStream's documentation ("Streams", "Consumers", "Model deep dive"); the contract tests hold them
against a real server.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from shared.bus.port import BusUnavailable, Delivery, StreamMissing
from shared.bus.topology import QUEUES, Queue
from simulation.line import LineBroken

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True, kw_only=True)
class BrokerWeather:
    """How unreliable the server itself is now; the nemesis changes it. All are probabilities.

    Attributes:
        duplicates: a message that is delivered stays deliverable at once, to anybody.
        disorder: a fetch takes its messages in any order.
        amnesia: a message is acknowledged and never stored, as if the power failed before it was on disk.
    """

    duplicates: float = 0.0
    disorder: float = 0.0
    amnesia: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A message in its stream. `time` is when it was stored."""

    message_id: str
    subject: str
    payload: bytes
    time: float


@dataclass(slots=True, kw_only=True)
class _Consumer:
    """A durable consumer: what was delivered and not acknowledged, and where new messages begin.

    Attributes:
        config: as it was asked for.
        next: sequence number of the first message that was never delivered.
        pending: for each message delivered and not acknowledged, when it is delivered again.
        deliveries: how often each was delivered.
    """

    config: ConsumerConfig
    next: int = 0
    pending: dict[int, float] = field(default_factory=dict)
    deliveries: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True, kw_only=True)
class _Stream:
    """A stream with its one consumer.

    Attributes:
        config: as it was asked for.
        messages: by sequence number, in order.
        last: the newest sequence number ever given.
        ids: message ids of the de-duplication window, with the time of each.
        consumer: None if it was not made or deleted.
    """

    config: StreamConfig
    messages: dict[int, _Stored] = field(default_factory=dict)
    last: int = -1
    ids: dict[str, float] = field(default_factory=dict)
    consumer: _Consumer | None = None

    def expire(self, now: float) -> None:
        """Drop what is older than the stream keeps it, and ids older than the de-duplication window."""
        _drop_older(self.messages, now - (self.config.max_age or float("inf")), lambda stored: stored.time)
        _drop_older(self.ids, now - (self.config.duplicate_window or 0.0), lambda time: time)


class Broker:
    """The server. Its methods are effects: they do not wait. All raise LineBroken while it is stopped.

    Attributes:
        weather: how unreliable it is.
        is_stopped: nobody can connect; what is stored stays.
        observe: told the id of each message that is acknowledged to its publisher.
    """

    def __init__(
        self, *, clock: Callable[[], float], chance: random.Random, weather: BrokerWeather | None = None
    ) -> None:
        """Start an empty server. `clock` gives the time in seconds."""
        self.weather = weather or BrokerWeather()
        self.is_stopped = False
        self.observe: Callable[[str], object] = lambda _: None
        self._clock = clock
        self._chance = chance
        self._streams: dict[str, _Stream] = {}
        self._changes: dict[str, set[asyncio.Event]] = {}

    # What an operator does

    def ensure(self, *queues: Queue) -> None:
        """Make streams and consumers that are missing, as `kmmhub streams` does; all of the topology by default."""
        self._check()
        for queue in queues or QUEUES:
            present = self._streams.get(queue.stream)
            if present is not None and present.config.retention is not queue.retention:
                del self._streams[queue.stream]
            stream = self._streams.setdefault(queue.stream, _Stream(config=queue.stream_config()))
            stream.config = queue.stream_config()
            if stream.consumer is None:  # a new one begins with all that the stream still has
                stream.consumer = _Consumer(config=queue.consumer_config())
            stream.consumer.config = queue.consumer_config()
            self._tell(queue.stream)

    def stop(self) -> None:
        """The server goes away."""
        self.is_stopped = True
        self._tell_all()

    def start(self, *, is_wiped: bool = False) -> None:
        """It is back, with what it had stored or with nothing; either way no client keeps its connection.

        A server that starts again knows the ids of the messages that it still has, not of those consumed.
        """
        self.is_stopped = False
        if is_wiped:
            self._streams.clear()
        for stream in self._streams.values():
            stream.ids = {stored.message_id: stored.time for stored in stream.messages.values()}
        self._tell_all()

    def delete_stream(self, name: str) -> None:
        """Somebody deletes a stream with all its messages and its consumer."""
        self._streams.pop(name, None)
        self._tell(name)

    def delete_consumer(self, stream: str) -> None:
        """Somebody deletes a stream's consumer."""
        if stream in self._streams:
            self._streams[stream].consumer = None
        self._tell(stream)

    def payloads(self, stream: str) -> list[bytes]:
        """What a stream holds now, oldest first."""
        found = self._streams.get(stream)
        return [stored.payload for stored in found.messages.values()] if found else []

    # What a client asks for

    def publish(self, subject: str, payload: bytes, message_id: str) -> None:
        """Store a message, unless one of this id came within the window.

        Raises:
            StreamMissing: no stream takes the subject.
            BusUnavailable: the payload is larger than the stream takes.
        """
        self._check()
        now = self._clock()
        stream = next((one for one in self._streams.values() if _takes(one.config, subject)), None)
        if stream is None:
            raise StreamMissing(f"no stream takes {subject}")
        if len(payload) > (stream.config.max_msg_size or len(payload)):
            raise BusUnavailable(f"a message on {subject} has {len(payload)} bytes: too many")
        stream.expire(now)
        self.observe(message_id)
        if message_id in stream.ids or self._happens(self.weather.amnesia):
            return
        stream.last += 1
        stream.ids[message_id] = now
        stream.messages[stream.last] = _Stored(
            message_id=message_id, subject=subject, payload=payload, time=now
        )
        assert stream.config.name is not None
        self._tell(stream.config.name)

    def take(self, queue: Queue, most: int) -> list[tuple[int, Delivery]]:
        """Deliver up to `most` messages, each with its sequence number. Raises StreamMissing."""
        stream, consumer = self._find(queue)
        now = self._clock()
        stream.expire(now)
        consumer.pending = {
            number: due for number, due in consumer.pending.items() if number in stream.messages
        }
        due = [number for number, due in consumer.pending.items() if due <= now]
        chosen = [*due, *itertools.islice(_new(stream, consumer), most)]
        if self._happens(self.weather.disorder):
            chosen = [*due, *_new(stream, consumer)]
            self._chance.shuffle(chosen)
        for number in chosen:
            consumer.next = max(consumer.next, number + 1)
            consumer.pending[number] = now  # what is not taken below stays due
        for number in chosen[:most]:
            stays = self._happens(self.weather.duplicates)
            consumer.pending[number] = now if stays else now + (consumer.config.ack_wait or 30.0)
        consumer.deliveries.update(chosen[:most])
        return [(number, _delivery(stream, consumer, number)) for number in chosen[:most]]

    def ack(self, queue: Queue, number: int) -> None:
        """A message is done with: it leaves a work queue. Counts whichever delivery it is of."""
        stream, consumer = self._find(queue)
        consumer.deliveries.pop(number, None)
        if consumer.pending.pop(number, None) is not None and (
            stream.config.retention is RetentionPolicy.WORK_QUEUE
        ):
            stream.messages.pop(number, None)

    def put_off(self, queue: Queue, number: int, seconds: float) -> None:
        """Deliver a message that is not acknowledged again, after so many seconds from now."""
        _, consumer = self._find(queue)
        if number in consumer.pending:
            consumer.pending[number] = self._clock() + seconds
            self._tell(queue.stream)

    def seconds_to_next(self, queue: Queue) -> float:
        """After how long a message will be delivered again; infinite if none is pending."""
        _, consumer = self._find(queue)
        return min(consumer.pending.values(), default=float("inf")) - self._clock()

    @contextmanager
    def changes(self, stream: str) -> Iterator[asyncio.Event]:
        """An event that is set when a stream gets a message or anything else about it changes."""
        event, waiting = asyncio.Event(), self._changes.setdefault(stream, set())
        waiting.add(event)
        try:
            yield event
        finally:
            waiting.discard(event)

    def _find(self, queue: Queue) -> tuple[_Stream, _Consumer]:
        self._check()
        stream = self._streams.get(queue.stream)
        if stream is None or stream.consumer is None:
            raise StreamMissing(f"stream {queue.stream} or its consumer {queue.consumer} is missing")
        return stream, stream.consumer

    def _check(self) -> None:
        if self.is_stopped:
            raise LineBroken("the server is away")

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._chance.random() < probability

    def _tell(self, stream: str) -> None:
        for event in self._changes.get(stream, ()):
            event.set()

    def _tell_all(self) -> None:
        for stream in self._changes:
            self._tell(stream)


def _new(stream: _Stream, consumer: _Consumer) -> Iterator[int]:
    """Sequence numbers of messages that may be delivered for the first time now."""
    room = (consumer.config.max_ack_pending or stream.last + 1) - len(consumer.pending)
    first = max(consumer.next, next(iter(stream.messages), 0))
    numbers = (number for number in range(first, stream.last + 1) if number in stream.messages)
    return itertools.islice(numbers, max(room, 0))


def _delivery(stream: _Stream, consumer: _Consumer, number: int) -> Delivery:
    stored = stream.messages[number]
    return Delivery(subject=stored.subject, payload=stored.payload, deliveries=consumer.deliveries[number])


def _takes(config: StreamConfig, subject: str) -> bool:
    """Whether a stream has a subject filter that matches; of wildcards, `>` at the end is all we use."""
    return any(
        subject.startswith(taken[:-1]) if taken.endswith(".>") else subject == taken
        for taken in config.subjects or ()
    )


def _drop_older(kept: dict[K, V], limit: float, time_of: Callable[[V], float]) -> None:
    """Drop from the front, where the oldest are."""
    for key in list(itertools.takewhile(lambda key: time_of(kept[key]) < limit, kept)):
        del kept[key]

"""One connection to NATS: publishing, fetching and acknowledging. The loop that does it is `shared.bus.consuming`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js import errors as js_errors

from shared.bus import consuming
from shared.bus.connection import (
    CLOSE_TIMEOUT_SECONDS,
    WHAT_TO_DO,
    BusDenied,
    BusUnavailable,
    Denials,
    close_client,
    open_client,
)
from shared.bus.port import BatchHandler, Delivery, Done, Handler, Retry, StreamMissing, Verdict
from shared.bus.topology import Queue

__all__ = [
    "BatchHandler",
    "Bus",
    "BusDenied",
    "BusUnavailable",
    "Done",
    "Handler",
    "Retry",
    "Verdict",
    "connect",
]

log = structlog.get_logger()

PUBLISH_TIMEOUT_SECONDS = 5.0
ACK_TIMEOUT_SECONDS = 5.0
MISSING_SECONDS = 10.0
"""How long a stream counts as missing after somebody asked for it in vain."""

MISSING = (
    "`kmmhub streams` makes streams and consumers, `kmmhub streams --watch` also those that are lost later"
)


class Bus:
    """A connection that comes back by itself for as long as the process lives."""

    def __init__(self, client: Client, denials: Denials) -> None:
        self._client = client
        self._denials = denials
        self._jetstream = client.jetstream(timeout=PUBLISH_TIMEOUT_SECONDS)
        self._lacking: dict[str, float] = {}

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands now."""
        return self._client.is_connected

    @property
    def has_streams(self) -> bool:
        """Whether none of the streams that we publish to and fetch from was missing lately."""
        return all(self._is_over(since) for since in self._lacking.values())

    @property
    def is_allowed(self) -> bool:
        """Whether the server has refused nothing within the last minute."""
        return not self._denials.are_recent

    async def publish(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """Store one message in its stream.

        Raises:
            BusDenied: our user may not publish on this subject.
            BusUnavailable: no acknowledgement came; publishing again with the same id is safe.
        """
        family = ".".join(subject.split(".")[:2])
        try:
            async with asyncio.timeout(None) as limit:
                with self._denials.raised(subject, limit):
                    await self._jetstream.publish(subject, payload, headers={"Nats-Msg-Id": message_id})
        except js_errors.NoStreamResponseError as error:
            self.note_missing(family)
            raise StreamMissing(f"no stream takes {subject}; {MISSING}") from error
        except (nats.errors.Error, js_errors.Error, TimeoutError) as error:
            if limit.expired():
                raise BusDenied(f"NATS refuses our message on {subject}: {WHAT_TO_DO}") from error
            raise BusUnavailable(f"NATS did not take a message on {subject}: {error!r}") from error
        self.note_found(family)

    async def consume(self, queue: Queue, handler: Handler, *, concurrency: int, stop: asyncio.Event) -> None:
        """As `MessageBus.consume`."""
        await consuming.consume(self.subscribe, queue, handler, concurrency=concurrency, stop=stop)

    async def consume_batches(
        self, queue: Queue, handler: BatchHandler, *, batch: int, stop: asyncio.Event
    ) -> None:
        """As `MessageBus.consume_batches`."""
        await consuming.consume_batches(self.subscribe, queue, handler, batch=batch, stop=stop)

    async def subscribe(self, queue: Queue) -> _Subscription:
        """As `shared.bus.port.Subscribe`; only the first fetch notices that there is no such consumer."""
        with _errors_of_nats(f"subscription to {queue.stream}"):
            pull = await self._jetstream.pull_subscribe_bind(queue.consumer, queue.stream)
        return _Subscription(self, queue, pull)

    async def close(self) -> None:
        """Flush what is buffered and disconnect.

        Not by `drain`, which waits for pull requests that nobody will answer.
        """
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await self._client.flush(CLOSE_TIMEOUT_SECONDS)
        await close_client(self._client)

    def note_missing(self, name: str) -> None:
        """A stream, or that of a family of subjects, is not there."""
        if name not in self._lacking or self._is_over(self._lacking[name]):
            log.warning("bus.stream_missing", name=name, what_to_do=MISSING)
        self._lacking[name] = time.monotonic()

    def note_found(self, name: str) -> None:
        """It is there."""
        if self._lacking.pop(name, None) is not None:
            log.info("bus.stream_found", name=name)

    @staticmethod
    def _is_over(since: float) -> bool:
        """Whoever misses a stream asks for it again and again, unless another process took its message there."""
        return time.monotonic() - since > MISSING_SECONDS


async def connect(
    url: str,
    *,
    name: str,
    nkey_seed: Path | None = None,
    on_closed: Callable[[], None] = lambda: None,
) -> Bus:
    """Connect to NATS; arguments and errors as of `shared.bus.connection.open_client`."""
    denials = Denials()
    client = await open_client(url, name=name, nkey_seed=nkey_seed, denials=denials, on_closed=on_closed)
    return Bus(client, denials)


@dataclass(frozen=True, slots=True)
class _Subscription:
    """As `shared.bus.port.Subscription`."""

    bus: Bus
    queue: Queue
    pull: JetStreamContext.PullSubscription

    async def fetch(self, batch: int, *, timeout: float) -> list[_Message]:
        """As `Subscription.fetch`."""
        messages: list[Msg] = []
        with _errors_of_nats(f"fetch from {self.queue.stream}"):
            try:
                messages = await self.pull.fetch(batch, timeout=timeout)
            except TimeoutError:  # nats.errors.TimeoutError is one
                pass  # nothing to do is no error
            except js_errors.ServiceUnavailableError as error:
                self.bus.note_missing(self.queue.stream)
                raise StreamMissing(f"nothing answers for {self.queue.stream}; {MISSING}") from error
        self.bus.note_found(self.queue.stream)
        return [_Message(message) for message in messages]

    async def close(self) -> None:
        """As `Subscription.close`."""
        with contextlib.suppress(nats.errors.Error):
            await self.pull.unsubscribe()


@dataclass(frozen=True, slots=True)
class _Message:
    """As `shared.bus.port.Message`."""

    message: Msg

    @property
    def delivery(self) -> Delivery:
        """As `Message.delivery`."""
        message = self.message
        return Delivery(
            subject=message.subject, payload=message.data, deliveries=message.metadata.num_delivered
        )

    async def ack(self) -> None:
        """As `Message.ack`; the server says that it knows."""
        with _errors_of_nats("ack"):
            await self.message.ack_sync(timeout=ACK_TIMEOUT_SECONDS)

    async def nak(self, *, delay: float) -> None:
        """As `Message.nak`."""
        with _errors_of_nats("nak"):
            await self.message.nak(delay=delay)

    async def in_progress(self) -> None:
        """As `Message.in_progress`."""
        with _errors_of_nats("in_progress"):
            await self.message.in_progress()


@contextlib.contextmanager
def _errors_of_nats(what: str) -> Iterator[None]:
    try:
        yield
    except (nats.errors.Error, js_errors.Error, TimeoutError) as error:
        raise BusUnavailable(f"{what} failed: {error!r}") from error

"""One connection to NATS: publishing, and a pull loop that turns a handler's verdict into an acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js import errors as js_errors

from shared.bus.connection import WHAT_TO_DO, BusDenied, BusUnavailable, Denials, open_client
from shared.bus.topology import Queue
from shared.runtime.pause import pause

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
FETCH_TIMEOUT_SECONDS = 1.0
CLOSE_TIMEOUT_SECONDS = 2

MISSING = (
    "`kmmhub streams` makes streams and consumers, `kmmhub streams --watch` also those that are lost later"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The message needs no more deliveries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Deliver the message again after so many seconds."""

    seconds: float


Verdict: TypeAlias = "Done | Retry"
Handler: TypeAlias = "Callable[[bytes], Awaitable[Verdict]]"
BatchHandler: TypeAlias = "Callable[[list[bytes]], Awaitable[Verdict]]"


class Bus:
    """A connection that comes back by itself for as long as the process lives."""

    def __init__(self, client: Client, denials: Denials) -> None:
        self._client = client
        self._denials = denials
        self._jetstream = client.jetstream(timeout=PUBLISH_TIMEOUT_SECONDS)
        self._lacking: set[str] = set()

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands now."""
        return self._client.is_connected

    @property
    def has_streams(self) -> bool:
        """Whether the streams that we last published to and fetched from were there."""
        return not self._lacking

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
            self._note_missing(family)
            raise BusUnavailable(f"no stream takes {subject}; {MISSING}") from error
        except (nats.errors.Error, js_errors.Error, TimeoutError) as error:
            if limit.expired():
                raise BusDenied(f"NATS refuses our message on {subject}: {WHAT_TO_DO}") from error
            raise BusUnavailable(f"NATS did not take a message on {subject}: {error!r}") from error
        self._note_found(family)

    async def consume(self, queue: Queue, handler: Handler, *, concurrency: int, stop: asyncio.Event) -> None:
        """Hand messages one by one to `handler`, `concurrency` at a time, until `stop` is set.

        A handler that raises has its message delivered again after a pause. Messages in hand when `stop` is
        set are finished first.
        """
        slots = asyncio.Semaphore(concurrency)
        async with asyncio.TaskGroup() as group:
            async for message in self._messages(queue, batch=1, stop=stop, ready=slots.acquire):
                if not message:
                    slots.release()
                    continue
                task = group.create_task(self._handle(message[0], handler, queue))
                task.add_done_callback(lambda _: slots.release())

    async def consume_batches(
        self, queue: Queue, handler: BatchHandler, *, batch: int, stop: asyncio.Event
    ) -> None:
        """Hand up to `batch` messages at once to `handler` until `stop` is set; one verdict counts for all."""
        async for messages in self._messages(queue, batch=batch, stop=stop):
            if not messages:
                continue
            verdict = await _verdict_of(handler([message.data for message in messages]), queue)
            await asyncio.gather(*(_settle(message, verdict) for message in messages))

    async def close(self) -> None:
        """Flush what is buffered and disconnect.

        Not by `drain`, which waits for pull requests that nobody will answer.
        """
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await self._client.flush(CLOSE_TIMEOUT_SECONDS)
        await self._client.close()

    async def _messages(
        self,
        queue: Queue,
        *,
        batch: int,
        stop: asyncio.Event,
        ready: Callable[[], Awaitable[object]] | None = None,
    ) -> AsyncIterator[list[Msg]]:
        """Fetch for ever; a stream or consumer that is not there is waited for.

        `ready` is awaited before each fetch, so that no message is fetched that nobody can take; it is
        answered by a yield, empty when nothing came.
        """
        subscription: JetStreamContext.PullSubscription | None = None
        while not stop.is_set():
            if ready is not None:
                await ready()
            messages: list[Msg] = []
            try:
                if subscription is None:
                    subscription = await self._jetstream.pull_subscribe_bind(queue.consumer, queue.stream)
                messages = await subscription.fetch(batch, timeout=FETCH_TIMEOUT_SECONDS)
                self._note_found(queue.stream)
            except TimeoutError:  # nats.errors.TimeoutError is one
                self._note_found(queue.stream)  # nothing to do is no error
            except (nats.errors.Error, js_errors.Error) as error:
                if isinstance(error, js_errors.ServiceUnavailableError):
                    self._note_missing(queue.stream)
                else:
                    log.warning("bus.fetch_failed", stream=queue.stream, error=repr(error))
                with contextlib.suppress(nats.errors.Error):
                    if subscription is not None:
                        await subscription.unsubscribe()
                subscription = None
                await pause(stop, 1.0)
            yield messages

    async def _handle(self, message: Msg, handler: Handler, queue: Queue) -> None:
        """Run the handler while telling the server that the message is still being worked on."""
        heartbeat = asyncio.create_task(_keep(message, queue.ack_wait / 3))
        try:
            verdict = await _verdict_of(handler(message.data), queue)
        finally:
            heartbeat.cancel()
        await _settle(message, verdict)

    def _note_missing(self, name: str) -> None:
        if name not in self._lacking:
            self._lacking.add(name)
            log.warning("bus.stream_missing", name=name, what_to_do=MISSING)

    def _note_found(self, name: str) -> None:
        if name in self._lacking:
            self._lacking.discard(name)
            log.info("bus.stream_found", name=name)


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


async def _verdict_of(handling: Awaitable[Verdict], queue: Queue) -> Verdict:
    try:
        return await handling
    except Exception:
        log.exception("bus.handler_failed", stream=queue.stream)
        return Retry(seconds=2.0)


async def _settle(message: Msg, verdict: Verdict) -> None:
    """Acknowledge. A lost acknowledgement costs a second delivery, which handlers expect."""
    with contextlib.suppress(nats.errors.Error, js_errors.Error, TimeoutError):
        if isinstance(verdict, Done):
            await message.ack()
        else:
            await message.nak(delay=verdict.seconds)


async def _keep(message: Msg, interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        with contextlib.suppress(nats.errors.Error):
            await message.in_progress()

"""One connection to NATS: publishing, and a pull loop that turns a handler's verdict into an acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js import errors as js_errors

from shared.bus.topology import QUEUES, Queue
from shared.domain.errors import TransientError
from shared.runtime.pause import pause

log = structlog.get_logger()

CONNECT_TIMEOUT_SECONDS = 5
PUBLISH_TIMEOUT_SECONDS = 5.0
FETCH_TIMEOUT_SECONDS = 1.0
CLOSE_TIMEOUT_SECONDS = 2


class BusUnavailable(TransientError):
    """NATS does not answer; work goes on from Postgres when it is back."""

    reason = "BusUnavailable"


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

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=PUBLISH_TIMEOUT_SECONDS)

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands now."""
        return self._client.is_connected

    async def ensure_topology(self) -> None:
        """Create the streams and consumers that are missing, and bring the others to their configuration."""
        for queue in QUEUES:
            await self._ensure(queue)

    async def publish(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """Store one message in its stream.

        Raises:
            BusUnavailable: no acknowledgement came; publishing again with the same id is safe.
        """
        try:
            await self._jetstream.publish(subject, payload, headers={"Nats-Msg-Id": message_id})
        except (nats.errors.Error, js_errors.Error, TimeoutError) as error:
            raise BusUnavailable(f"NATS did not take a message on {subject}: {error!r}") from error

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
        """Fetch for ever; a stream or consumer that someone deleted is made again.

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
                    await self._ensure(queue)
                    subscription = await self._jetstream.pull_subscribe_bind(queue.consumer, queue.stream)
                messages = await subscription.fetch(batch, timeout=FETCH_TIMEOUT_SECONDS)
            except TimeoutError:  # nats.errors.TimeoutError is one
                pass  # nothing to do is no error
            except (nats.errors.Error, js_errors.Error, BusUnavailable) as error:
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

    async def _ensure(self, queue: Queue) -> None:
        try:
            try:
                await self._jetstream.add_stream(queue.stream_config())
            except js_errors.BadRequestError:  # it exists with another configuration
                await self._jetstream.update_stream(queue.stream_config())
            await self._jetstream.add_consumer(queue.stream, queue.consumer_config())
        except (nats.errors.Error, js_errors.Error, TimeoutError) as error:
            raise BusUnavailable(f"stream {queue.stream} could not be prepared: {error!r}") from error


async def connect(url: str, *, name: str) -> Bus:
    """Connect to NATS.

    Reconnects for ever, and notices a half-open connection within about ten seconds (the client's defaults
    give up after two minutes and notice after four).

    Raises:
        BusUnavailable: the server cannot be reached now.
    """

    last_error: Exception | None = None

    async def on_error(error: Exception) -> None:
        nonlocal last_error
        last_error = error
        log.warning("bus.error", error=repr(error))

    client = Client()
    try:
        # The client's own limit is for one attempt, and reconnecting for ever includes the first connection.
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            await client.connect(
                url,
                name=name,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                ping_interval=5,
                max_outstanding_pings=2,
                error_cb=on_error,
            )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        await client.close()
        raise BusUnavailable(
            f"NATS cannot be reached: {last_error or error!r}; is NATS_URL right?"
        ) from error
    return Bus(client)


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

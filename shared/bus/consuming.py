"""The pull loop: fetch, hand to the handler, turn its verdict into an acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from shared.bus.port import (
    BatchHandler,
    BusUnavailable,
    Delivery,
    Done,
    Handler,
    Message,
    Retry,
    StreamMissing,
    Subscribe,
    Subscription,
    Verdict,
)
from shared.bus.topology import Queue
from shared.runtime.fail_point import FailPoint, fail_point
from shared.runtime.pause import pause

log = structlog.get_logger()

FETCH_TIMEOUT_SECONDS = 1.0
RESUBSCRIBE_SECONDS = 1.0
FAILED_RETRY_SECONDS = 2.0
"""After how long a message comes again whose handler raised."""


async def consume(
    subscribe: Subscribe, queue: Queue, handler: Handler, *, concurrency: int, stop: asyncio.Event
) -> None:
    """As `MessageBus.consume`, on what `subscribe` opens."""

    async def each(deliveries: Sequence[Delivery]) -> Sequence[Verdict]:
        return [await handler(delivery) for delivery in deliveries]

    slots = asyncio.Semaphore(concurrency)
    async with asyncio.TaskGroup() as group:
        async for message in _messages(subscribe, queue, batch=1, stop=stop, ready=slots.acquire):
            if not message:
                slots.release()
                continue
            task = group.create_task(_handle(message, each, queue))
            task.add_done_callback(lambda _: slots.release())


async def consume_batches(
    subscribe: Subscribe, queue: Queue, handler: BatchHandler, *, batch: int, stop: asyncio.Event
) -> None:
    """As `MessageBus.consume_batches`, on what `subscribe` opens."""
    async for messages in _messages(subscribe, queue, batch=batch, stop=stop):
        if messages:
            await _handle(messages, handler, queue)


async def _messages(
    subscribe: Subscribe,
    queue: Queue,
    *,
    batch: int,
    stop: asyncio.Event,
    ready: Callable[[], Awaitable[object]] | None = None,
) -> AsyncIterator[Sequence[Message]]:
    """Fetch for ever; a stream or consumer that is not there is waited for.

    `ready` is awaited before each fetch, so that no message is fetched that nobody can take; it is
    answered by a yield, empty when nothing came.
    """
    subscription: Subscription | None = None
    while not stop.is_set():
        if ready is not None:
            await ready()
        messages: Sequence[Message] = ()
        try:
            if subscription is None:
                subscription = await subscribe(queue)
            messages = await subscription.fetch(batch, timeout=FETCH_TIMEOUT_SECONDS)
        except BusUnavailable as error:
            if not isinstance(error, StreamMissing):  # which the bus reports once
                log.warning("bus.fetch_failed", stream=queue.stream, error=str(error))
            if subscription is not None:
                await subscription.close()
            subscription = None
            await pause(stop, RESUBSCRIBE_SECONDS)
        yield messages


async def _handle(messages: Sequence[Message], handler: BatchHandler, queue: Queue) -> None:
    """Run the handler while telling the server that the messages are still being worked on."""
    fail_point(FailPoint.MESSAGE_FETCHED)
    is_over = asyncio.Event()
    heartbeat = asyncio.create_task(_keep(messages, queue.ack_wait / 3, is_over))
    verdicts: Sequence[Verdict]
    try:
        verdicts = await handler([message.delivery for message in messages])
    except Exception:
        log.exception("bus.handler_failed", stream=queue.stream)
        verdicts = [Retry(seconds=FAILED_RETRY_SECONDS)] * len(messages)
    finally:
        is_over.set()  # the client's library loses a cancellation now and then
        heartbeat.cancel()
    fail_point(FailPoint.MESSAGE_HANDLED)
    settled = zip(messages, verdicts, strict=True)
    await asyncio.gather(*(_settle(message, verdict) for message, verdict in settled))
    fail_point(FailPoint.MESSAGE_SETTLED)


async def _settle(message: Message, verdict: Verdict) -> None:
    """Acknowledge. A lost acknowledgement costs a second delivery, which handlers expect."""
    with contextlib.suppress(BusUnavailable):
        if isinstance(verdict, Done):
            await message.ack()
        else:
            await message.nak(delay=verdict.seconds)


async def _keep(messages: Sequence[Message], interval: float, is_over: asyncio.Event) -> None:
    while not await pause(is_over, interval):
        for message in messages:
            with contextlib.suppress(BusUnavailable):
                await message.in_progress()

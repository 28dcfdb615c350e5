"""One resource from the API server into Postgres: reflect, gather into batches, record."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from prometheus_client import Counter, Gauge

from shared.kube.reflector import HasMetadata, Listed, Reflector, Removed, Seen, object_key
from shared.relay.relay import Relay
from shared.runtime.fail_point import FailPoint, fail_point
from shared.runtime.pause import pause
from shared.store.port import Store, StoreUnavailable, Transaction

log = structlog.get_logger()

MAX_BATCH = 500
RETRY_SECONDS = 1.0

EVENTS = Counter("kmmhub_watch_events_total", "Objects seen or removed, by resource.", ["resource"])
SYNCED = Gauge("kmmhub_watch_synced", "1 once the resource was listed completely, by resource.", ["resource"])

T = TypeVar("T", bound=HasMetadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder(Generic[T]):
    """How batches of a kind are stored. Each function gets the open transaction."""

    seen: Callable[[Transaction, Sequence[T]], Awaitable[None]]
    removed: Callable[[Transaction, Sequence[T]], Awaitable[None]]
    listed: Callable[[Transaction, Listed], Awaitable[None]]


async def reflect(
    reflector: Reflector[T],
    recorder: Recorder[T],
    *,
    resource: str,
    store: Store,
    relay: Relay,
    listed: set[str],
    doubt: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    """Record everything that the reflector yields, until `stop` is set; `listed` gets the resource once it is listed.

    A batch that cannot be stored is tried again: nothing that was read is lost while Postgres is away. Once Postgres
    is back, `doubt` is called: what it had stored before may be lost, as after a failover to an asynchronous replica.
    Whatever the reflector does not expect is raised: a watcher that no longer watches must not go on.
    """
    queue: asyncio.Queue[Seen[T] | Removed[T] | Listed] = asyncio.Queue(maxsize=4 * MAX_BATCH)

    async def fill() -> None:
        async for happening in reflector.run(stop):
            await queue.put(happening)

    async def drain() -> None:
        while True:
            batch = await _next_batch(queue)
            fail_point(FailPoint.BATCH_READ)
            if await _record(batch, recorder, store, resource=resource, doubt=doubt, stop=stop):
                relay.wake()
                if isinstance(batch[-1], Listed):
                    SYNCED.labels(resource).set(1)
                    listed.add(resource)
                    log.info("watch.listed", resource=resource, objects=len(batch[-1].keys))

    working = [asyncio.create_task(fill()), asyncio.create_task(drain())]
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*working, stopping):
            task.cancel()
        for task in working:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _next_batch(queue: asyncio.Queue[Any]) -> list[Any]:
    """At least one, and everything that waits, but no more than a batch; a `Listed` ends one."""
    batch = [await queue.get()]
    while not isinstance(batch[-1], Listed) and len(batch) < MAX_BATCH and not queue.empty():
        batch.append(queue.get_nowait())
    return batch


async def _record(
    batch: list[Any],
    recorder: Recorder[T],
    store: Store,
    *,
    resource: str,
    doubt: Callable[[], None],
    stop: asyncio.Event,
) -> bool:
    """Store one batch in one transaction. Returns false if `stop` was set before it could be."""
    last: dict[tuple[str, str], Seen[T] | Removed[T]] = {}
    for happening in batch:
        if not isinstance(happening, Listed):
            last[object_key(happening.object)] = happening
    EVENTS.labels(resource).inc(len(last))
    has_failed = False
    while not stop.is_set():
        try:
            async with store.begin() as transaction:
                await recorder.seen(
                    transaction, [one.object for one in last.values() if isinstance(one, Seen)]
                )
                await recorder.removed(
                    transaction, [one.object for one in last.values() if isinstance(one, Removed)]
                )
                if isinstance(batch[-1], Listed):
                    await recorder.listed(transaction, batch[-1])
                fail_point(FailPoint.BATCH_WRITTEN)
        except StoreUnavailable as error:
            log.warning("watch.not_recorded", resource=resource, error=str(error))
            has_failed = True
            await pause(stop, RETRY_SECONDS)
        else:
            fail_point(FailPoint.BATCH_RECORDED)
            if has_failed:
                doubt()
            return True
    return False

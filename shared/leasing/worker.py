"""Takes requests from a queue and works on them under leases.

Whatever happens, the artifact moves on: a result is recorded under the fence; a failure is recorded with its reason
and the time of the next try; a worker that dies lets its lease run out; one that is stopped gives it back at once.
What workers die of time and again waits, and ends (`shared.domain.lease.put_back`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import structlog
from prometheus_client import Counter, Histogram

from shared.bus.port import Done, Retry, Verdict
from shared.bus.topology import Queue
from shared.domain.artifact import Stage
from shared.domain.backoff import retry_delay
from shared.domain.canonical import storable_text
from shared.domain.errors import HubError, PermanentError
from shared.domain.lease import Built, Failure, Lease, Result, Signed
from shared.events.messages import Requested, decode_requested
from shared.registry.errors import ImageMissing
from shared.relay.backbone import Backbone
from shared.relay.dead_letters import DeadLetters
from shared.runtime.clock import elapsed
from shared.runtime.fail_point import FailPoint, fail_point
from shared.runtime.pause import pause
from shared.store import artifacts
from shared.store.port import Store, StoreUnavailable

log = structlog.get_logger()

DATABASE_RETRY_SECONDS = 1.0
POLL_SECONDS = 10.0
"""How often workers look for what nobody took, and for how long it must have been due."""

SET_ASIDE_SECONDS = 300.0
"""For how long the poll leaves an artifact alone that this code cannot handle at all."""

STAGES = Counter("kmmhub_stages_total", "Stages ended, by stage and result.", ["stage", "result"])
SECONDS = Histogram(
    "kmmhub_stage_seconds",
    "Time of a stage, by stage.",
    ["stage"],
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 1800),
)

Perform: TypeAlias = Callable[[Lease, "Holder"], Awaitable[Built | Signed]]
"""Does a stage's work. Raises HubError: permanent ones end the artifact in `failed`, others are tried again."""


class LeaseLost(HubError):
    """Another worker holds the artifact now; whatever was done here counts for nothing."""

    reason = "LeaseLost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Lets the work ask whether its lease still holds, before an effect that others see."""

    store: Store
    lease: Lease
    seconds: float

    async def confirm(self) -> None:
        """Extend the lease. Raises LeaseLost."""
        async with self.store.begin() as transaction:
            if not await artifacts.extend_lease(transaction, self.lease, seconds=self.seconds):
                raise LeaseLost(f"the lease of artifact {self.lease.key[:16]} was lost")
            fail_point(FailPoint.LEASE_EXTENDED)


class StageWorker:
    """Handles the requests of one stage."""

    def __init__(
        self,
        stage: Stage,
        perform: Perform,
        *,
        backbone: Backbone,
        owner: str,
        lease_seconds: float,
        concurrency: int,
        stop: asyncio.Event,
    ) -> None:
        self._stage = stage
        self._perform = perform
        self._backbone = backbone
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._stop = stop
        self._set_aside: dict[str, float] = {}

    async def run(self, queue: Queue) -> None:
        """Work on what the queue brings, and on what nobody took, until the process is stopped."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.poll())
            handler = DeadLetters(self._backbone.store, queue, decode_requested).guarded(self.handle)
            group.create_task(
                self._backbone.bus.consume(queue, handler, concurrency=self._concurrency, stop=self._stop)
            )

    async def handle(self, request: Requested) -> Verdict:
        """Work on the artifact of one request, if there is one that is still due and nobody else does."""
        async with self._slots:
            try:
                await self._take_and_work(request.artifact)
            except StoreUnavailable as error:
                await self._wait_for_store(request.artifact, error)
                return Retry(seconds=DATABASE_RETRY_SECONDS)
        return Done()

    async def poll(self) -> None:
        """Work on what nobody took though it has been due for a while, until the process is stopped.

        The second path: the bus may be gone, may have forgotten a request, or wait for a worker that died with it.
        Without the bus it is as fast as the workers are: it waits for a free slot, and only where there was less to
        do than slots were free, for some seconds.
        """
        has_more = False
        async with asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                if not has_more:
                    await pause(self._stop, POLL_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                has_more = await self._start_due(group)

    async def _start_due(self, group: asyncio.TaskGroup) -> bool:
        """Wait for a free slot, and start what is due in all that are free. Returns whether there may be more."""
        free = 0
        while not free or not self._slots.locked():
            await self._slots.acquire()
            free += 1
        due: Sequence[str] = ()
        try:
            if not self._stop.is_set():
                due = await self._due(free)
        except StoreUnavailable as error:
            log.warning("poll.failed", error=str(error))
        except Exception:
            log.exception("poll.failed")
        for key in due:
            log.info("artifact.overdue", artifact=key[:16])
            group.create_task(self._work_on_due(key))
        for _ in range(free - len(due)):
            self._slots.release()
        return len(due) == free

    async def _due(self, limit: int) -> Sequence[str]:
        self._set_aside = {key: until for key, until in self._set_aside.items() if until > elapsed()}
        async with self._backbone.store.begin() as transaction:
            due = await transaction.due_artifacts(
                self._stage, since_seconds=POLL_SECONDS, limit=limit + len(self._set_aside)
            )
        return [key for key in due if key not in self._set_aside][:limit]

    async def _work_on_due(self, key: str) -> None:
        """In a slot that is taken already. Whatever is wrong with one artifact, the worker goes on with others."""
        try:
            await self._take_and_work(key)
        except StoreUnavailable as error:
            await self._wait_for_store(key, error)
        except Exception:
            log.exception("artifact.not_handled", artifact=key, seconds=SET_ASIDE_SECONDS)
            self._set_aside[key] = elapsed() + SET_ASIDE_SECONDS
        finally:
            self._slots.release()

    async def _wait_for_store(self, key: str, error: StoreUnavailable) -> None:
        """Keep the slot for a moment: a worker that asked for the next one at once would spin through the queue."""
        log.warning("lease.not_taken", artifact=key[:16], error=str(error))
        await pause(self._stop, DATABASE_RETRY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    async def _take_and_work(self, key: str) -> None:
        """Raises StoreUnavailable: the lease could not be taken."""
        async with self._backbone.store.begin() as transaction:
            lease = await artifacts.take_lease(
                transaction, key, self._stage, owner=self._owner, seconds=self._lease_seconds
            )
        if lease is None:
            return
        fail_point(FailPoint.LEASE_TAKEN)
        self._backbone.relay.wake()
        with structlog.contextvars.bound_contextvars(
            artifact=lease.key[:16], kernel=lease.request.kernel, attempt=lease.attempt
        ):
            await self._work(lease)
        self._backbone.relay.wake()

    async def _work(self, lease: Lease) -> None:
        holder = Holder(store=self._backbone.store, lease=lease, seconds=self._lease_seconds)
        started = elapsed()
        log.info(f"{self._stage}.started", target=lease.request.target)
        working = asyncio.ensure_future(self._perform(lease, holder))
        losing = asyncio.create_task(self._keep(holder))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({working, losing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await self._abandon(lease, working, is_lost=losing.done())
                return
        finally:
            working.cancel()
            losing.cancel()
            stopping.cancel()
        fail_point(FailPoint.STAGE_PERFORMED)
        await self._record(lease, working, elapsed() - started)

    async def _record(self, lease: Lease, working: asyncio.Future[Built | Signed], seconds: float) -> None:
        """Record the result or the failure, trying until it is written or the lease would have run out."""
        try:
            result: Result = working.result()
        except LeaseLost:
            log.warning("lease.lost")
            return
        except Exception as error:  # noqa: BLE001 - whatever went wrong belongs on the artifact, not only in the log
            result = failure_of(error, lease.attempt, jitter=random.random())  # noqa: S311 - no secret
            log.warning(
                f"{self._stage}.failed",
                reason=result.reason,
                error=result.message,
                retry=result.retry_seconds,
            )
            STAGES.labels(self._stage, "failed").inc()
        else:
            log.info(f"{self._stage}.finished", seconds=round(seconds, 2))
            STAGES.labels(self._stage, "done").inc()
            SECONDS.labels(self._stage).observe(seconds)
        deadline = elapsed() + self._lease_seconds
        while elapsed() < deadline:
            try:
                async with self._backbone.store.begin() as transaction:
                    if not await artifacts.finish(transaction, lease, result, seconds=seconds):
                        log.warning("lease.lost")
            except StoreUnavailable as error:
                log.warning("result.not_recorded", error=str(error))
                await asyncio.sleep(DATABASE_RETRY_SECONDS)
            else:
                fail_point(FailPoint.RESULT_RECORDED)
                return

    async def _abandon(self, lease: Lease, working: asyncio.Future[Built | Signed], *, is_lost: bool) -> None:
        """Stop the work; give the lease back if it is still ours."""
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await working
        if is_lost:
            log.warning("lease.lost")
            return
        log.info(f"{self._stage}.given_back")
        with contextlib.suppress(StoreUnavailable):  # it runs out by itself
            async with self._backbone.store.begin() as transaction:
                await artifacts.release_lease(transaction, lease)
            fail_point(FailPoint.LEASE_RELEASED)

    async def _keep(self, holder: Holder) -> None:
        """Extend the lease while the work goes on; returns when it is lost."""
        extended, interval = elapsed(), self._lease_seconds / 3
        while (left := extended + self._lease_seconds - elapsed()) > 0:
            await asyncio.sleep(min(interval, left))
            sent = elapsed()
            try:
                async with asyncio.timeout(interval):
                    await holder.confirm()
                extended = sent
            except LeaseLost:
                return
            except (StoreUnavailable, TimeoutError) as error:
                log.warning("lease.not_extended", error=repr(error))
            except Exception:
                log.exception("lease.not_extended")  # it may pass before the deadline does


def failure_of(error: Exception, attempt: int, *, jitter: float) -> Failure:
    """What an exception means for the artifact. Pure.

    Args:
        error: what the work raised.
        attempt: 1 for the first.
        jitter: a random number from 0 to 1.
    """
    log_tail = getattr(error, "log_tail", None)
    if isinstance(error, HubError):
        is_final = isinstance(error, PermanentError)
        return Failure(
            reason=error.reason,
            message=str(error),
            retry_seconds=None if is_final else retry_delay(attempt, jitter=jitter),
            log_tail=log_tail,
            lacks_source=isinstance(error, ImageMissing),
        )
    return Failure(
        reason="InternalError",
        message=storable_text(f"{type(error).__name__}: {error}"),
        retry_seconds=retry_delay(attempt, jitter=jitter),
    )

"""Takes requests from a queue and works on them under leases.

Whatever happens, the artifact moves on: a result is recorded under the fence; a failure is recorded with its reason
and the time of the next try; a worker that dies lets its lease run out; one that is stopped gives it back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import structlog
from prometheus_client import Counter, Histogram
from sqlalchemy.exc import SQLAlchemyError

from shared.bus.jetstream import Done, Retry, Verdict
from shared.domain.artifact import Stage
from shared.domain.backoff import retry_delay
from shared.domain.errors import HubError, PermanentError
from shared.events.messages import UnreadableMessage, decode_requested
from shared.relay.backbone import Backbone
from shared.store import artifacts
from shared.store.artifacts import Failure, Lease
from shared.store.database import Connection

log = structlog.get_logger()

DATABASE_RETRY_SECONDS = 1.0
STAGES = Counter("kmmhub_stages_total", "Stages ended, by stage and result.", ["stage", "result"])
SECONDS = Histogram(
    "kmmhub_stage_seconds",
    "Time of a stage, by stage.",
    ["stage"],
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 1800),
)

Finish: TypeAlias = Callable[[Connection, Lease, float], Awaitable[bool]]
"""Records a result in an open transaction, given the seconds it took; false if the lease was lost."""

Perform: TypeAlias = Callable[[Lease, "Holder"], Awaitable[Finish]]
"""Does a stage's work. Raises HubError: permanent ones end the artifact in `failed`, others are tried again."""


class LeaseLost(HubError):
    """Another worker holds the artifact now; whatever was done here counts for nothing."""

    reason = "LeaseLost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Lets the work ask whether its lease still holds, before an effect that others see."""

    backbone: Backbone
    lease: Lease
    seconds: float

    async def confirm(self) -> None:
        """Extend the lease. Raises LeaseLost."""
        async with self.backbone.engine.begin() as connection:
            if not await artifacts.extend_lease(connection, self.lease, seconds=self.seconds):
                raise LeaseLost(f"the lease of artifact {self.lease.key[:16]} was lost")


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
        stop: asyncio.Event,
    ) -> None:
        self._stage = stage
        self._perform = perform
        self._backbone = backbone
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._stop = stop

    async def handle(self, payload: bytes) -> Verdict:
        """Work on one request, if it is still due and nobody else does."""
        try:
            request = decode_requested(payload)
        except UnreadableMessage as error:
            log.warning("message.unreadable", error=str(error))
            return Done()
        try:
            async with self._backbone.engine.begin() as connection:
                lease = await artifacts.take_lease(
                    connection, request.artifact, self._stage, owner=self._owner, seconds=self._lease_seconds
                )
        except (SQLAlchemyError, OSError) as error:
            log.warning("lease.not_taken", artifact=request.artifact[:16], error=str(error))
            return Retry(seconds=DATABASE_RETRY_SECONDS)
        if lease is not None:
            self._backbone.relay.wake()
            with structlog.contextvars.bound_contextvars(
                artifact=lease.key[:16], kernel=lease.request.kernel, attempt=lease.attempt
            ):
                await self._work(lease)
            self._backbone.relay.wake()
        return Done()

    async def _work(self, lease: Lease) -> None:
        holder = Holder(backbone=self._backbone, lease=lease, seconds=self._lease_seconds)
        started = time.monotonic()
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
            losing.cancel()
            stopping.cancel()
        await self._record(lease, working, time.monotonic() - started)

    async def _record(self, lease: Lease, working: asyncio.Future[Finish], seconds: float) -> None:
        """Record the result or the failure, trying until it is written or the lease would have run out."""
        try:
            finish = working.result()
        except LeaseLost:
            log.warning("lease.lost")
            return
        except Exception as error:  # noqa: BLE001 - whatever went wrong belongs on the artifact, not only in the log
            failure = failure_of(error, lease.attempt, jitter=random.random())  # noqa: S311 - no secret
            log.warning(
                f"{self._stage}.failed",
                reason=failure.reason,
                error=failure.message,
                retry=failure.retry_seconds,
            )
            STAGES.labels(self._stage, "failed").inc()

            async def finish(connection: Connection, lease: Lease, _: float) -> bool:
                return await artifacts.fail(connection, lease, failure)

        else:
            log.info(f"{self._stage}.finished", seconds=round(seconds, 2))
            STAGES.labels(self._stage, "done").inc()
            SECONDS.labels(self._stage).observe(seconds)
        deadline = time.monotonic() + self._lease_seconds
        while time.monotonic() < deadline:
            try:
                async with self._backbone.engine.begin() as connection:
                    if not await finish(connection, lease, seconds):
                        log.warning("lease.lost")
            except (SQLAlchemyError, OSError) as error:
                log.warning("result.not_recorded", error=str(error))
                await asyncio.sleep(DATABASE_RETRY_SECONDS)
            else:
                return

    async def _abandon(self, lease: Lease, working: asyncio.Future[Finish], *, is_lost: bool) -> None:
        """Stop the work; give the lease back if it is still ours."""
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await working
        if is_lost:
            log.warning("lease.lost")
            return
        log.info(f"{self._stage}.given_back")
        with contextlib.suppress(SQLAlchemyError, OSError):  # it runs out by itself
            async with self._backbone.engine.begin() as connection:
                await artifacts.release_lease(connection, lease)

    async def _keep(self, holder: Holder) -> None:
        """Extend the lease while the work goes on; returns when it is lost."""
        extended = time.monotonic()
        while time.monotonic() < extended + self._lease_seconds:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                await holder.confirm()
                extended = time.monotonic()
            except LeaseLost:
                return
            except (SQLAlchemyError, OSError) as error:
                log.warning("lease.not_extended", error=str(error))


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
        )
    return Failure(
        reason="InternalError",
        message=f"{type(error).__name__}: {error}",
        retry_seconds=retry_delay(attempt, jitter=jitter),
    )

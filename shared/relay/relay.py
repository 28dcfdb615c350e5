"""Publishes what the outbox holds. Any number of relays may run: a row is locked while it is published."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from shared.bus.port import BusUnavailable, MessageBus
from shared.runtime.clock import elapsed
from shared.runtime.fail_point import FailPoint, fail_point
from shared.runtime.pause import pause
from shared.store.port import OutboxRow, Store, StoreUnavailable

log = structlog.get_logger()

BATCH = 200
"""Rows of one subject prefix that are published at once."""
IDLE_SECONDS = 1.0
"""A row whose process died before it could wake its relay waits at most this long."""


STALE_SECONDS = 10.0
"""A relay that has not looked at the outbox for so long hangs."""


class Relay:
    """Drains the outbox by existence: lock, publish, delete, commit.

    A crash in between publishes a row again with the same message id, which the stream de-duplicates and the
    handlers tolerate.
    """

    def __init__(self, store: Store, bus: MessageBus, *, subjects: Sequence[str] = ("",)) -> None:
        """`subjects`: how the subjects of the rows begin that this relay may publish."""
        self._store = store
        self._bus = bus
        self._subjects = subjects
        self._wake = asyncio.Event()
        self._drained: float | None = None

    @property
    def is_draining(self) -> bool:
        """Whether a look at the outbox went well not long ago: database and bus are there."""
        return self._drained is not None and elapsed() - self._drained < STALE_SECONDS

    def wake(self) -> None:
        """Something was just committed to the outbox: publish without waiting for the next look."""
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set; whatever is left then is the next relay's."""
        while not stop.is_set():
            self._wake.clear()
            try:
                if await self._drain_once() >= BATCH:
                    continue
            except StoreUnavailable as error:
                self._drained = None
                log.warning("relay.failed", error=str(error))
                self._wake.clear()
            await pause(self._wake, IDLE_SECONDS)

    async def _drain_once(self) -> int:
        """Publish what waits. Returns how many rows went; what the bus does not take stays for the next look."""
        async with self._store.begin() as transaction:
            # Each stream's messages for themselves: however many one refuses, they hide no others.
            rows = [
                row
                for prefix in self._subjects
                for row in await transaction.lock_outbox(limit=BATCH, subjects=[prefix])
            ]
            if not rows:
                self._drained = elapsed()
                return 0
            fail_point(FailPoint.OUTBOX_LOCKED)
            refusals = await asyncio.gather(*(self._publish(row) for row in rows))
            # A stream that is gone holds back its own messages, not the others'.
            published = [row.id for row, refusal in zip(rows, refusals, strict=True) if refusal is None]
            await transaction.delete_from_outbox(published)
            fail_point(FailPoint.OUTBOX_DELETED)
        fail_point(FailPoint.OUTBOX_COMMITTED)
        waiting = [refusal for refusal in refusals if refusal is not None]
        if waiting:
            log.warning("relay.failed", error=waiting[0], waiting=len(waiting))
        self._drained = None if waiting else elapsed()
        return len(published)

    async def _publish(self, row: OutboxRow) -> str | None:
        """None once the bus has the message, else why not."""
        try:
            await self._bus.publish(row.subject, row.payload, message_id=row.message_id)
            fail_point(FailPoint.OUTBOX_PUBLISHED)
        except BusUnavailable as error:
            return str(error)
        return None

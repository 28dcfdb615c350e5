"""Publishes what the outbox holds. Any number of relays may run: a row is locked while it is published."""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from sqlalchemy.exc import SQLAlchemyError

from shared.bus.jetstream import Bus, BusUnavailable
from shared.runtime.pause import pause
from shared.store import outbox
from shared.store.database import Engine

log = structlog.get_logger()

BATCH = 200
IDLE_SECONDS = 1.0
"""A row whose process died before it could wake its relay waits at most this long."""


class Relay:
    """Drains the outbox by existence: lock, publish, delete, commit.

    A crash in between publishes a row again with the same message id, which the stream de-duplicates and the
    handlers tolerate.
    """

    def __init__(self, engine: Engine, bus: Bus) -> None:
        self._engine = engine
        self._bus = bus
        self._wake = asyncio.Event()
        self.is_draining = False
        """Whether the last look at the outbox went well: database and bus are there."""

    def wake(self) -> None:
        """Something was just committed to the outbox: publish without waiting for the next look."""
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set; whatever is left then is the next relay's."""
        while not stop.is_set():
            self._wake.clear()
            try:
                drained = await self._drain_once()
                self.is_draining = True
                if drained == BATCH:
                    continue
            except BusUnavailable as error:
                self.is_draining = False
                log.warning("relay.failed", error=str(error))
                # One stream that is gone, and whose workers are away, must not hold back the others' messages.
                with contextlib.suppress(BusUnavailable):
                    await self._bus.ensure_topology()
                self._wake.clear()
            except (SQLAlchemyError, OSError) as error:
                self.is_draining = False
                log.warning("relay.failed", error=f"Postgres cannot be used: {error}; is DATABASE_URL right?")
                self._wake.clear()
            await pause(self._wake, IDLE_SECONDS)

    async def _drain_once(self) -> int:
        async with self._engine.begin() as connection:
            rows = await outbox.lock_rows(connection, limit=BATCH)
            await asyncio.gather(
                *(self._bus.publish(row.subject, row.payload, message_id=row.message_id) for row in rows)
            )
            await outbox.delete_rows(connection, [row.id for row in rows])
        return len(rows)

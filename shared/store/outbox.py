"""The outbox: announcements that commit together with the fact they announce."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import uuid4

import sqlalchemy as sa

from shared.events.messages import Changed, Requested, encode
from shared.store.database import Connection
from shared.store.tables import outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """One announcement that waits to be published."""

    id: int
    subject: str
    message_id: str
    payload: bytes


async def announce(connection: Connection, messages: Iterable[Changed | Requested]) -> None:
    """Put messages into the outbox, in the caller's transaction."""
    rows = [
        {
            "subject": message.subject,
            "message_id": message.message_id if isinstance(message, Requested) else uuid4().hex,
            "payload": encode(message),
        }
        for message in messages
    ]
    if rows:
        await connection.execute(sa.insert(outbox), rows)


async def lock_rows(connection: Connection, *, limit: int) -> list[OutboxRow]:
    """Take rows that no other relay holds.

    Draining by existence, not by "id greater than the last": ids commit out of order.
    """
    rows = await connection.execute(
        sa.select(outbox.c.id, outbox.c.subject, outbox.c.message_id, outbox.c.payload)
        .order_by(outbox.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [OutboxRow(**row) for row in rows.mappings()]


async def delete_rows(connection: Connection, ids: Sequence[int]) -> None:
    """Forget rows that were published."""
    if ids:
        await connection.execute(sa.delete(outbox).where(outbox.c.id.in_(ids)))


async def count_rows(connection: Connection) -> int:
    """How many announcements wait."""
    return (await connection.execute(sa.select(sa.func.count()).select_from(outbox))).scalar_one()

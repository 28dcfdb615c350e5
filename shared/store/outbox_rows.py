"""Statements on the outbox and on dead letters."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import RowMapping
from sqlalchemy.dialects.postgresql import insert

from shared.store.database import Connection, chunks
from shared.store.port import MAX_DEAD_LETTERS, Announcement, DeadLetter, OutboxRow
from shared.store.tables import dead_letters, outbox

_LETTER = [column for column in dead_letters.c if column.name != "payload_sha256"]


class OutboxStatements:
    """`shared.store.port.Outbox` on Postgres."""

    _connection: Connection

    async def announce(self, announcements: Iterable[Announcement]) -> None:
        """Store announcements in this transaction."""
        rows = [
            {
                "subject": one.subject,
                "message_id": one.message_id if one.message_id is not None else uuid4().hex,
                "payload": one.payload,
            }
            for one in announcements
        ]
        for chunk in chunks(rows):
            await self._connection.execute(sa.insert(outbox), chunk)

    async def lock_outbox(self, *, limit: int, subjects: Sequence[str] = ("",)) -> list[OutboxRow]:
        """Some rows that no other relay holds, in the order of their ids."""
        rows = await self._connection.execute(
            sa.select(outbox.c.id, outbox.c.subject, outbox.c.message_id, outbox.c.payload)
            .where(sa.or_(*(outbox.c.subject.startswith(prefix, autoescape=True) for prefix in subjects)))
            .order_by(outbox.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return [OutboxRow(**row) for row in rows.mappings()]

    async def delete_from_outbox(self, ids: Collection[int]) -> None:
        """Forget rows that were published."""
        if ids:
            await self._connection.execute(sa.delete(outbox).where(outbox.c.id.in_(ids)))

    async def count_outbox(self) -> int:
        """How many announcements wait."""
        return (await self._connection.execute(sa.select(sa.func.count()).select_from(outbox))).scalar_one()

    async def bury(self, *, queue: str, subject: str, payload: bytes, cause: str, deliveries: int) -> int:
        """Keep a message; the same one again only counts its deliveries."""
        statement = insert(dead_letters).values(
            queue=queue,
            subject=subject,
            payload=payload,
            payload_sha256=hashlib.sha256(payload).hexdigest(),
            cause=cause.replace("\0", "\N{REPLACEMENT CHARACTER}"),
            deliveries=deliveries,
        )
        newest = {name: statement.excluded[name] for name in ("cause", "deliveries")}
        row = await self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=["queue", "subject", "payload_sha256"], set_=newest
            ).returning(dead_letters.c.id)
        )
        number: int = row.scalar_one()
        await self._forget_oldest_letters()
        return number

    async def _forget_oldest_letters(self) -> None:
        newest_too_many = (
            sa.select(dead_letters.c.id)
            .order_by(dead_letters.c.id.desc())
            .offset(MAX_DEAD_LETTERS)
            .limit(1)
            .scalar_subquery()
        )
        # Somebody else may be at it, too: neither waits for the other.
        oldest = (
            sa.select(dead_letters.c.id)
            .where(dead_letters.c.id <= newest_too_many)
            .with_for_update(skip_locked=True)
        )
        await self._connection.execute(sa.delete(dead_letters).where(dead_letters.c.id.in_(oldest)))

    async def count_dead_letters(self) -> int:
        """How many messages wait for a person."""
        return (
            await self._connection.execute(sa.select(sa.func.count()).select_from(dead_letters))
        ).scalar_one()

    async def read_dead_letters(self) -> list[DeadLetter]:
        """All of them, oldest first."""
        rows = await self._connection.execute(sa.select(*_LETTER).order_by(dead_letters.c.id))
        return [_letter(row) for row in rows.mappings()]

    async def take_dead_letters(self, ids: Collection[int]) -> list[DeadLetter]:
        """Remove some and return those that were there."""
        if not ids:
            return []
        rows = await self._connection.execute(
            sa.delete(dead_letters).where(dead_letters.c.id.in_(ids)).returning(*_LETTER)
        )
        return sorted((_letter(row) for row in rows.mappings()), key=lambda letter: letter.id)


def _letter(row: RowMapping) -> DeadLetter:
    fields: dict[str, Any] = {str(key): value for key, value in row.items()}
    return DeadLetter(**fields)

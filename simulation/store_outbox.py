"""The statements of `shared.store.port.Outbox` on rows in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from shared.store.port import MAX_DEAD_LETTERS, Announcement, DeadLetter, OutboxRow
from simulation.store_access import RowAccess, row_keys

OUTBOX, DEAD_LETTERS = "outbox", "dead_letters"


class OutboxRows(RowAccess):
    """As `shared.store.port.Outbox`."""

    async def announce(self, announcements: Iterable[Announcement]) -> None:
        """Store announcements in this transaction."""
        messages = list(announcements)

        def run() -> None:
            for one in messages:
                number = self._next_id()
                row = OutboxRow(
                    id=number,
                    subject=one.subject,
                    message_id=one.message_id if one.message_id is not None else f"announcement-{number}",
                    payload=one.payload,
                )
                self._put(OUTBOX, number, row)

        if messages:
            await self._run("announce", run)

    async def lock_outbox(self, *, limit: int, subjects: Sequence[str] = ("",)) -> list[OutboxRow]:
        """Some rows that no other relay holds, in the order of their ids."""

        def run() -> list[OutboxRow]:
            free = [
                row
                for number, row in sorted(self._all(OUTBOX).items())
                if self._is_free((OUTBOX, number)) and row.subject.startswith(tuple(subjects))
            ][:limit]
            for row in free:
                self._take((OUTBOX, row.id))
            return free

        return await self._run("lock_outbox", run)

    async def delete_from_outbox(self, ids: Collection[int]) -> None:
        """Forget rows that were published."""

        def run() -> None:
            for number in ids:
                self._put(OUTBOX, number, None)

        if ids:
            await self._run("delete_from_outbox", run, hold=row_keys(OUTBOX, sorted(ids)))

    async def count_outbox(self) -> int:
        """How many announcements wait."""
        return await self._run("count_outbox", lambda: len(self._all(OUTBOX)))

    async def bury(self, *, queue: str, subject: str, payload: bytes, cause: str, deliveries: int) -> int:
        """Keep a message; the same one again only counts its deliveries."""
        key = (queue, subject, payload)

        def run() -> int:
            known: DeadLetter | None = self._get(DEAD_LETTERS, key)
            letter = DeadLetter(
                id=known.id if known else self._next_id(),
                queue=queue,
                subject=subject,
                payload=payload,
                cause=cause,
                deliveries=deliveries,
                died_at=known.died_at if known else self._began,
            )
            self._put(DEAD_LETTERS, key, letter)
            letters = sorted(self._all(DEAD_LETTERS).items(), key=lambda item: item[1].id, reverse=True)
            for oldest, _ in letters[MAX_DEAD_LETTERS:]:
                if self._is_free((DEAD_LETTERS, oldest)):
                    self._take((DEAD_LETTERS, oldest))
                    self._put(DEAD_LETTERS, oldest, None)
            return letter.id

        return await self._run("bury", run, hold=[(DEAD_LETTERS, key)])

    async def count_dead_letters(self) -> int:
        """How many messages wait for a person."""
        return await self._run("count_dead_letters", lambda: len(self._all(DEAD_LETTERS)))

    async def read_dead_letters(self) -> list[DeadLetter]:
        """All of them, oldest first."""
        return await self._run(
            "read_dead_letters",
            lambda: sorted(self._all(DEAD_LETTERS).values(), key=lambda letter: letter.id),
        )

    async def take_dead_letters(self, ids: Collection[int]) -> list[DeadLetter]:
        """Remove some and return those that were there."""

        def run() -> list[DeadLetter]:
            found = {key: letter for key, letter in self._all(DEAD_LETTERS).items() if letter.id in ids}
            for key in found:
                self._put(DEAD_LETTERS, key, None)
            return sorted(found.values(), key=lambda letter: letter.id)

        return await self._run("take_dead_letters", run)

"""Messages into the outbox: announcements that commit together with the fact they announce."""

from __future__ import annotations

from collections.abc import Iterable

from shared.events.messages import Changed, Requested, encode
from shared.store.port import Announcement, Outbox


async def announce(transaction: Outbox, messages: Iterable[Changed | Requested]) -> None:
    """Put messages into the outbox, in the caller's transaction."""
    await transaction.announce(
        Announcement(
            subject=message.subject,
            payload=encode(message),
            message_id=message.message_id if isinstance(message, Requested) else None,
        )
        for message in messages
    )

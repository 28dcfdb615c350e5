"""Who may do what on the bus, as data: one user per process, and for each the least that its work needs.

A service publishes what it announces itself, and pulls from its own queue. Nobody but the `streams` process makes or
changes streams, nor deletes the one that may have to be made anew, and nobody at all purges or reads one: messages are
received, never looked up. Each user
receives answers under an inbox of its own, because whoever may subscribe to a shared `_INBOX.>` reads the answers to
everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from shared.bus.topology import BUILDS, CHANGES, QUEUES, SIGNATURES, Queue
from shared.events.messages import SUBJECT_ROOT, Kind


class Identity(StrEnum):
    """A user of the bus; named as its service."""

    WATCHER = "watcher"
    DISPATCHER = "dispatcher"
    BUILDER = "builder"
    SIGNER = "signer"
    STREAMS = "streams"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Subjects, with NATS' wildcards, that a user may publish and subscribe to; all others are refused."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


_ARTIFACT_CHANGED = f"{SUBJECT_ROOT}.changed.{Kind.ARTIFACT}.>"

ANNOUNCED: Mapping[Identity, tuple[str, ...]] = {
    Identity.WATCHER: CHANGES.subjects,
    # Everything: it announces again what was lost, and its relay drains for whoever is away.
    Identity.DISPATCHER: tuple(subject for queue in QUEUES for subject in queue.subjects),
    # Their own requests, too: an artifact that is given back at shutdown is announced for the next worker.
    Identity.BUILDER: (_ARTIFACT_CHANGED, *BUILDS.subjects, *SIGNATURES.subjects),
    Identity.SIGNER: (_ARTIFACT_CHANGED, *SIGNATURES.subjects),
    Identity.STREAMS: (),
}
"""What each user may announce; a relay takes no other rows from the outbox."""

CONSUMED: Mapping[Identity, Queue] = {
    Identity.DISPATCHER: CHANGES,
    Identity.BUILDER: BUILDS,
    Identity.SIGNER: SIGNATURES,
}
"""The queue that each user drains."""


def inbox_prefix(name: str) -> str:
    """What the subjects begin with under which a user receives answers."""
    return f"_INBOX_{name}"


def announced_prefixes(identity: Identity) -> tuple[str, ...]:
    """What the subjects begin with that a user may announce, for a database that knows no wildcards."""
    return tuple(subject.removesuffix(">") for subject in ANNOUNCED[identity])


def permissions(identity: Identity) -> Permissions:
    """Everything that a user may do.

    Subjects of the JetStream API are those of the server's reference ("NATS API Reference", and ADR-1 for
    acknowledgements).
    """
    return Permissions(
        publish=(*ANNOUNCED[identity], *_consuming(CONSUMED.get(identity)), *_administering(identity)),
        subscribe=(f"{inbox_prefix(identity)}.>",),
    )


def _consuming(queue: Queue | None) -> tuple[str, ...]:
    """Pull the next messages, and acknowledge them."""
    if queue is None:
        return ()
    name = f"{queue.stream}.{queue.consumer}"
    return f"$JS.API.CONSUMER.MSG.NEXT.{name}", f"$JS.ACK.{name}.>"


def _administering(identity: Identity) -> tuple[str, ...]:
    """Look at our streams and consumers, make them, and change them; not purge them.

    The stream of changes may be deleted: it was no work queue once, and is replaced where it still is none.
    """
    if identity is not Identity.STREAMS:
        return ()
    return f"$JS.API.STREAM.DELETE.{CHANGES.stream}", *(
        subject
        for queue in QUEUES
        for subject in (
            f"$JS.API.STREAM.INFO.{queue.stream}",
            f"$JS.API.STREAM.CREATE.{queue.stream}",
            f"$JS.API.STREAM.UPDATE.{queue.stream}",
            f"$JS.API.CONSUMER.INFO.{queue.stream}.{queue.consumer}",
            f"$JS.API.CONSUMER.DURABLE.CREATE.{queue.stream}.{queue.consumer}",
        )
    )

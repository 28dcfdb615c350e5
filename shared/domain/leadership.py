"""Who leads, by a Lease (coordination.k8s.io/v1) that the candidates write in turn. Pure.

The rules are those of client-go (tools/leaderelection): whoever holds the Lease renews it; another candidate takes it
over once it has seen no change of it for the lease's time *by its own monotonic clock*; a holder that could not renew
it stops leading before that, by *its* monotonic clock. The times of day inside of a Lease are for people: clocks of two
machines are never compared. Two candidates never lead at once for as long as no monotonic clock runs faster than
another by more than lease_seconds / renew_seconds, which is 1.5. Lengths are in seconds of the candidate's own clock.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How long leadership lasts; everything else follows from it.

    Attributes:
        lease_seconds: a Lease that nobody renewed for so long is free. The proportions are client-go's defaults.

    Raises:
        ValueError: less than a second, which a Lease cannot say.
    """

    lease_seconds: int = 15

    def __post_init__(self) -> None:
        if self.lease_seconds < 1:
            raise ValueError(f"a lease lasts at least a second, not {self.lease_seconds}")

    @property
    def renew_seconds(self) -> float:
        """A holder that last renewed so long ago leads no more."""
        return self.lease_seconds * 2 / 3

    @property
    def renew_interval(self) -> float:
        """The holder renews so often."""
        return self.lease_seconds * 2 / 15

    @property
    def poll_interval(self) -> float:
        """The others look so often: what a takeover after a clean stop waits at most."""
        return self.lease_seconds / 15

    @property
    def request_seconds(self) -> float:
        """One attempt to read and write the Lease takes no longer: a holder has two within its deadline."""
        return self.lease_seconds * 2 / 9


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """What a Lease says.

    Attributes:
        holder: identity of the one that leads; empty if nobody does.
        seconds: what the holder promised; None if it did not.
        transitions: how often the holder changed.
        acquired: when the holder became it, as written by it.
        version: the resourceVersion; every write makes another.
        is_stored: false once the Lease was deleted.
    """

    holder: str = ""
    seconds: int | None = None
    transitions: int = 0
    acquired: str | None = None
    version: str = ""
    is_stored: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A record, and since when it has been seen like this, by the reader's own clock."""

    record: LeaseRecord
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquire:
    """Become the holder. `creates`: the Lease does not exist."""

    transitions: int
    creates: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """Stay the holder. `creates`: the Lease was deleted meanwhile."""

    transitions: int
    acquired: str | None
    creates: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Another one holds the Lease: look again after so many seconds."""

    seconds: float
    holder: str


Step: TypeAlias = "Acquire | Renew | Wait"


def read_lease(lease: Mapping[str, Any]) -> LeaseRecord:
    """The record in a Lease as the API server gives it; whatever is not set counts as nobody's."""
    spec = lease.get("spec") or {}
    return LeaseRecord(
        holder=spec.get("holderIdentity") or "",
        seconds=spec.get("leaseDurationSeconds"),
        transitions=spec.get("leaseTransitions") or 0,
        acquired=spec.get("acquireTime"),
        version=lease["metadata"]["resourceVersion"],
    )


def observe(seen: Seen | None, record: LeaseRecord | None, now: float) -> Seen | None:
    """What is known after a look at the Lease.

    Args:
        seen: what was known before.
        record: what was read; None if there is no Lease.
        now: own clock, not earlier than when the answer came.

    Returns:
        None as long as no Lease was ever seen. One that vanished counts as changed, not as free: its holder may
        not know it yet. (Of a Lease that is made and deleted between two looks nobody can know.)
    """
    if record is None:
        if seen is None:
            return None
        record = replace(seen.record, is_stored=False)
    return seen if seen is not None and seen.record == record else Seen(record=record, at=now)


def next_step(seen: Seen | None, *, identity: str, now: float, terms: Terms) -> Step:
    """What a candidate does, given what it knows of the Lease.

    Args:
        seen: as `observe` returned it.
        identity: its own, which no other candidate and no earlier life of it has.
        now: own clock.
        terms: the candidate's own; another holder's promise counts for its Lease.
    """
    if seen is None:
        return Acquire(transitions=0, creates=True)
    record = seen.record
    creates = not record.is_stored
    if record.holder == identity:
        return Renew(transitions=record.transitions, acquired=record.acquired, creates=creates)
    free_at = seen.at + (record.seconds or terms.lease_seconds)
    if not record.holder or now >= free_at:
        return Acquire(transitions=record.transitions + 1, creates=creates)
    return Wait(seconds=min(terms.poll_interval, free_at - now), holder=record.holder)


def held_spec(step: Acquire | Renew, *, identity: str, terms: Terms, wall: dt.datetime) -> dict[str, Any]:
    """The spec that makes `identity` the holder. `wall` is the time of day, in UTC, for people."""
    renewed = micro_time(wall)
    acquired = step.acquired if isinstance(step, Renew) else None
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": terms.lease_seconds,
        "acquireTime": acquired or renewed,
        "renewTime": renewed,
        "leaseTransitions": step.transitions,
    }


def released_spec(wall: dt.datetime) -> dict[str, Any]:
    """The spec of a Lease that its holder gives up; the count of transitions stays."""
    now = micro_time(wall)
    return {"holderIdentity": "", "leaseDurationSeconds": 1, "acquireTime": now, "renewTime": now}


def micro_time(wall: dt.datetime) -> str:
    """A time in UTC as the API writes it (MicroTime: RFC 3339 with exactly six digits of the second)."""
    return wall.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

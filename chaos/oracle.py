"""The safety properties S1 to S9 as functions of what was seen. Pure: each yields the breaches that it finds."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from chaos.audit import Change
from chaos.inputs import Moment, could_be_wanted

WORKING = {"building": "wanted", "signing": "built"}
"""States under a lease, with the state in which an artifact waits for it."""

UNWANTED = "unwanted"
"""Nobody needs it any more; whoever held it has lost it."""

ENDED = {"ready", "failed", UNWANTED}
RESULTS = ("state", "source", "digest", "signed_by", "reason")
"""Columns that only the holder of a lease writes while it is held."""

MAX_ATTEMPTS = 40
"""Tries of one stage: more than killed workers and a backoff of seconds can make of a run."""

WORKER_DIED = "WorkerDied"
"""Reason of an artifact that was put back because its holders vanished too often; whoever sees it does it."""

DISPATCHER = "kmmhub-dispatcher"
PROGRAMS = {"building": "kmmhub-builder", "signing": "kmmhub-signer"}

MODULE_LABEL = "kmm.node.kubernetes.io/managedclustermodule.name"
PERMISSIONS_WORK = "kmm-hub-permissions"
PERMISSIONS_LABELS = {"app.kubernetes.io/managed-by": "kmm-hub"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A property that did not hold: its name, what was seen, where, and when (seconds of the run)."""

    invariant: str
    what: str
    where: str
    when: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A build as its builder's log tells it; `until` is None while it goes on. Seconds of the epoch."""

    artifact: str
    service: str
    since: float
    until: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """A ManifestWork as the API server stores it.

    Attributes:
        served: kernels with their images.
        when: when it was seen, in seconds of the run.
    """

    cluster: str
    name: str
    labels: Mapping[str, str]
    served: Mapping[str, str]
    when: float

    @property
    def where(self) -> str:
        """Its place, for people."""
        return f"ManifestWork {self.cluster}/{self.name}"


def lease_breaches(change: Change, writer: int | None, *, when: float) -> Iterator[Breach]:
    """S1, S2 and S7 of one change of an artifact.

    Args:
        change: of table `artifacts`.
        writer: the process that wrote it, if known.
        when: seconds of the run.

    A lease is taken only from an artifact that waits and is due, or whose lease ran out, and raises the fence by
    one. While a lease is held, only its holder writes a result, and after it is lost the former holder none.
    """
    before, after = change.before, change.after
    where = f"artifact {change.row['key'][:16]} ({change.row['target']})"
    if before is None or after is None:
        return
    step = after["fence"] - before["fence"]
    if step not in {0, 1}:
        what = f"the fence went from {before['fence']} to {after['fence']}"
        yield Breach(invariant="S2 stale fence", what=what, where=where, when=when)
    if step == 1 and after["state"] == UNWANTED:
        if change.application != DISPATCHER:
            what = f"{change.application} dropped it"
            yield Breach(invariant="S2 stale fence", what=what, where=where, when=when)
    elif step == 1:
        yield from _taking_breaches(change, where, when)
    elif (
        before["state"] in WORKING
        and any(before[name] != after[name] for name in RESULTS)
        and not _is_put_back(change)
    ):
        yield from _result_breaches(change, writer, where, when)
    elif before["state"] not in WORKING and after["state"] in WORKING:
        what = f"it went to {after['state']} without a new fence"
        yield Breach(invariant="S2 stale fence", what=what, where=where, when=when)
    elif before["state"] in ENDED and after["state"] in ENDED and before["digest"] != after["digest"]:
        what = f"its digest changed from {before['digest']} to {after['digest']} when nobody held it"
        yield Breach(invariant="S2 stale fence", what=what, where=where, when=when)
    if after["attempts"] > MAX_ATTEMPTS:
        what = f"{after['attempts']} attempts of one stage"
        yield Breach(invariant="S7 attempts bounded", what=what, where=where, when=when)


def _is_put_back(change: Change) -> bool:
    """Whether the artifact of a holder that vanished waits, or has failed, now: its lease had run out."""
    before, after = change.before, change.after
    if before is None or after is None or before["state"] not in WORKING:
        return False
    has_run_out = datetime.fromisoformat(before["not_before"]) <= change.began
    is_told = after["reason"] == WORKER_DIED and after["state"] in {WORKING[before["state"]], "failed"}
    return (
        has_run_out
        and is_told
        and (after["fence"], after["attempts"]) == (before["fence"], before["attempts"])
    )


def _taking_breaches(change: Change, where: str, when: float) -> Iterator[Breach]:
    before, after = change.before, change.after
    assert before is not None
    assert after is not None
    is_early = datetime.fromisoformat(before["not_before"]) > change.began
    if before["state"] in WORKING and is_early:
        what = f"{after['lease_owner']} took the lease that {before['lease_owner']} still held"
        yield Breach(invariant="S1 one live build", what=what, where=where, when=when)
    elif is_early:
        what = f"{after['lease_owner']} took it before its pause was over ({before['not_before']})"
        yield Breach(invariant="S7 attempts bounded", what=what, where=where, when=when)
    if after["state"] not in WORKING or before["state"] not in {after["state"], WORKING[after["state"]]}:
        what = f"a lease was taken from {before['state']} to {after['state']}"
        yield Breach(invariant="S1 one live build", what=what, where=where, when=when)


def _result_breaches(change: Change, writer: int | None, where: str, when: float) -> Iterator[Breach]:
    before = change.before
    assert before is not None
    holder = int(str(before["lease_owner"]).rpartition("/")[2])
    is_other_program = change.application != PROGRAMS[before["state"]]
    if is_other_program or (writer is not None and writer != holder):
        by = f"{change.application} (process {writer})"
        what = f"{by} wrote a result under the lease of {before['lease_owner']}, fence {before['fence']}"
        yield Breach(invariant="S2 stale fence", what=what, where=where, when=when)


def builds_from(lines: Iterable[Mapping[str, Any]], service: str, deaths: Sequence[float]) -> list[Build]:
    """Builds in a builder's log; one that does not end there ended with its process.

    Args:
        lines: of the log, decoded.
        service: the builder.
        deaths: when its processes were ended, in seconds of the epoch.
    """
    open_builds: dict[str, float] = {}
    found: list[tuple[str, float, float | None]] = []
    ends = {"build.finished", "build.failed", "build.given_back", "lease.lost"}
    for line in lines:
        artifact, at = line.get("artifact"), _epoch(line)
        if artifact is None:
            continue
        if line["event"] == "build.started":
            if artifact in open_builds:
                found.append((artifact, open_builds[artifact], None))
            open_builds[artifact] = at
        elif line["event"] in ends and artifact in open_builds:
            since = open_builds.pop(artifact)
            found.append((artifact, since, at))
    found += [(artifact, since, None) for artifact, since in open_builds.items()]
    builds = []
    for artifact, since, until in found:
        death = min((one for one in deaths if one >= since), default=None)
        end = min((one for one in (until, death) if one is not None), default=None)
        builds.append(Build(artifact=artifact, service=service, since=since, until=end))
    return builds


def _epoch(line: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(str(line["timestamp"])).timestamp()


def concurrent_builds(
    builds: Sequence[Build], losses: Mapping[str, Sequence[float]], *, started: float
) -> Iterator[Breach]:
    """S1 by what builders say: two never work on the same artifact at once, unless the first had lost its lease.

    Args:
        builds: of all builders.
        losses: when leases were lost, by artifact, in seconds of the epoch.
        started: the beginning of the run, in seconds of the epoch.
    """
    by_artifact: dict[str, list[Build]] = {}
    for build in sorted(builds, key=lambda one: one.since):
        by_artifact.setdefault(build.artifact, []).append(build)
    for artifact, of_one in by_artifact.items():
        for first, second in pairwise(of_one):
            is_overlapping = first.until is None or second.since < first.until
            # Who begins anew says so a little after the loss.
            is_lost = any(first.since < at <= second.since for at in losses.get(artifact, ()))
            if is_overlapping and not is_lost:
                what = f"{second.service} began while {first.service} was at work"
                when = second.since - started
                where = f"artifact {artifact}"
                yield Breach(invariant="S1 one live build", what=what, where=where, when=when)


def is_lease_lost(change: Change) -> bool:
    """Whether a worker lost its lease: it ran out and it was taken or put back, or nobody needs it."""
    before, after = change.before, change.after
    if _is_put_back(change):
        return True
    if before is None or after is None or before["state"] not in WORKING or after["fence"] == before["fence"]:
        return False
    has_run_out = datetime.fromisoformat(before["not_before"]) <= change.began
    return has_run_out or after["state"] == UNWANTED


def place_breaches(posted: Posted, history: Sequence[Moment], *, lag: float) -> Iterator[Breach]:
    """S5 and S9 of a work that was just written: it is ours by its label, and the user wanted it lately."""
    if posted.name == PERMISSIONS_WORK:
        if dict(posted.labels) != PERMISSIONS_LABELS:
            what = f"its labels are {dict(posted.labels)}"
            yield Breach(invariant="S9 owner label", what=what, where=posted.where, when=posted.when)
        return
    if posted.labels.get(MODULE_LABEL) != posted.name:
        what = f"its label {MODULE_LABEL} is {posted.labels.get(MODULE_LABEL)!r}"
        yield Breach(invariant="S9 owner label", what=what, where=posted.where, when=posted.when)
    place, kernels = (posted.name, posted.cluster), frozenset(posted.served)
    why = could_be_wanted(history, place, kernels, since=posted.when - lag)
    if why:
        yield Breach(invariant="S5 selected with a claim", what=why, where=posted.where, when=posted.when)


def digest_breaches(posted: Posted, ready: Mapping[tuple[str, str], set[str]]) -> Iterator[Breach]:
    """S4: a work names digests, and each is that of an artifact that was ready.

    Args:
        posted: the work.
        ready: digests that artifacts had when they were ready, by kernel and the image's name.
    """
    for kernel, image in posted.served.items():
        name, _, digest = image.partition("@")
        if not digest:
            yield Breach(
                invariant="S4 digest of the artifact",
                what=f"kernel {kernel} gets {image}, which names no digest",
                where=posted.where,
                when=posted.when,
            )
        elif digest not in ready.get((kernel, name), set()):
            yield Breach(
                invariant="S4 digest of the artifact",
                what=f"kernel {kernel} gets {image}, which no artifact for it ever had",
                where=posted.where,
                when=posted.when,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A row that left the outbox, in seconds of the run from its arrival to its deletion."""

    message_id: str
    subject: str
    since: float
    until: float


def lost_announcements(
    gone: Iterable[Announcement], published: Mapping[str, float], deaf: Sequence[tuple[float, float]]
) -> tuple[int, list[Breach]]:
    """S6: what left the outbox was published.

    Args:
        gone: rows that were deleted.
        published: message ids heard on NATS.
        deaf: from when to when nobody could hear; rows of those times are not judged.

    Returns:
        How many rows were judged, and the breaches.
    """
    judged, breaches = 0, []
    for row in gone:
        if row.message_id in published:
            judged += 1
        elif not any(since <= row.until and row.since <= until for since, until in deaf):
            judged += 1
            what = f"{row.subject} was deleted, and never published"
            where = f"outbox, message {row.message_id}"
            breaches.append(Breach(invariant="S6 outbox published", what=what, where=where, when=row.until))
    return judged, breaches


def needles_of(secrets: Mapping[str, bytes]) -> dict[str, tuple[bytes, ...]]:
    """The forms in which each secret would be recognised: plain, in base64 at each offset, in hexadecimal."""
    return {name: tuple(_forms(content)) for name, content in secrets.items()}


def _forms(content: bytes) -> Iterator[bytes]:
    yield content
    yield content.hex().encode()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + content)
        # What stands at the ends depends on the neighbours.
        yield encoded[4 if offset else 0 : len(encoded) // 4 * 4 - 4]


def find_secrets(
    text: bytes, needles: Mapping[str, Sequence[bytes]], *, where: str, when: float
) -> list[Breach]:
    """S8: no secret's bytes in a text."""
    return [
        Breach(invariant="S8 no secrets", what=f"holds the {name}", where=where, when=when)
        for name, forms in needles.items()
        if any(form in text for form in forms)
    ]


HARMLESS = ("ConnectionError('unexpected connection_lost() call')",)
"""In errors that a library logs by itself and nobody can act on: asyncpg, when Postgres dies while it connects."""


def surprises(lines: Iterable[Mapping[str, Any]], service: str, *, started: float) -> Iterator[Breach]:
    """Log lines that no fault from outside explains: errors, and exceptions that nobody expected."""
    for line in lines:
        is_harmless = any(words in str(line["event"]) for words in HARMLESS)
        if (line.get("level") in {"error", "critical"} or "exception" in line) and not is_harmless:
            shown = {name: value for name, value in line.items() if name not in {"timestamp", "service"}}
            when = _epoch(line) - started if "timestamp" in line else 0.0
            yield Breach(invariant="no surprise", what=str(shown)[:2000], where=service, when=when)

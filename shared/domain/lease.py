"""How an artifact moves from one state to the next, under leases. Pure: the store locks, these rules decide.

A lease is a state with a deadline by the database's clock and a fencing number. Whoever takes a lease raises the
number; every later step of the holder names it, so that a worker that lost its lease changes nothing. Attempts are
counted on the artifact, because the bus may forget them.

`now` is always the database's clock. A step that does not apply is None.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import TypeAlias

from shared.domain.artifact import Artifact, ArtifactKey, ArtifactRequest, ArtifactState, Stage
from shared.domain.backoff import retry_delay

ANNOUNCE_AGAIN_SECONDS = 30
"""An artifact that nobody took is announced again after this time, doubled with each announcement up to 16 times."""

SUSPICIOUS_ATTEMPTS = 3
"""From this attempt on, a worker that vanishes is told, and the artifact waits. One or two are a node's end, or a
rollout that was too hasty, and are made up for at once; a third one has a cause."""

COUNTED_FAILURES = 8
"""Failures that a worker lived to record count no further than this: their pauses have grown to the longest by then,
and whatever is counted beyond is workers that vanished, one after the other."""

MOST_ATTEMPTS = 16
"""An artifact whose worker vanishes at this attempt fails: 8 or more in a row, each after the longest pause or one that
grew to it. It takes half an hour and more, so that an outage ends sooner; a build that kills builders does not, and
would keep them from everybody else's builds for ever."""

WORKER_DIED = "WorkerDied"
"""The reason of an artifact whose worker vanished, on conditions and in Events."""

ENDED = frozenset({ArtifactState.READY, ArtifactState.FAILED, ArtifactState.UNWANTED})
"""States that are left only because somebody asks for it."""

DROPPED = frozenset(ArtifactState) - {ArtifactState.READY, ArtifactState.UNWANTED}
"""States that an artifact leaves once nobody needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work on one stage of an artifact until its deadline.

    Attributes:
        fence: the fencing number that every step under this lease names.
        attempt: 1 for the first try of this stage.
        source: for the signer, the image to sign as `name@digest`.
    """

    key: ArtifactKey
    stage: Stage
    fence: int
    attempt: int
    request: ArtifactRequest
    source: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The image that a build stage ended with.

    Attributes:
        source: `name@digest`.
        is_adopted: the image was there already.
        log_tail: the end of the build's output.
    """

    source: str
    is_adopted: bool
    log_tail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """The signed image, read back and verified.

    Attributes:
        digest: its digest.
        signed_by: SHA-256 fingerprint of the certificate.
    """

    digest: str
    signed_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a stage failed.

    Attributes:
        retry_seconds: when the next try is due; None if a retry cannot help.
        lacks_source: the image to sign is not there any more: it is built, or looked for, again.
    """

    reason: str
    message: str
    retry_seconds: float | None
    log_tail: str | None = None
    lacks_source: bool = False


Result: TypeAlias = "Built | Signed | Failure"


def new(request: ArtifactRequest, *, now: dt.datetime) -> Artifact:
    """The artifact of a request that nobody made before, waiting for a builder."""
    return Artifact(
        key=request.key,
        request=request,
        state=ArtifactState.WANTED,
        attempts=0,
        source=None,
        digest=None,
        signed_by=None,
        reason=None,
        message=None,
        not_before=now,
        announce_after=now + _seconds(ANNOUNCE_AGAIN_SECONDS),
    )


def take(
    artifact: Artifact, stage: Stage, *, owner: str, seconds: float, now: dt.datetime
) -> tuple[Artifact, Lease] | None:
    """Take the lease of a stage, if the artifact waits for it and is due, or if its holder's lease ran out.

    Not if holders vanished too often: `put_back` comes first then.

    Args:
        artifact: locked.
        stage: what the taker will do.
        owner: shown to people; plays no part in the decision.
        seconds: how long the lease holds without a heartbeat.
        now: the database's clock.
    """
    if artifact.state not in {stage.waiting, stage.working} or artifact.not_before > now:
        return None
    if _is_suspicious(artifact, now):
        return None
    taken = replace(
        artifact,
        state=stage.working,
        fence=artifact.fence + 1,
        attempts=artifact.attempts + 1,
        owner=owner,
        not_before=now + _seconds(seconds),
        announce_after=now + _seconds(seconds),
    )
    lease = Lease(
        key=artifact.key,
        stage=stage,
        fence=taken.fence,
        attempt=taken.attempts,
        request=artifact.request,
        source=artifact.source,
    )
    return taken, lease


def put_back(artifact: Artifact, *, jitter: float, now: dt.datetime) -> Artifact | None:
    """Take an artifact from a holder that vanished, too often by now: it waits and says why, or fails at last.

    A worker that records how its work ended, or gives its lease back, never comes to this. What it was killed by may
    be the work itself (a build that needs more memory than the builder has): the next one would be killed, too.

    Args:
        artifact: locked.
        jitter: a random number from 0 to 1.
        now: the database's clock.
    """
    if not _is_suspicious(artifact, now):
        return None
    stage = stage_of(artifact.state)
    is_last = artifact.attempts >= MOST_ATTEMPTS
    died = Failure(
        reason=WORKER_DIED,
        message=_obituary(artifact, stage, is_last=is_last),
        retry_seconds=None if is_last else retry_delay(artifact.attempts, jitter=jitter),
    )
    return _failed(artifact, stage, died, now)


def is_held(artifact: Artifact, lease: Lease) -> bool:
    """Whether the lease is still the newest: the fence check. A deadline that passed takes nothing away yet."""
    return artifact.fence == lease.fence and artifact.state is lease.stage.working


def extend(artifact: Artifact, lease: Lease, *, seconds: float, now: dt.datetime) -> Artifact | None:
    """A heartbeat. None if the lease is lost: stop working, another worker may have begun."""
    if not is_held(artifact, lease):
        return None
    deadline = now + _seconds(seconds)
    return replace(artifact, not_before=deadline, announce_after=deadline)


def release(artifact: Artifact, lease: Lease, *, now: dt.datetime) -> Artifact | None:
    """Give the artifact back untouched, at once and without counting an attempt: a clean shutdown."""
    if not is_held(artifact, lease):
        return None
    return _announced(
        replace(artifact, state=lease.stage.waiting, attempts=artifact.attempts - 1, not_before=now), now
    )


def finish(
    artifact: Artifact, lease: Lease, result: Result, *, seconds: float, now: dt.datetime
) -> Artifact | None:
    """Record how a stage ended. `seconds`: how long it took."""
    if not is_held(artifact, lease):
        return None
    match result:
        case Built():
            return _built(artifact, result, seconds, now)
        case Signed():
            return replace(
                artifact,
                state=ArtifactState.READY,
                digest=result.digest,
                signed_by=result.signed_by,
                sign_seconds=seconds,
                reason=None,
                message=None,
                attempts=0,
            )
        case Failure():
            counted = replace(artifact, attempts=min(artifact.attempts, COUNTED_FAILURES))
            return _failed(counted, lease.stage, result, now)


def retry(artifact: Artifact, *, now: dt.datetime) -> Artifact | None:
    """Let a failed artifact be tried again, from the stage that failed; its failure is shown until that ends."""
    if artifact.state is not ArtifactState.FAILED:
        return None
    state = ArtifactState.WANTED if artifact.source is None else ArtifactState.BUILT
    return _announced(replace(artifact, state=state, attempts=0, not_before=now), now)


def check_again(artifact: Artifact, *, now: dt.datetime) -> Artifact | None:
    """Let an artifact that has ended, well or not, begin anew.

    For whoever asks again for what it had before: the tag may stand for another image by now.
    """
    if artifact.state not in ENDED:
        return None
    anew = replace(new(artifact.request, now=now), fence=artifact.fence, announced=artifact.announced)
    return _announced(anew, now)


def drop(artifact: Artifact) -> Artifact | None:
    """Give up an artifact that nobody needs, also while it is made: its holder loses its lease. What is ready stays.

    A build that went on would move a tag that may be somebody else's by then. The artifact itself is kept: its
    fencing number must never begin anew.
    """
    if artifact.state not in DROPPED:
        return None
    return replace(
        artifact,
        state=ArtifactState.UNWANTED,
        fence=artifact.fence + 1,
        attempts=0,
        reason=None,
        message=None,
    )


def announce_again(artifact: Artifact, *, now: dt.datetime) -> Artifact | None:
    """For an artifact that should have moved by now: the message was lost, or its worker died."""
    if artifact.state in ENDED or artifact.announce_after > now:
        return None
    patience = ANNOUNCE_AGAIN_SECONDS * 2 ** min(artifact.announced, 4)
    return replace(artifact, announced=artifact.announced + 1, announce_after=now + _seconds(patience))


def stage_of(state: ArtifactState) -> Stage:
    """The stage that an artifact waits for, or is in."""
    return Stage.BUILD if state in {ArtifactState.WANTED, ArtifactState.BUILDING} else Stage.SIGN


def _is_suspicious(artifact: Artifact, now: dt.datetime) -> bool:
    is_lapsed = artifact.state is stage_of(artifact.state).working and artifact.not_before <= now
    return is_lapsed and artifact.attempts >= SUSPICIOUS_ATTEMPTS


def _obituary(artifact: Artifact, stage: Stage, *, is_last: bool) -> str:
    """What happened, how often, and what to do."""
    worker = "builder" if stage is Stage.BUILD else "signer"
    less = ", or let the build need less (fewer jobs of make)" if stage is Stage.BUILD else ""
    end = ". It is not tried again until `kmmhub retry` asks for it" if is_last else ""
    return (
        f"the {worker} was ended while it worked on this, or did not reach the database for longer than its lease; "
        f"so ended try {artifact.attempts}, last of {artifact.owner}. Was it killed for its memory (OOMKilled)? "
        f"Raise the {worker}'s memory limit{less}{end}"
    )


def _built(artifact: Artifact, result: Built, seconds: float, now: dt.datetime) -> Artifact:
    built = replace(
        artifact,
        source=result.source,
        source_is_adopted=result.is_adopted,
        build_seconds=seconds,
        log_tail=result.log_tail,
        reason=None,
        message=None,
        attempts=0,
        not_before=now,
    )
    if artifact.request.sign is None:
        return replace(built, state=ArtifactState.READY, digest=result.source.partition("@")[2])
    return _announced(replace(built, state=ArtifactState.BUILT), now)


def _failed(artifact: Artifact, stage: Stage, failure: Failure, now: dt.datetime) -> Artifact:
    told = replace(
        artifact,
        reason=failure.reason,
        message=failure.message,
        log_tail=failure.log_tail or artifact.log_tail,
    )
    if failure.retry_seconds is None:
        return replace(told, state=ArtifactState.FAILED)
    due = now + _seconds(failure.retry_seconds)
    told = replace(told, not_before=due, announce_after=due)
    if failure.lacks_source and stage is Stage.SIGN:
        return replace(told, state=ArtifactState.WANTED, source=None)
    return replace(told, state=stage.waiting)


def _announced(artifact: Artifact, now: dt.datetime) -> Artifact:
    """Its stage is announced with the step that leads here."""
    later = now + _seconds(ANNOUNCE_AGAIN_SECONDS)
    return replace(artifact, announced=artifact.announced + 1, announce_after=later)


def _seconds(seconds: float) -> dt.timedelta:
    return dt.timedelta(seconds=seconds)

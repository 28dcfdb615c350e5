"""Artifacts under leases.

A lease is a row state with a deadline by the database's clock and a fencing number. Whoever takes a lease raises
the number; every later write of the holder names it, so that a worker that lost its lease changes nothing.
Attempts are counted here, because the bus may forget them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from shared.domain.artifact import (
    Artifact,
    ArtifactKey,
    ArtifactRequest,
    ArtifactState,
    Stage,
    request_from_json,
    request_to_json,
)
from shared.events.messages import Changed, Kind, Requested
from shared.store.database import Connection, chunks, text_array
from shared.store.outbox import announce
from shared.store.tables import artifacts

ANNOUNCE_AGAIN_SECONDS = 30
"""An artifact that nobody took is announced again after this time, doubled with each announcement up to 64 times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work on one stage of an artifact until its deadline.

    Attributes:
        fence: the fencing number that every write under this lease names.
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
class Failure:
    """Why a stage failed.

    Attributes:
        retry_seconds: when the next try is due; None if a retry cannot help.
    """

    reason: str
    message: str
    retry_seconds: float | None
    log_tail: str | None = None


async def want(connection: Connection, requests: Collection[ArtifactRequest]) -> list[ArtifactKey]:
    """Make sure that a row exists for each request, and announce the new ones to the builders.

    Returns:
        The keys that were not wanted before.
    """
    if not requests:
        return []
    rows = [
        {
            "key": request.key,
            "target": request.target,
            "kernel": request.kernel,
            "request": request_to_json(request),
            "state": ArtifactState.WANTED,
            "announce_after": _in_seconds(ANNOUNCE_AGAIN_SECONDS),
            "announced": 0,
        }
        for request in {request.key: request for request in requests}.values()
    ]
    keys: list[ArtifactKey] = []
    for chunk in chunks(rows):
        inserted = await connection.execute(
            insert(artifacts).values(chunk).on_conflict_do_nothing().returning(artifacts.c.key)
        )
        keys += [ArtifactKey(key) for (key,) in inserted]
    await announce(connection, (Requested(stage=Stage.BUILD, artifact=key, announcement=0) for key in keys))
    return keys


async def read(connection: Connection, keys: Collection[str]) -> dict[ArtifactKey, Artifact]:
    """The artifacts of these keys, as far as they exist."""
    columns = [artifacts.c[name] for name in _ARTIFACT_COLUMNS]
    rows = await connection.execute(sa.select(*columns).where(artifacts.c.key == sa.any_(text_array(keys))))
    return {row["key"]: _artifact(row) for row in rows.mappings()}


async def take_lease(
    connection: Connection, key: str, stage: Stage, *, owner: str, seconds: float
) -> Lease | None:
    """Take the lease of a stage, if the artifact waits for it and is due, or if its holder's lease ran out.

    Args:
        connection: an open transaction.
        key: the artifact.
        stage: what the caller will do.
        owner: shown to people; plays no part in the decision.
        seconds: how long the lease holds without a heartbeat.

    Returns:
        None if there is nothing to do: another worker holds it, it is not due yet, or it is done.
    """
    row = (
        await connection.execute(
            sa.update(artifacts)
            .where(
                artifacts.c.key == key,
                artifacts.c.state.in_([stage.waiting, stage.working]),
                artifacts.c.not_before <= sa.func.now(),
            )
            .values(
                state=stage.working,
                fence=artifacts.c.fence + 1,
                attempts=artifacts.c.attempts + 1,
                lease_owner=owner,
                not_before=_in_seconds(seconds),
                announce_after=_in_seconds(seconds),
                changed_at=sa.func.now(),
            )
            .returning(artifacts.c.fence, artifacts.c.attempts, artifacts.c.request, artifacts.c.source)
        )
    ).one_or_none()
    if row is None:
        return None
    await announce(connection, [_changed(key)])
    return Lease(
        key=ArtifactKey(key),
        stage=stage,
        fence=row.fence,
        attempt=row.attempts,
        request=request_from_json(row.request),
        source=row.source,
    )


async def extend_lease(connection: Connection, lease: Lease, *, seconds: float) -> bool:
    """Heartbeat. Returns false if the lease is lost: stop working, another worker may have begun."""
    return await _write(
        connection, lease, not_before=_in_seconds(seconds), announce_after=_in_seconds(seconds)
    )


async def release_lease(connection: Connection, lease: Lease) -> bool:
    """Give the artifact back untouched, at once and without counting an attempt: a clean shutdown."""
    released = await _write(
        connection,
        lease,
        state=lease.stage.waiting,
        not_before=sa.func.now(),
        announce_after=_in_seconds(ANNOUNCE_AGAIN_SECONDS),
        attempts=artifacts.c.attempts - 1,
        announced=artifacts.c.announced + 1,
    )
    if released:
        await _announce_stage(connection, lease.key, lease.stage)
    return released


async def finish_build(
    connection: Connection,
    lease: Lease,
    *,
    source: str,
    is_adopted: bool,
    seconds: float,
    log_tail: str | None,
) -> bool:
    """Record the image that the build stage ended with, and hand it to the signers where it is to be signed.

    Args:
        connection: an open transaction.
        lease: the build lease.
        source: `name@digest`.
        is_adopted: the image was there already.
        seconds: how long the stage took.
        log_tail: the end of the build's output.

    Returns:
        False if the lease was lost; nothing is written then.
    """
    digest = source.partition("@")[2]
    needs_signature = lease.request.sign is not None
    values: dict[str, Any] = {
        "source": source,
        "source_is_adopted": is_adopted,
        "build_seconds": seconds,
        "log_tail": log_tail,
        "reason": None,
        "message": None,
        "attempts": 0,
        "not_before": sa.func.now(),
        "announce_after": _in_seconds(ANNOUNCE_AGAIN_SECONDS),
        "announced": artifacts.c.announced + 1,
        "state": ArtifactState.BUILT if needs_signature else ArtifactState.READY,
        "digest": None if needs_signature else digest,
    }
    written = await _write(connection, lease, **values)
    if written:
        if needs_signature:
            await _announce_stage(connection, lease.key, Stage.SIGN)
        await announce(connection, [_changed(lease.key)])
    return written


async def finish_signing(
    connection: Connection, lease: Lease, *, digest: str, signed_by: str, seconds: float
) -> bool:
    """Record the signed image. Returns false if the lease was lost; nothing is written then."""
    written = await _write(
        connection,
        lease,
        state=ArtifactState.READY,
        digest=digest,
        signed_by=signed_by,
        sign_seconds=seconds,
        reason=None,
        message=None,
        attempts=0,
    )
    if written:
        await announce(connection, [_changed(lease.key)])
    return written


async def fail(connection: Connection, lease: Lease, failure: Failure) -> bool:
    """Record a failure: wait for the next try, or end in `failed`. Returns false if the lease was lost."""
    retry = failure.retry_seconds
    values: dict[str, Any] = {"reason": failure.reason, "message": failure.message}
    if failure.log_tail is not None:
        values["log_tail"] = failure.log_tail
    if retry is None:
        values["state"] = ArtifactState.FAILED
    else:
        values |= {
            "state": lease.stage.waiting,
            "not_before": _in_seconds(retry),
            "announce_after": _in_seconds(retry),
        }
    written = await _write(connection, lease, **values)
    if written:
        await announce(connection, [_changed(lease.key)])
    return written


async def retry_failed(connection: Connection, keys: Collection[str]) -> list[ArtifactKey]:
    """Let failed artifacts be tried again, from the stage that failed. Returns those that were in `failed`."""
    stage = sa.case(
        (artifacts.c.source.is_(None), ArtifactState.WANTED.value),
        else_=ArtifactState.BUILT.value,
    )
    return await _begin_again(connection, keys, {ArtifactState.FAILED}, state=stage)


async def check_again(connection: Connection, keys: Collection[str]) -> list[ArtifactKey]:
    """Let artifacts that have ended, well or not, begin anew. Returns those that had.

    For whoever asks again for what it had before: the tag may stand for another image by now.
    """
    ended = {ArtifactState.READY, ArtifactState.FAILED}
    nothing = {"source": None, "digest": None, "signed_by": None, "reason": None, "message": None}
    return await _begin_again(connection, keys, ended, state=ArtifactState.WANTED, **nothing)


async def _begin_again(
    connection: Connection, keys: Collection[str], ended: Collection[ArtifactState], **values: Any
) -> list[ArtifactKey]:
    if not keys:
        return []
    rows = (
        await connection.execute(
            sa.update(artifacts)
            .where(artifacts.c.key == sa.any_(text_array(keys)), artifacts.c.state.in_(ended))
            .values(
                attempts=0,
                not_before=sa.func.now(),
                announce_after=_in_seconds(ANNOUNCE_AGAIN_SECONDS),
                announced=artifacts.c.announced + 1,
                changed_at=sa.func.now(),
                **values,
            )
            .returning(artifacts.c.key, artifacts.c.state, artifacts.c.announced)
        )
    ).all()
    await announce(
        connection,
        (
            Requested(stage=_stage_of(ArtifactState(row.state)), artifact=row.key, announcement=row.announced)
            for row in rows
        ),
    )
    await announce(connection, (_changed(row.key) for row in rows))
    return [ArtifactKey(row.key) for row in rows]


async def announce_overdue(connection: Connection, *, limit: int = 500) -> int:
    """Announce artifacts that should have moved by now: the message was lost, or its worker died.

    Returns:
        How many were announced.
    """
    due = (
        sa.select(artifacts.c.key)
        .where(
            artifacts.c.state.not_in([ArtifactState.READY, ArtifactState.FAILED]),
            artifacts.c.announce_after <= sa.func.now(),
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    patience = ANNOUNCE_AGAIN_SECONDS * sa.func.power(2, sa.func.least(artifacts.c.announced, 6))
    rows = (
        await connection.execute(
            sa.update(artifacts)
            .where(artifacts.c.key.in_(due))
            .values(
                announced=artifacts.c.announced + 1,
                announce_after=sa.func.now() + patience * dt.timedelta(seconds=1),
            )
            .returning(artifacts.c.key, artifacts.c.state, artifacts.c.announced)
        )
    ).all()
    await announce(
        connection,
        (
            Requested(stage=_stage_of(ArtifactState(row.state)), artifact=row.key, announcement=row.announced)
            for row in rows
        ),
    )
    return len(rows)


def _stage_of(state: ArtifactState) -> Stage:
    return Stage.BUILD if state in {ArtifactState.WANTED, ArtifactState.BUILDING} else Stage.SIGN


_ARTIFACT_COLUMNS = (
    "key",
    "request",
    "state",
    "attempts",
    "source",
    "digest",
    "signed_by",
    "reason",
    "message",
)


def _artifact(row: Any) -> Artifact:
    fields = dict(row)
    return Artifact(
        **fields | {"request": request_from_json(fields["request"]), "state": ArtifactState(fields["state"])}
    )


def _changed(key: str) -> Changed:
    return Changed(kind=Kind.ARTIFACT, name=key)


def _in_seconds(seconds: float) -> sa.ColumnElement[Any]:
    return sa.func.now() + dt.timedelta(seconds=seconds)


async def _write(connection: Connection, lease: Lease, **values: Any) -> bool:
    """The only way to write under a lease: the fence decides."""
    result: Sequence[Any] = (
        await connection.execute(
            sa.update(artifacts)
            .where(
                artifacts.c.key == lease.key,
                artifacts.c.fence == lease.fence,
                artifacts.c.state == lease.stage.working,
            )
            .values(changed_at=sa.func.now(), **values)
            .returning(artifacts.c.key)
        )
    ).all()
    return bool(result)


async def _announce_stage(connection: Connection, key: ArtifactKey, stage: Stage) -> None:
    announced = (
        await connection.execute(sa.select(artifacts.c.announced).where(artifacts.c.key == key))
    ).scalar_one()
    await announce(connection, [Requested(stage=stage, artifact=key, announcement=announced)])

"""Steps of artifacts: lock, let `shared.domain.lease` decide, write, and announce the difference."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Protocol

from shared.domain import lease as rules
from shared.domain.artifact import Artifact, ArtifactKey, ArtifactRequest, Stage
from shared.domain.lease import Lease, Result
from shared.events.messages import Changed, Kind, Requested
from shared.store.outbox import announce
from shared.store.port import ArtifactRows, Locked, Outbox


class Transaction(ArtifactRows, Outbox, Protocol):
    """What these steps need of a transaction."""


async def want(transaction: Transaction, requests: Collection[ArtifactRequest]) -> list[ArtifactKey]:
    """Make sure that an artifact exists for each request, and announce the new ones to the builders.

    Returns:
        The keys that were not wanted before.
    """
    if not requests:
        return []
    now = await transaction.now()
    new = {request.key: rules.new(request, now=now) for request in requests}
    keys = await transaction.add_artifacts(new.values())
    await announce(transaction, (_request(new[key]) for key in keys))
    return keys


async def take_lease(
    transaction: Transaction, key: str, stage: Stage, *, owner: str, seconds: float
) -> Lease | None:
    """Take the lease of a stage; None if there is nothing to do: see `shared.domain.lease.take`.

    An artifact whose holders vanished too often is put back instead.
    """
    locked = await transaction.lock_artifacts([key])
    if await _steps(transaction, locked, _put_back):
        return None
    for artifact in locked.artifacts.values():
        step = rules.take(artifact, stage, owner=owner, seconds=seconds, now=locked.now)
        if step is not None:
            taken, lease = step
            await _write(transaction, [(artifact, taken)])
            return lease
    return None


async def extend_lease(transaction: Transaction, lease: Lease, *, seconds: float) -> bool:
    """Heartbeat. Returns false if the lease is lost: stop working, another worker may have begun."""
    return await _step(
        transaction, lease, lambda artifact, now: rules.extend(artifact, lease, seconds=seconds, now=now)
    )


async def release_lease(transaction: Transaction, lease: Lease) -> bool:
    """Give the artifact back at a clean shutdown. Returns false if the lease was lost; nothing is written then."""
    return await _step(transaction, lease, lambda artifact, now: rules.release(artifact, lease, now=now))


async def finish(transaction: Transaction, lease: Lease, result: Result, *, seconds: float) -> bool:
    """Record how a stage ended after so many seconds.

    Returns:
        False if the lease was lost; nothing is written then.
    """
    return await _step(
        transaction,
        lease,
        lambda artifact, now: rules.finish(artifact, lease, result, seconds=seconds, now=now),
    )


async def retry_failed(transaction: Transaction, keys: Collection[str]) -> list[ArtifactKey]:
    """Let failed artifacts be tried again, from the stage that failed. Returns those that were in `failed`."""
    return await _steps(
        transaction, await transaction.lock_artifacts(keys), lambda one, now: rules.retry(one, now=now)
    )


async def check_again(transaction: Transaction, keys: Collection[str]) -> list[ArtifactKey]:
    """Let artifacts that have ended, well or not, begin anew. Returns those that had."""
    if not keys:
        return []
    return await _steps(
        transaction, await transaction.lock_artifacts(keys), lambda one, now: rules.check_again(one, now=now)
    )


async def drop_unneeded(transaction: Transaction, *, limit: int = 500) -> list[ArtifactKey]:
    """Stop trying for artifacts that no module wants. Returns those that were dropped."""
    locked = await transaction.lock_unneeded_artifacts(limit=limit)
    return await _steps(transaction, locked, lambda one, _: rules.drop(one))


async def announce_overdue(transaction: Transaction, *, limit: int = 500) -> int:
    """Announce artifacts that should have moved by now: the message was lost, or its worker died.

    Those whose workers died too often are put back: there may be no worker left that would.

    Returns:
        How many were announced or put back.
    """
    locked = await transaction.lock_overdue_artifacts(limit=limit)
    return len(
        await _steps(
            transaction, locked, lambda one, now: _put_back(one, now) or rules.announce_again(one, now=now)
        )
    )


def _put_back(artifact: Artifact, now: datetime) -> Artifact | None:
    return rules.put_back(artifact, jitter=random.random(), now=now)  # noqa: S311 - no secret


async def _step(
    transaction: Transaction, lease: Lease, step: Callable[[Artifact, datetime], Artifact | None]
) -> bool:
    return bool(await _steps(transaction, await transaction.lock_artifacts([lease.key]), step))


async def _steps(
    transaction: Transaction, locked: Locked, step: Callable[[Artifact, datetime], Artifact | None]
) -> list[ArtifactKey]:
    """Take one step with each locked artifact. Returns the keys of those that moved."""
    moved = [
        (before, after)
        for before in locked.artifacts.values()
        if (after := step(before, locked.now)) is not None
    ]
    await _write(transaction, moved)
    return [after.key for _, after in moved]


async def _write(transaction: Transaction, moved: Sequence[tuple[Artifact, Artifact]]) -> None:
    await transaction.put_artifacts(after for _, after in moved)
    await announce(transaction, (message for before, after in moved for message in _messages(before, after)))


def _messages(before: Artifact, after: Artifact) -> Iterable[Changed | Requested]:
    """What a step tells: the workers of its stage, and whoever waits for the artifact."""
    if after.announced > before.announced:
        yield _request(after)
    if (before.state, before.reason, before.message) != (after.state, after.reason, after.message):
        yield Changed(kind=Kind.ARTIFACT, name=after.key)


def _request(artifact: Artifact) -> Requested:
    return Requested(
        stage=rules.stage_of(artifact.state), artifact=artifact.key, announcement=artifact.announced
    )

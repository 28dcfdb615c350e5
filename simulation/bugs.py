"""Bugs to plant: each breaks one mechanism the way people break it, and the simulation must notice.

A proof that has never found anything proves nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import services.builder.plan
import services.dispatcher.apply
import services.dispatcher.catalog
import services.dispatcher.decide
import services.dispatcher.main
import services.dispatcher.picture
import services.dispatcher.reconcile
import shared.domain.lease
import shared.events.messages
import shared.leasing.worker
import shared.relay.relay
import shared.store.artifacts
from shared.bus.port import Done
from shared.domain.artifact import Artifact, ArtifactState
from shared.domain.errors import HubError
from shared.domain.lease import Lease
from shared.store.port import OutboxRow
from simulation.store import SimulatedTransaction
from simulation.store_rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """One planted bug.

    Attributes:
        what: in words.
        place: the object that is patched, and its attribute.
        broken: what stands there instead.
        gentle: found without healers and without faults that lose anything, which would hide it.
        without: healers that would hide it.
    """

    what: str
    place: tuple[Any, str]
    broken: Callable[..., Any] | property
    gentle: bool = False
    without: tuple[str, ...] = ()


@contextlib.contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Run with a bug, or with none."""
    if name is None:
        yield
        return
    bug = BUGS[name]
    with patch.object(*bug.place, bug.broken):
        yield


def _held_by_anybody(artifact: Artifact, lease: Lease) -> bool:
    return artifact.state is lease.stage.working


_take = shared.domain.lease.take


def _take_by_own_clock(
    artifact: Artifact, stage: Any, *, owner: str, seconds: float, now: dt.datetime
) -> Any:
    skew = dt.timedelta(seconds=45 if "-b" in owner else 0)
    return _take(artifact, stage, owner=owner, seconds=seconds, now=now + skew)


def _take_without_count(artifact: Artifact, stage: Any, **rest: Any) -> Any:
    step = _take(artifact, stage, **rest)
    return None if step is None else (replace(step[0], attempts=1), replace(step[1], attempt=1))


_outcome_of = services.dispatcher.catalog.outcome_of


def _outcome_before_signing(need: Any, artifacts: Any) -> Any:
    hasty = {
        key: replace(one, state=ArtifactState.READY, digest=one.source.partition("@")[2])
        if one.source is not None and one.digest is None
        else one
        for key, one in artifacts.items()
    }
    return _outcome_of(need, hasty)


async def _never(*_: Any, **__: Any) -> None:
    return None


async def _release_at_once(self: Any, read: Any, _: Any) -> bool:
    with contextlib.suppress(HubError):
        await services.dispatcher.apply.release_module(self._kube, read.stored)
    return True


_lock_outbox = Rows.lock_outbox
_cursors: dict[int, int] = {}


async def _rows_after_the_last(self: Any, *, limit: int, subjects: Sequence[str] = ("",)) -> list[OutboxRow]:
    state = id(self._state)
    rows = await _lock_outbox(self, limit=limit, subjects=subjects)
    new = [row for row in rows if row.id > _cursors.get(state, 0)]
    if new:
        _cursors[state] = new[-1].id
    return new


_handle = shared.leasing.worker.StageWorker.handle


async def _delete_before_publishing(self: Any) -> int:
    async with self._store.begin() as transaction:
        rows = await transaction.lock_outbox(limit=shared.relay.relay.BATCH, subjects=self._subjects)
        await transaction.delete_from_outbox([row.id for row in rows])
    for row in rows:
        await self._publish(row)
    return len(rows)


async def _forget_own_write(self: Any, observed: Any, *, is_own_write: bool) -> set[tuple[str, str]]:
    return set() if is_own_write else await _record_works(self, observed, is_own_write=False)


_record_works = Rows.record_works


async def _commit_halves(self: Any) -> None:
    """Not atomic: what belongs together is committed without its announcements."""
    self._writes = {key: row for key, row in self._writes.items() if key[0] != "outbox" or row is None}
    await _commit(self)


_commit = SimulatedTransaction.commit

BUGS: dict[str, Bug] = {
    "no-fence": Bug(
        what="a worker that lost its lease may still write",
        place=(shared.domain.lease, "is_held"),
        broken=_held_by_anybody,
    ),
    "lease-by-local-clock": Bug(
        what="a lease ends by the taker's own clock, which is ahead",
        place=(shared.domain.lease, "take"),
        broken=_take_by_own_clock,
    ),
    "forgotten-attempts": Bug(
        what="attempts are not counted where they survive",
        place=(shared.domain.lease, "take"),
        broken=_take_without_count,
    ),
    "dispatch-unsigned": Bug(
        what="an image is shipped as soon as it is built",
        place=(services.dispatcher.picture, "outcome_of"),
        broken=_outcome_before_signing,
    ),
    "no-staging-tag": Bug(
        what="the unsigned image gets the final tag",
        place=(services.builder.plan, "staging_tag"),
        broken=lambda request: request.target,
    ),
    "edge-triggered": Bug(
        what="nothing is ever compared again; only what is announced is looked at",
        place=(services.dispatcher.main.Dispatcher, "resync"),
        broken=_never,
    ),
    "no-sweeper": Bug(
        what="nobody announces what is overdue",
        place=(services.dispatcher.main.Dispatcher, "sweep"),
        broken=_never,
        without=("polls",),
    ),
    "tag-shipped": Bug(
        what="works name tags instead of digests",
        place=(services.dispatcher.catalog, "pin"),
        broken=lambda image, _: image,
    ),
    "kernel-taken-away": Bug(
        what="a work is written although a kernel that it serves is not ready",
        place=(services.dispatcher.decide, "_hold"),
        broken=lambda *_: None,
    ),
    "delete-before-drain": Bug(
        what="a deleted module is let go while its works are still there",
        place=(services.dispatcher.reconcile.Reconciler, "_release_if_done"),
        broken=_release_at_once,
    ),
    "forgotten-own-write": Bug(
        what="what the API server answered to a write is not stored",
        place=(Rows, "record_works"),
        broken=_forget_own_write,
    ),
    "delete-before-publish": Bug(
        what="the relay forgets announcements before the bus has them",
        place=(shared.relay.relay.Relay, "_drain_once"),
        broken=_delete_before_publishing,
    ),
    "reused-message-id": Bug(
        what="a repeated request has the id of the first",
        place=(shared.events.messages.Requested, "message_id"),
        broken=property(lambda self: f"{self.artifact}/{self.stage}"),
        gentle=True,
    ),
    "outbox-cursor": Bug(
        what="the relay reads on from the last id that it saw",
        place=(Rows, "lock_outbox"),
        broken=_rows_after_the_last,
        gentle=True,
    ),
    "fact-without-announcement": Bug(
        what="a fact commits, its announcement does not",
        place=(SimulatedTransaction, "commit"),
        broken=_commit_halves,
        gentle=True,
    ),
    "acknowledged-before-work": Bug(
        what="a message is acknowledged, and nothing is done about it",
        place=(shared.leasing.worker.StageWorker, "handle"),
        broken=lambda *_: _done(),
        gentle=True,
    ),
}


async def _done() -> Done:
    return Done()

"""What to do with the work of one module on one cluster. Pure."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from services.dispatcher.assemble import MAX_MANIFEST_BYTES, Draft, Owner, Shipment, draft_work
from shared.domain.kernel import KernelVersion
from shared.domain.module import ModuleSpec
from shared.domain.selection import is_selected
from shared.domain.work import ObservedWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A ManagedCluster as last known.

    Attributes:
        has_claim: false while the spoke names no kernels; `kernels` are then those that it named last.
        bad_kernels: why entries of its claim are no kernels.
        claim_is_near_limit: whether the claim has little room left for more kernels.
    """

    name: str
    labels: Mapping[str, str]
    kernels: tuple[KernelVersion, ...]
    has_claim: bool
    is_deleting: bool
    bad_kernels: tuple[str, ...] = ()
    claim_is_near_limit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A ManagedClusterModule as last known; `spec` is None if it could not be read."""

    name: str
    uid: str
    spec: ModuleSpec | None
    is_deleting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """The kernel's artifact is not ready, and why; `is_match` is false if no mapping takes the kernel."""

    reason: str
    message: str
    is_match: bool = True


KernelOutcome: TypeAlias = "Shipment | Pending"


class Why(StrEnum):
    """Why a work stays as it is, or is not there."""

    UP_TO_DATE = "UpToDate"
    NOT_SELECTED = "NotSelected"
    NO_KERNELS = "ClaimMissing"
    NOTHING_READY = "NothingReady"
    NO_MATCH = "NoMatchingKernel"
    HELD_BACK = "HeldBack"
    FOREIGN = "WorkNotOurs"
    BEING_DELETED = "BeingDeleted"
    INVALID_MODULE = "InvalidModule"
    TOO_LARGE = "WorkTooLarge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Post this work."""

    work: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Bring the stored work of `uid` to this one."""

    uid: str
    work: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete the stored work of `uid`."""

    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """Write nothing."""

    why: Why


Decision: TypeAlias = "Create | Patch | Delete | Leave"

Drafts: TypeAlias = "MutableMapping[tuple[str, tuple[KernelVersion, ...]], Draft]"
"""Works that were made already, by the module's name and the kernels that they ship."""


def decide(
    *,
    module: Module,
    cluster: Cluster | None,
    outcomes: Mapping[KernelVersion, KernelOutcome],
    work: ObservedWork | None,
    posted_hash: str | None,
    drafts: Drafts | None = None,
) -> Decision:
    """Decide about one work.

    Args:
        module: the module.
        cluster: the cluster, None if it does not exist (any more).
        outcomes: for each kernel of the cluster what the module has for it.
        work: the work of the module's name in the cluster's namespace, None if there is none.
        posted_hash: `observed_hash` right after our own last write of that work; None if we ended before it was
            noted, and cannot tell whether somebody edited the work since: it is written once more.
        drafts: those of earlier calls with the same modules and outcomes; new ones are added.

    Rules, in order: a work that is not ours is never touched. A work that is being deleted is never written, nor
    made again while its cluster goes. A work of a module that is going, or of a cluster that is not selected, is
    deleted. A module that cannot be read changes nothing. A working kernel is never taken away: while a kernel
    that the posted work serves, and that the cluster still runs, has no ready artifact, the work stays.
    """
    stored = work if work is not None and not work.is_gone else None
    if stored is not None and stored.module != module.name:
        return Leave(why=Why.FOREIGN)
    if stored is not None and stored.is_deleting:
        return Leave(why=Why.BEING_DELETED)
    if module.spec is None and not module.is_deleting:
        return Leave(why=Why.INVALID_MODULE)
    if not _is_wanted(module, cluster):
        return Delete(uid=stored.uid) if stored is not None else Leave(why=Why.NOT_SELECTED)
    assert cluster is not None
    assert module.spec is not None
    if cluster.is_deleting:
        return Leave(why=Why.BEING_DELETED)
    held = _hold(module.spec, cluster, outcomes, stored)
    if held is not None:
        return Leave(why=held)
    ready = [outcome for kernel in cluster.kernels if isinstance(outcome := outcomes[kernel], Shipment)]
    draft = _draft(module, module.spec, ready, {} if drafts is None else drafts)
    if draft.size > MAX_MANIFEST_BYTES:
        return Leave(why=Why.TOO_LARGE)
    if stored is None:
        return Create(work=draft.work_for(cluster.name))
    if stored.content_hash == draft.content_hash and posted_hash == stored.observed_hash:
        return Leave(why=Why.UP_TO_DATE)
    return Patch(uid=stored.uid, work=draft.work_for(cluster.name))


def _draft(module: Module, spec: ModuleSpec, shipments: list[Shipment], drafts: Drafts) -> Draft:
    """The work without its namespace: most clusters of a module run the kernels of many others."""
    place = (module.name, tuple(one.resolution.kernel for one in shipments))
    if place not in drafts:
        owner = Owner(name=module.name, uid=module.uid)
        drafts[place] = draft_work(owner=owner, spec=spec, shipments=shipments)
    return drafts[place]


def decide_stray(*, owner: Module, cluster: Cluster | None, work: ObservedWork) -> Decision:
    """Decide about a work that bears a module's label under another name than the module's.

    Nobody wants it, but it is ours by its label (upstream `internal/manifestwork`, GarbageCollect): it goes with the
    module, or when its cluster is no longer selected.
    """
    if work.is_gone or work.is_deleting:
        return Leave(why=Why.BEING_DELETED)
    is_readable = owner.spec is not None or owner.is_deleting
    if is_readable and not _is_wanted(owner, cluster):
        return Delete(uid=work.uid)
    return Leave(why=Why.FOREIGN)


def _is_wanted(module: Module, cluster: Cluster | None) -> bool:
    if module.is_deleting or module.spec is None or cluster is None:
        return False
    return is_selected(module.spec.selector, cluster.labels)


def _hold(
    spec: ModuleSpec,
    cluster: Cluster,
    outcomes: Mapping[KernelVersion, KernelOutcome],
    stored: ObservedWork | None,
) -> Why | None:
    """Why the work must not be written now, None if it may."""
    if spec.loader is None:
        return None
    if not cluster.kernels:
        return Why.NO_KERNELS
    if not any(isinstance(outcomes[kernel], Shipment) for kernel in cluster.kernels):
        matches = any(_is_match(outcomes[kernel]) for kernel in cluster.kernels)
        return Why.NOTHING_READY if matches else Why.NO_MATCH
    served = stored.served if stored is not None else {}
    waiting = [kernel for kernel in cluster.kernels if kernel in served and _is_waiting(outcomes[kernel])]
    return Why.HELD_BACK if waiting else None


def _is_match(outcome: KernelOutcome) -> bool:
    return isinstance(outcome, Shipment) or outcome.is_match


def _is_waiting(outcome: KernelOutcome) -> bool:
    """A kernel that no mapping takes any more is not waited for: the user took it out."""
    return isinstance(outcome, Pending) and outcome.is_match

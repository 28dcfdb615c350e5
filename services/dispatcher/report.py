"""Where one cluster of a module stands, and what needs a person there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from services.dispatcher.decide import Create, Decision, Delete, KernelOutcome, Patch, Pending, Why
from services.dispatcher.spoke_problem import Problem, problem_of
from shared.domain.artifact import ArtifactState
from shared.domain.kernel import KernelVersion
from shared.domain.work import ObservedWork

PROGRESS = {
    ArtifactState.WANTED: ("BuildPending", "waits for a builder"),
    ArtifactState.BUILDING: ("Building", "is being built"),
    ArtifactState.BUILT: ("SignPending", "waits for a signer"),
    ArtifactState.SIGNING: ("Signing", "is being signed"),
}
"""Reason and words for an artifact that is on its way."""

UNDER_WAY = frozenset(reason for reason, _ in PROGRESS.values())

CLAIM_STALE = "ClaimStale"
CLAIM_NEAR_LIMIT = "ClaimNearLimit"

PARTS = ("moduleLoader", "devicePlugin", "dra")
COUNTERS = ("nodesMatchingSelectorNumber", "desiredNumber", "availableNumber")
"""What KMM counts on a spoke, per part (KMM API, `DaemonSetStatus`). Zero arrives as no value at all."""

MAX_COUNT = 2**31 - 1
"""The largest number of nodes that a status can hold (int32)."""


class Phase(StrEnum):
    """How far a cluster is."""

    WAITING = "Waiting"
    """Its kernels are not known."""
    BUILDING = "Building"
    """Images that it needs are on their way."""
    DISPATCHED = "Dispatched"
    """Its work is posted, the agent has not applied it yet."""
    LOADING = "Loading"
    """Applied; not every node has what it should have."""
    AVAILABLE = "Available"
    """Applied, and every node has what it should have."""
    FAILED = "Failed"
    """Goes no further without a person."""
    DELETING = "Deleting"
    """Its work, or the cluster itself, is being deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One cluster of a module.

    Attributes:
        decision: what is to be done now.
        work: what is there now, None or gone if nothing.
        kernels: as last known.
        has_claim: whether the spoke still names its kernels.
        bad_kernels: why entries of its claim are no kernels.
        claim_is_near_limit: whether the claim has little room left.
        refusal: (reason, message) of the API server's answer to our last write, if it was refused.
    """

    cluster: str
    decision: Decision
    work: ObservedWork | None
    kernels: tuple[KernelVersion, ...] = ()
    has_claim: bool = True
    bad_kernels: tuple[str, ...] = ()
    claim_is_near_limit: bool = False
    refusal: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Something that a person should look at: what is wrong, where, what to do."""

    cluster: str
    reason: str
    message: str
    kernel: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterReport:
    """Where a cluster stands; `reason` and `message` say why it is in its phase."""

    cluster: str
    phase: Phase
    reason: str
    message: str
    attention: tuple[Attention, ...]


_REFUSED_WORDS = {
    Why.NO_KERNELS: "its kernels are not known: the spoke sends no claim kernel-versions.kmm.node.kubernetes.io; "
    "is KMM installed there with KMM_MANAGED=1, and is the claim among those that OCM exports "
    "(reservedClusterClaimSuffixes: kmm.node.kubernetes.io)?",
    Why.FOREIGN: "a ManifestWork of this name belongs to somebody else and is left alone; rename one of them",
    Why.TOO_LARGE: "the work exceeds OCM's limit of 512000 bytes; shorten the module",
    Why.INVALID_MODULE: "the module cannot be read; the posted work stays as it is",
}


_NO_KERNEL_NAMED = (
    "its kernels are not known: its claim kernel-versions.kmm.node.kubernetes.io names none; what was posted stays. "
    "Does KMM run there on any node?"
)


def report_cluster(place: Place, outcomes: Mapping[KernelVersion, KernelOutcome]) -> ClusterReport:
    """Report one cluster.

    Args:
        place: the cluster.
        outcomes: for each of its kernels what the module has for it.
    """
    phase, reason, message = _phase(place, outcomes)
    attention = list(_attention(place, outcomes))
    if (
        phase is Phase.FAILED and not any(one.reason == reason for one in attention)
    ) or reason == Why.NO_KERNELS:
        attention.insert(0, Attention(cluster=place.cluster, reason=reason, message=message))
    return ClusterReport(
        cluster=place.cluster, phase=phase, reason=reason, message=message, attention=tuple(attention)
    )


def counters(work: ObservedWork | None) -> dict[str, dict[str, int]]:
    """What the spoke's KMM counts, by part: nodes that match, should have it, have it."""
    feedback = work.feedback if work is not None else {}
    return {part: {name: _integer(feedback.get(f"{part}.{name}")) for name in COUNTERS} for part in PARTS}


def _phase(place: Place, outcomes: Mapping[KernelVersion, KernelOutcome]) -> tuple[Phase, str, str]:
    if place.refusal is not None:
        return (Phase.FAILED, *place.refusal)
    match place.decision:
        case Create() | Patch():
            return Phase.BUILDING, "Dispatching", "its work is being written"
        case Delete():
            return Phase.DELETING, "Deleting", "its work is being deleted"
    why = place.decision.why
    match why:
        case Why.UP_TO_DATE:
            return _phase_of_work(place.work)
        case Why.BEING_DELETED | Why.NOT_SELECTED:
            return Phase.DELETING, why.value, "its work or the cluster itself is being deleted"
        case Why.NO_KERNELS:
            return Phase.WAITING, why.value, _NO_KERNEL_NAMED if place.has_claim else _REFUSED_WORDS[why]
        case Why.NOTHING_READY | Why.HELD_BACK | Why.NO_MATCH:
            pending = worst_of(_pending(outcomes, place.kernels).values())
            if pending is None:
                return Phase.BUILDING, "BuildPending", "its images are on their way"
            phase = Phase.BUILDING if pending.reason in UNDER_WAY else Phase.FAILED
            is_posted = place.work is not None and not place.work.is_gone
            kept = "; the posted work stays until then" if is_posted else ""
            return phase, pending.reason, f"{pending.message}{kept}"
        case _:
            return Phase.FAILED, why.value, _REFUSED_WORDS[why]


def _phase_of_work(work: ObservedWork | None) -> tuple[Phase, str, str]:
    problem: Problem | None = problem_of(work) if work is not None else None
    if problem is not None:
        return Phase.FAILED, problem.reason, problem.message
    applied = work.conditions.get("Applied") if work is not None else None
    if applied is None or applied.status != "True":
        return Phase.DISPATCHED, "NotAppliedYet", "the spoke's work agent has not applied its work yet"
    available = work.conditions.get("Available") if work is not None else None
    if available is not None and available.status == "False":
        # What the spoke counted last says nothing any more.
        return (
            Phase.LOADING,
            "ModuleMissing",
            "the Module is not on the spoke any more; its work agent puts it back within some minutes",
        )
    counted = counters(work)
    behind = {
        part: count for part, count in counted.items() if count["availableNumber"] < count["desiredNumber"]
    }
    if behind:
        part, count = next(iter(behind.items()))
        return (
            Phase.LOADING,
            "Loading",
            f"{part}: {count['availableNumber']} of {count['desiredNumber']} nodes have it",
        )
    return Phase.AVAILABLE, "Available", "every node has what it should have"


def _attention(place: Place, outcomes: Mapping[KernelVersion, KernelOutcome]) -> Iterable[Attention]:
    for kernel, pending in _pending(outcomes, place.kernels).items():
        if pending.reason not in UNDER_WAY:
            yield Attention(
                cluster=place.cluster, kernel=kernel, reason=pending.reason, message=pending.message
            )
    for reason in place.bad_kernels:
        yield Attention(cluster=place.cluster, reason="InvalidKernel", message=reason)
    if place.claim_is_near_limit:
        yield Attention(
            cluster=place.cluster,
            reason=CLAIM_NEAR_LIMIT,
            message="the claim with its kernels nears OCM's limit of 1024 characters; past it the spoke cannot report "
            "new kernels. Retire old kernels there",
        )
    if place.kernels and not place.has_claim:
        yield Attention(
            cluster=place.cluster,
            reason=CLAIM_STALE,
            message="the spoke no longer names its kernels; those it named last are kept. Is KMM still running there, "
            "and does OCM still export the claim?",
        )


def _pending(
    outcomes: Mapping[KernelVersion, KernelOutcome], kernels: Iterable[KernelVersion]
) -> dict[KernelVersion, Pending]:
    return {kernel: outcome for kernel in kernels if isinstance(outcome := outcomes.get(kernel), Pending)}


def worst_of(pending: Iterable[Pending]) -> Pending | None:
    """The one to name: a failure before anything that is only under way, then by reason, so that it is stable."""
    return min(pending, key=lambda one: (one.reason in UNDER_WAY, one.reason, one.message), default=None)


def _integer(value: object) -> int:
    """A count; what a spoke sends instead of one is none, and what no count can be is cut."""
    return max(0, min(value, MAX_COUNT)) if isinstance(value, int) and not isinstance(value, bool) else 0

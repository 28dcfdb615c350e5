"""The status of a module: upstream's three counters, and conditions that say what is wrong and where. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.dispatcher.assemble import Shipment
from services.dispatcher.decide import Create, Decision, KernelOutcome, Leave, Patch, Pending, Why
from shared.domain.artifact import ArtifactState
from shared.domain.kernel import KernelVersion
from shared.domain.work import ObservedWork

MAX_NAMED = 5
"""A message names at most so many kernels or clusters; the counts are always whole."""

MAX_MESSAGE = 4096

PROGRESS = {
    ArtifactState.WANTED: ("BuildPending", "waits for a builder"),
    ArtifactState.BUILDING: ("Building", "is being built"),
    ArtifactState.BUILT: ("SignPending", "waits for a signer"),
    ArtifactState.SIGNING: ("Signing", "is being signed"),
}
"""Reason and words for an artifact that is on its way."""

_UNDER_WAY = frozenset(reason for reason, _ in PROGRESS.values())

_CLUSTER_WORDS = {
    Why.NO_KERNELS: "no kernels are known: the spoke sends no claim kernel-versions.kmm.node.kubernetes.io "
    "(is KMM installed there with KMM_MANAGED=1, and the claim among those that OCM exports?)",
    Why.NOTHING_READY: "no image is ready yet",
    Why.NO_MATCH: "no kernel mapping takes any of its kernels",
    Why.HELD_BACK: "a kernel that the posted work serves is not ready in the new form; the posted work stays",
    Why.FOREIGN: "a ManifestWork of this name belongs to somebody else and is left alone; rename one of them",
    Why.BEING_DELETED: "its work or the cluster itself is being deleted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One cluster of a module: what was decided, and the work that is there now."""

    cluster: str
    decision: Decision
    work: ObservedWork | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Everything that a module's status is made of.

    Attributes:
        generation: of the spec that was looked at.
        places: the selected clusters, and others that still have a work.
        outcomes: for each kernel on a selected cluster.
        problem: what is wrong with the module itself (reason, message), if anything.
        is_readable: whether the module can be used in spite of it.
        bad_kernels: entries of claims that are no kernels: (cluster, reason).
    """

    generation: int
    places: Sequence[Place]
    outcomes: Mapping[KernelVersion, KernelOutcome]
    problem: tuple[str, str] | None = None
    is_readable: bool = True
    bad_kernels: Sequence[tuple[str, str]] = ()


def module_status(survey: Survey, *, previous: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The `status` of a ManagedClusterModule.

    Args:
        survey: what is known.
        previous: the status as stored, whose transition times are kept where a condition's status stays.
        now: RFC 3339, for transitions.
    """
    ours = (place.work for place in survey.places if place.decision != Leave(why=Why.FOREIGN))
    works = [work for work in ours if work is not None and not work.is_gone]
    artifacts = _artifacts_ready(survey)
    dispatched = _dispatched(survey)
    degraded = _degraded(survey)
    is_ready = artifacts[0] == dispatched[0] == "True" and degraded[0] == "False"
    conditions = {
        "ArtifactsReady": artifacts,
        "Dispatched": dispatched,
        "Degraded": degraded,
        "Ready": ("True", "Ready", "every selected cluster has its current ManifestWork")
        if is_ready
        else ("False", *next(one[1:] for one in _by_weight(degraded, artifacts, dispatched))),
    }
    return {
        "observedGeneration": survey.generation,
        "numberDesired": len(works),
        "numberApplied": _count(works, "Applied"),
        "numberDegraded": _count(works, "Degraded"),
        "conditions": [
            _condition(kind, state, survey.generation, previous, now)
            for kind, state in sorted(conditions.items())
        ],
    }


_State = tuple[str, str, str]


def _by_weight(degraded: _State, artifacts: _State, dispatched: _State) -> Iterable[_State]:
    """The gravest state first."""
    if degraded[0] == "True":
        yield degraded
    if artifacts[0] != "True":
        yield artifacts
    yield dispatched


def _artifacts_ready(survey: Survey) -> _State:
    if survey.problem is not None and not survey.is_readable:
        return ("Unknown", survey.problem[0], "the module cannot be read; see condition Degraded")
    pending = {
        kernel: outcome
        for kernel, outcome in survey.outcomes.items()
        if isinstance(outcome, Pending) and outcome.is_match
    }
    if not pending:
        ready = sum(isinstance(outcome, Shipment) for outcome in survey.outcomes.values())
        return ("True", "AllReady", f"the images for {ready} kernels are in the registry, by digest")
    reason, message = _worst(pending)
    return ("False", reason, f"{len(pending)} of {len(survey.outcomes)} kernels wait: {message}")


def _dispatched(survey: Survey) -> _State:
    if survey.problem is not None and not survey.is_readable:
        return ("Unknown", survey.problem[0], "the module cannot be read; posted works stay as they are")
    waiting = {
        place.cluster: place.decision.why
        for place in survey.places
        if isinstance(place.decision, Leave) and place.decision.why in _CLUSTER_WORDS
    }
    writing = sum(isinstance(place.decision, Create | Patch) for place in survey.places)
    total = len(survey.places)
    if waiting:
        why, _ = Counter(waiting.values()).most_common(1)[0]
        named = _named(cluster for cluster, reason in waiting.items() if reason is why)
        return (
            "False",
            why.value,
            f"{len(waiting)} of {total} clusters wait; {named}: {_CLUSTER_WORDS[why]}",
        )
    if writing:
        return ("False", "Dispatching", f"{writing} of {total} ManifestWorks are being written")
    if not total:
        return ("True", "NoClusterSelected", "spec.selector selects no ManagedCluster")
    return ("True", "AllDispatched", f"{total} clusters have their current ManifestWork")


def _degraded(survey: Survey) -> _State:
    if survey.problem is not None:
        return ("True", *survey.problem)
    failed = {
        kernel: outcome
        for kernel, outcome in survey.outcomes.items()
        if isinstance(outcome, Pending) and outcome.reason not in _UNDER_WAY
    }
    if failed:
        reason, message = _worst(failed)
        return ("True", reason, f"{len(failed)} of {len(survey.outcomes)} kernels: {message}")
    if survey.bad_kernels:
        cluster, reason = survey.bad_kernels[0]
        return (
            "True",
            "InvalidKernel",
            f"{len(survey.bad_kernels)} entries of claims are no kernels; cluster {cluster}: {reason}",
        )
    foreign = [place.cluster for place in survey.places if place.decision == Leave(why=Why.FOREIGN)]
    if foreign:
        return ("True", Why.FOREIGN.value, f"{_named(foreign)}: {_CLUSTER_WORDS[Why.FOREIGN]}")
    return ("False", "AsExpected", "nothing failed")


def _worst(pending: Mapping[KernelVersion, Pending]) -> tuple[str, str]:
    """The most frequent failure before anything that is only under way, with the kernels it concerns."""
    failures = Counter(one.reason for one in pending.values() if one.reason not in _UNDER_WAY)
    reasons = failures or Counter(one.reason for one in pending.values())
    reason = min(reasons, key=lambda name: (-reasons[name], name))
    kernels = [kernel for kernel, one in sorted(pending.items()) if one.reason == reason]
    return reason, f"{_named(kernels)}: {pending[kernels[0]].message}"


def _named(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + more


def _count(works: Iterable[ObservedWork], condition: str) -> int:
    return sum(condition in work.conditions and work.conditions[condition].status == "True" for work in works)


def _condition(
    kind: str, state: _State, generation: int, previous: Mapping[str, Any], now: str
) -> dict[str, Any]:
    status, reason, message = state
    before = next((one for one in previous.get("conditions") or [] if one.get("type") == kind), None)
    is_same = before is not None and before.get("status") == status
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before is not None and is_same else now,
    }

"""The status of a module: upstream's three counters, and what a person can act on. Pure.

Conditions follow KEP-1623. `Ready` says that the hub has done its part and nothing failed; `Available` says that the
fleet's nodes have what they should have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.dispatcher.assemble import Shipment
from services.dispatcher.decide import KernelOutcome, Leave, Pending, Why
from services.dispatcher.module_events import stored_conditions
from services.dispatcher.report import (
    CLAIM_NEAR_LIMIT,
    CLAIM_STALE,
    COUNTERS,
    MAX_COUNT,
    PARTS,
    UNDER_WAY,
    Attention,
    ClusterReport,
    Phase,
    Place,
    counters,
    report_cluster,
)
from shared.domain.kernel import KernelVersion
from shared.domain.work import ObservedWork

MAX_NAMED = 5
"""A message names at most so many kernels or clusters; the counts are always whole."""

MAX_ATTENTION = 20
"""At most so many entries stand in the status; `kmmhub status` shows all."""

MAX_MESSAGE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Everything that a module's status is made of.

    Attributes:
        generation: of the spec that was looked at.
        places: the selected clusters, and others that still have a work.
        outcomes: for each kernel on a selected cluster.
        problem: what is wrong with the module itself (reason, message), if anything.
        is_readable: whether the module can be used in spite of it.
    """

    generation: int
    places: Sequence[Place]
    outcomes: Mapping[KernelVersion, KernelOutcome]
    problem: tuple[str, str] | None = None
    is_readable: bool = True


State = tuple[str, str, str]
"""Status, reason and message of a condition."""


def report_clusters(survey: Survey) -> list[ClusterReport]:
    """Where each cluster of a module stands, by name."""
    return [
        report_cluster(place, survey.outcomes) for place in sorted(survey.places, key=lambda one: one.cluster)
    ]


def module_status(survey: Survey, *, previous: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The `status` of a ManagedClusterModule.

    Args:
        survey: what is known.
        previous: the status as stored, whose transition times are kept where a condition's status stays.
        now: RFC 3339, for transitions.
    """
    reports = report_clusters(survey)
    ours = (place.work for place in survey.places if place.decision != Leave(why=Why.FOREIGN))
    works = [work for work in ours if work is not None and not work.is_gone]
    attention = [one for report in reports for one in report.attention]
    conditions = _conditions(survey, reports, attention)
    return {
        "observedGeneration": survey.generation,
        "numberDesired": len(works),
        "numberApplied": _count(works, "Applied"),
        "numberDegraded": _count(works, "Degraded"),
        "phases": {phase.value: sum(report.phase is phase for report in reports) for phase in Phase},
        "attention": [_attention_entry(one) for one in attention[:MAX_ATTENTION]],
        **{part: _sum(works, part) for part in PARTS},
        "conditions": [
            _condition(kind, state, survey.generation, previous, now)
            for kind, state in sorted(conditions.items())
        ],
    }


def _conditions(
    survey: Survey, reports: Sequence[ClusterReport], attention: Sequence[Attention]
) -> dict[str, State]:
    artifacts = _artifacts_ready(survey)
    dispatched = _dispatched(survey, reports)
    degraded = _degraded(survey, attention)
    if artifacts[0] == dispatched[0] == "True" and degraded[0] == "False":
        ready: State = ("True", "Ready", "every selected cluster has its current ManifestWork")
    else:
        gravest = degraded if degraded[0] == "True" else artifacts if artifacts[0] != "True" else dispatched
        ready = ("False", *gravest[1:])
    return {
        "ArtifactsReady": artifacts,
        "Dispatched": dispatched,
        "Degraded": degraded,
        "Available": _available(reports),
        "Ready": ready,
    }


def _artifacts_ready(survey: Survey) -> State:
    if not survey.is_readable and survey.problem is not None:
        return ("Unknown", survey.problem[0], "the module cannot be read; see condition Degraded")
    pending = {
        kernel: outcome
        for kernel, outcome in survey.outcomes.items()
        if isinstance(outcome, Pending) and outcome.is_match
    }
    if not pending:
        ready = sum(isinstance(outcome, Shipment) for outcome in survey.outcomes.values())
        images = "the image for 1 kernel is" if ready == 1 else f"the images for {ready} kernels are"
        return ("True", "AllReady", f"{images} in the registry, by digest")
    # A failure is named before anything that is only under way.
    failed = [one.reason for one in pending.values() if one.reason not in UNDER_WAY]
    reason = _most_frequent(failed or [one.reason for one in pending.values()])
    kernels = sorted(kernel for kernel, one in pending.items() if one.reason == reason)
    where, message = _named(kernels), pending[kernels[0]].message
    return (
        "False",
        reason,
        f"{_share(len(pending), len(survey.outcomes), 'kernel', 'waits', 'wait')}; {where}: {message}",
    )


def _dispatched(survey: Survey, reports: Sequence[ClusterReport]) -> State:
    if not survey.is_readable and survey.problem is not None:
        return ("Unknown", survey.problem[0], "the module cannot be read; posted works stay as they are")
    if not reports:
        return ("True", "NoClusterSelected", "spec.selector selects no ManagedCluster")
    posted = {place.cluster for place in survey.places if _is_current(place)}
    waiting = [report for report in reports if report.cluster not in posted]
    if not waiting:
        clusters = "1 cluster has its" if len(reports) == 1 else f"{len(reports)} clusters have their"
        return ("True", "AllDispatched", f"{clusters} current ManifestWork")
    reason = _most_frequent(report.reason for report in waiting)
    alike = [report for report in waiting if report.reason == reason]
    where = _named(report.cluster for report in alike)
    return (
        "False",
        reason,
        f"{_share(len(waiting), len(reports), 'cluster', 'waits', 'wait')}; {where}: {alike[0].message}",
    )


def _is_current(place: Place) -> bool:
    return place.decision == Leave(why=Why.UP_TO_DATE)


def _available(reports: Sequence[ClusterReport]) -> State:
    if not reports:
        return ("Unknown", "NoClusterSelected", "spec.selector selects no ManagedCluster")
    behind = [report for report in reports if report.phase is not Phase.AVAILABLE]
    if not behind:
        return (
            "True",
            "Available",
            f"on {_plural(len(reports), 'cluster')} every node has what it should have",
        )
    failed = [report for report in behind if report.phase is Phase.FAILED] or behind
    reason = _most_frequent(report.reason for report in failed)
    alike = [report for report in failed if report.reason == reason]
    where = _named(report.cluster for report in alike)
    return (
        "False",
        reason,
        f"{_share(len(behind), len(reports), 'cluster', 'is', 'are')} behind; {where}: {alike[0].message}",
    )


def _degraded(survey: Survey, attention: Sequence[Attention]) -> State:
    if survey.problem is not None:
        return ("True", *survey.problem)
    # A cluster without a claim waits, and one whose claim nears its limit works: neither has failed.
    failures = [one for one in attention if one.reason not in {Why.NO_KERNELS, CLAIM_NEAR_LIMIT}]
    if not failures:
        return ("False", "AsExpected", "nothing failed")
    # What is only stale is named last: the rest needs a person sooner.
    urgent = [one.reason for one in failures if one.reason != CLAIM_STALE]
    reason = _most_frequent(urgent or [one.reason for one in failures])
    alike = [one for one in failures if one.reason == reason]
    clusters = sorted({one.cluster for one in alike})
    kernels = sorted({one.kernel for one in alike if one.kernel})
    where = _named(clusters) + (f" (kernel {_named(kernels)})" if kernels else "")
    troubled = len({one.cluster for one in failures})
    return (
        "True",
        reason,
        f"{_share(troubled, len(survey.places), 'cluster', 'is', 'are')} in trouble; {where}: {alike[0].message}",
    )


def _most_frequent(reasons: Iterable[str]) -> str:
    """The reason that stands there most often, the first by name of several."""
    counts = Counter(reasons)
    return min(counts, key=lambda name: (-counts[name], name))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _share(part: int, whole: int, noun: str, one: str, many: str) -> str:
    """Such as `1 of 3 kernels waits`: the noun goes with the whole, the verb with the part."""
    return f"{part} of {_plural(whole, noun)} {one if part == 1 else many}"


def _named(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + more


def _count(works: Iterable[ObservedWork], condition: str) -> int:
    return sum(condition in work.conditions and work.conditions[condition].status == "True" for work in works)


def _sum(works: Iterable[ObservedWork], part: str) -> dict[str, int]:
    counted = [counters(work)[part] for work in works]
    return {name: min(sum(count[name] for count in counted), MAX_COUNT) for name in COUNTERS}


def _attention_entry(one: Attention) -> dict[str, str]:
    kernel = {"kernel": one.kernel} if one.kernel else {}
    return {"cluster": one.cluster, **kernel, "reason": one.reason, "message": one.message[:MAX_MESSAGE]}


def _condition(
    kind: str, state: State, generation: int, previous: Mapping[str, Any], now: str
) -> dict[str, Any]:
    status, reason, message = state
    before = next((one for one in stored_conditions(previous) if one.get("type") == kind), {})
    since = before.get("lastTransitionTime")
    is_same = before.get("status") == status and isinstance(since, str)
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "observedGeneration": generation,
        "lastTransitionTime": since if is_same else now,
    }

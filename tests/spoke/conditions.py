"""Conditions as a work agent writes them: on manifests, and summed up on the work. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

APPLIED, AVAILABLE, FEEDBACK, DELETING = "Applied", "Available", "StatusFeedbackSynced", "Deleting"

Condition = dict[str, Any]


def condition(kind: str, status: str, reason: str, message: str = "", **rest: Any) -> Condition:
    """A condition without its transition time, which `with_condition` sets."""
    return {"type": kind, "status": status, "reason": reason, "message": message, **rest}


def find(conditions: Sequence[Condition], kind: str) -> Condition | None:
    """The condition of a type, None if there is none."""
    return next((one for one in conditions if one["type"] == kind), None)


def with_condition(
    conditions: Sequence[Condition], new: Condition, *, now: str, is_fresh: bool = False
) -> list[Condition]:
    """The conditions with `new` in the place of its type's.

    The transition time moves with the status alone, as in Kubernetes' `meta.SetStatusCondition`, or with
    anything that changes if `is_fresh`.
    """
    old = find(conditions, new["type"])
    if old is None:
        return [*conditions, {**new, "lastTransitionTime": now}]
    keeps = old["status"] == new["status"]
    if is_fresh:
        keeps = {**old, **new} == old
    entry = {**new, "lastTransitionTime": old["lastTransitionTime"] if keeps else now}
    return [entry if one["type"] == new["type"] else one for one in conditions]


def manifest_applied(error: str | None, generation: int) -> Condition:
    """Whether one manifest was applied; `error` is what the API server said if it was not."""
    seen = {"observedGeneration": generation}
    if error is None:
        return condition(APPLIED, "True", "AppliedManifestComplete", "Apply manifest complete", **seen)
    text = f"Failed to apply manifest: {error}"
    return condition(APPLIED, "False", "AppliedManifestFailed", text, **seen)


def work_applied(manifests: Sequence[Mapping[str, Any]], generation: int) -> Condition:
    """Whether every manifest of a work was applied."""
    seen = {"observedGeneration": generation}
    found = [find(manifest["conditions"], APPLIED) for manifest in manifests]
    if all(one is not None and one["status"] == "True" for one in found):
        return condition(
            APPLIED, "True", "AppliedManifestWorkComplete", "Apply manifest work complete", **seen
        )
    return condition(APPLIED, "False", "AppliedManifestWorkFailed", "Failed to apply manifest work", **seen)


def work_available(manifests: Sequence[Mapping[str, Any]], generation: int) -> Condition:
    """Whether every object of a work exists; one that does not outweighs one that could not be asked for."""
    seen = {"observedGeneration": generation}
    found = [find(manifest["conditions"], AVAILABLE) for manifest in manifests]
    states = [one["status"] if one is not None else "Unknown" for one in found]
    for status, reason, words in (
        ("False", "ResourcesNotAvailable", "are not available"),
        ("Unknown", "ResourcesStatusUnknown", "have unknown status"),
    ):
        if status in states:
            message = f"{states.count(status)} of {len(states)} resources {words}"
            return condition(AVAILABLE, status, reason, message, **seen)
    return condition(AVAILABLE, "True", "ResourcesAvailable", "All resources are available", **seen)


def manifest_statuses(
    previous: Sequence[Mapping[str, Any]],
    results: Sequence[tuple[Mapping[str, Any], str | None]],
    *,
    generation: int,
    now: str,
) -> list[dict[str, Any]]:
    """`status.resourceStatus.manifests` after applying.

    Args:
        previous: the same as stored: other conditions and feedback of a manifest stay with its object.
        results: for each manifest its resourceMeta, and what went wrong.
        generation: of the work that was applied.
        now: RFC 3339.
    """
    statuses = []
    for meta, error in results:
        old = next((one for one in previous if _object(one["resourceMeta"]) == _object(meta)), {})
        # OCM gives this one condition a new time at every generation.
        conditions = with_condition(
            old.get("conditions") or [], manifest_applied(error, generation), now=now, is_fresh=True
        )
        statuses.append({**old, "resourceMeta": dict(meta), "conditions": conditions})
    return statuses


def _object(meta: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        str(meta.get(key) or "") for key in ("group", "version", "kind", "resource", "namespace", "name")
    )

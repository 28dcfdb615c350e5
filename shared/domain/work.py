"""A ManifestWork as the hub stores it, reduced to what decisions need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.domain.canonical import content_hash

MODULE_LABEL = "kmm.node.kubernetes.io/managedclustermodule.name"
"""Upstream's label: the ManagedClusterModule that a work belongs to.

A work that has neither it nor a module of its own name as its owner is not ours.
"""

OWNER_KIND = "ManagedClusterModule"

HASH_ANNOTATION = "hub.kmm.sigs.x-k8s.io/content-hash"
"""The hash of what we meant to post; equal hashes need no write."""

IMAGES_ANNOTATION = "hub.kmm.sigs.x-k8s.io/images"
"""JSON object from each kernel to the reference that the user wrote, where the work ships `name@digest`."""


MAX_PROBLEM = 2048
"""Characters that are kept of an agent's message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkCondition:
    """One condition of a work; trust it only if `observed_generation` is the work's generation."""

    status: str
    reason: str = ""
    message: str = ""
    observed_generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedWork:
    """A ManifestWork at one resourceVersion.

    Attributes:
        module: the module that it belongs to, None on somebody else's work.
        content_hash: the value of HASH_ANNOTATION.
        observed_hash: hash of everything in it that we write; differs from what it was after our own write
            if somebody edited the work.
        served: kernels (literals) of the shipped mappings, with their images.
        conditions: by type; those of an older generation are left out.
        problem: what the agent says about the first manifest that it could not apply; empty if it applied all.
        feedback: values that the spoke sent back, by name.
        is_gone: the work was deleted, as of `resource_version`.
    """

    cluster: str
    name: str
    uid: str
    resource_version: int
    module: str | None = None
    content_hash: str | None = None
    observed_hash: str = ""
    served: Mapping[str, str]
    conditions: Mapping[str, WorkCondition]
    feedback: Mapping[str, Any]
    problem: str = ""
    is_deleting: bool = False
    is_gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWork:
    """A work as last known, and its `observed_hash` right after our own last write."""

    work: ObservedWork
    posted_hash: str | None


def observe_work(work: Mapping[str, Any], *, is_gone: bool = False) -> ObservedWork:
    """Read a ManifestWork as the API server returns it."""
    metadata = work["metadata"]
    labels = metadata.get("labels") or {}
    annotations = metadata.get("annotations") or {}
    spec, status = (
        part if isinstance(part := work.get(name), Mapping) else {} for name in ("spec", "status")
    )
    owners = [one for one in metadata.get("ownerReferences") or [] if one["kind"] == OWNER_KIND]
    # Whoever takes the label off a work of ours, or puts another one on, has not made it theirs.
    is_owned = any(one["name"] == metadata["name"] for one in owners)
    return ObservedWork(
        cluster=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=int(metadata["resourceVersion"]),
        module=metadata["name"] if is_owned else labels.get(MODULE_LABEL),
        content_hash=annotations.get(HASH_ANNOTATION),
        observed_hash=content_hash(
            {
                "spec": spec,
                "label": labels.get(MODULE_LABEL),
                "hash": annotations.get(HASH_ANNOTATION),
                "images": annotations.get(IMAGES_ANNOTATION),
                "owners": [[one["uid"], bool(one.get("controller"))] for one in owners],
            }
        ),
        served=_served(spec),
        conditions=_conditions(status, metadata.get("generation", 0)),
        feedback=_feedback(status),
        problem=_problem(status),
        is_deleting=metadata.get("deletionTimestamp") is not None,
        is_gone=is_gone,
    )


def _served(spec: Mapping[str, Any]) -> dict[str, str]:
    """Literals and images of the shipped mappings. Somebody else's work may look as it likes."""
    served: dict[str, str] = {}
    for manifest in _list(spec, "workload", "manifests"):
        for mapping in _list(manifest, "spec", "moduleLoader", "container", "kernelMappings"):
            literal, image = mapping.get("literal"), mapping.get("containerImage")
            if isinstance(literal, str) and literal and manifest.get("kind") == "Module":
                served[literal] = image if isinstance(image, str) else ""
    return served


def _list(value: Any, *path: str) -> list[Mapping[str, Any]]:
    """The objects in the list at `path`; none where something else stands there."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _conditions(status: Mapping[str, Any], generation: int) -> dict[str, WorkCondition]:
    return {
        _text(condition, "type"): WorkCondition(
            status=_text(condition, "status"),
            reason=_text(condition, "reason"),
            message=_text(condition, "message"),
            observed_generation=_number(condition, "observedGeneration", 0),
        )
        for condition in _list(status, "conditions")
        if _number(condition, "observedGeneration", generation) >= generation
    }


def _problem(status: Mapping[str, Any]) -> str:
    for manifest in _list(status, "resourceStatus", "manifests"):
        for condition in _list(manifest, "conditions"):
            if condition.get("type") == "Applied" and condition.get("status") == "False":
                return _text(condition, "message") or _text(condition, "reason")
    return ""


def _feedback(status: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for manifest in _list(status, "resourceStatus", "manifests"):
        for value in _list(manifest, "statusFeedback", "values"):
            field = value.get("fieldValue")
            if isinstance(field, Mapping):
                found = (field[kind] for kind in ("integer", "string", "boolean", "jsonRaw") if kind in field)
                values[_text(value, "name")] = next(found, None)
    return values


def _text(value: Mapping[str, Any], name: str) -> str:
    """The text of a field, cut; empty where something else stands there."""
    text = value.get(name)
    return text[:MAX_PROBLEM] if isinstance(text, str) else ""


def _number(value: Mapping[str, Any], name: str, default: int) -> int:
    """The whole number of a field; `default` where something else stands there."""
    number = value.get(name)
    return number if isinstance(number, int) and not isinstance(number, bool) else default

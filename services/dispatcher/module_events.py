"""Kubernetes Events about a module: what changed between two of its statuses. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.dispatcher.stored import StoredModule
from shared.domain.canonical import content_hash

EVENT_NAMESPACE = "default"
"""Where Events about cluster-scoped objects go (client-go, `tools/events`)."""

COMPONENT = "kmm-hub-dispatcher"
MAX_MESSAGE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleEvent:
    """One Event: `is_warning` decides its type."""

    reason: str
    message: str
    is_warning: bool


def events_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[ModuleEvent]:
    """What to tell about a module whose status went from `before` to `after`; nothing if no reason changed."""
    old, new = _states(before), _states(after)
    events: list[ModuleEvent] = []
    for kind in ("ArtifactsReady", "Degraded", "Ready", "Available"):
        if kind in new and old.get(kind, ("", "", ""))[:2] != new[kind][:2]:
            event = _event(kind, old.get(kind, ("", "", "")), new[kind])
            if event is not None and all(event.reason != told.reason for told in events):
                events.append(event)
    return events


def event_body(module: StoredModule, event: ModuleEvent, *, now: str) -> dict[str, Any]:
    """The Event (core/v1) to create.

    Its name is a hash of module and reason, so that a repetition meets the first one, whatever numbers it tells.
    """
    identity = content_hash([module.uid, event.reason])[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{module.name}.{identity}", "namespace": EVENT_NAMESPACE},
        "involvedObject": {
            "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
            "kind": "ManagedClusterModule",
            "name": module.name,
            "uid": module.uid,
        },
        "type": "Warning" if event.is_warning else "Normal",
        "reason": event.reason,
        "message": event.message[:MAX_MESSAGE],
        "source": {"component": COMPONENT},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


_State = tuple[str, str, str]


def _event(kind: str, old: _State, new: _State) -> ModuleEvent | None:
    status, reason, message = new
    if kind == "Degraded":
        if status == "True":
            return ModuleEvent(reason=reason, message=message, is_warning=True)
        return (
            ModuleEvent(reason="Recovered", message="what failed works again", is_warning=False)
            if old[0] == "True"
            else None
        )
    # What is degraded is told as such, not a second time as "not ready".
    if status == "True":
        return ModuleEvent(reason=kind, message=message, is_warning=False)
    if kind == "ArtifactsReady" and reason in {"Building", "Signing"}:
        return ModuleEvent(reason=reason, message=message, is_warning=False)
    return None


def stored_conditions(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The conditions of a status that anybody may have written; what is none is left out."""
    conditions = status.get("conditions")
    return [one for one in conditions if isinstance(one, Mapping)] if isinstance(conditions, list) else []


def _states(status: Mapping[str, Any]) -> dict[str, _State]:
    texts = (
        tuple(str(one.get(name) or "") for name in ("type", "status", "reason", "message"))
        for one in stored_conditions(status)
    )
    return {kind: (state, reason, message) for kind, state, reason, message in texts}

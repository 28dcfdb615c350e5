"""Values of an object's status for the hub, by the rules of a ManifestWork. Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from spoke.conditions import FEEDBACK, Condition, condition


class BadPath(Exception):
    """A path or its value cannot be sent back."""


def configuration(work: Mapping[str, Any], meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first `manifestConfigs` entry for an object, empty if there is none. Group and resource must be equal."""
    for config in work["spec"].get("manifestConfigs") or []:
        wanted = config["resourceIdentifier"]
        is_exact = all((wanted.get(key) or "") == (meta.get(key) or "") for key in ("group", "resource"))
        if is_exact and all(
            fnmatch.fnmatchcase(meta.get(key) or "", wanted.get(key) or "") for key in ("name", "namespace")
        ):
            return dict(config)
    return {}


def feedback(
    rules: Sequence[Mapping[str, Any]], item: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], Condition]:
    """The values that the rules ask for, in their order, and the condition that says how it went.

    Rules of type WellKnownStatus say nothing about Modules and are refused.
    """
    if not rules:
        return [], condition(FEEDBACK, "True", "NoStatusFeedbackSynced")
    values, errors = [], []
    for rule in rules:
        if rule["type"] != "JSONPaths":
            errors.append(f"cannot find the wellknown statuses for resource with kind {item['kind']}")
            continue
        for path in rule.get("jsonPaths") or []:
            try:
                field = _field(path["name"], _value(item, path["path"]))
            except BadPath as error:
                errors.append(str(error))
                continue
            if field is not None:
                values.append({"name": path["name"], "fieldValue": field})
    if errors:
        message = f"Sync status feedback failed with error {', '.join(errors)}"
        return values, condition(FEEDBACK, "False", "StatusFeedbackSyncFailed", message)
    return values, condition(FEEDBACK, "True", "StatusFeedbackSynced")


def _value(item: Any, path: str) -> Any:
    """What is at a path of plain members such as `.status.a.b`; None where anything is missing."""
    if not path.startswith(".") or any(letter in path for letter in "[]{}?*@"):
        raise BadPath(f"failed to parse json path {path}: only plain members are known here")
    for member in path[1:].split("."):
        if not isinstance(item, Mapping):
            return None
        item = item.get(member)
    return item


def _field(name: str, value: Any) -> dict[str, Any] | None:
    match value:
        case None:
            return None
        case bool():
            return {"type": "Boolean", "boolean": value}
        case int():
            return {"type": "Integer", "integer": value}
        case str():
            return {"type": "String", "string": value}
    # Lists and objects need OCM's feature gate RawFeedbackJsonString, which is off by default.
    raise BadPath(f"the type {type(value).__name__} of the value for {name} is not found")

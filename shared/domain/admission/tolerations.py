"""Rules for `tolerations` (KMM `internal/webhook/module.go`, after Kubernetes' rules for pods)."""

from __future__ import annotations

from collections.abc import Iterator

from shared.domain.admission.fields import FORBIDDEN, INVALID, NOT_SUPPORTED, REQUIRED, Object, Violation
from shared.domain.admission.names import is_label_value, is_qualified_name

_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def violations(spec: Object) -> Iterator[Violation]:
    """What is wrong with the tolerations of a ModuleSpec."""
    for toleration in spec.children("tolerations"):
        yield from _of_one(toleration)


def _of_one(toleration: Object) -> Iterator[Violation]:
    key, operator = toleration.text("key"), toleration.text("operator")
    value, effect = toleration.text("value"), toleration.text("effect")
    if key and not is_qualified_name(key):
        yield toleration.refuse(
            "key", INVALID, f"{key[:80]!r} is no taint's key; write it like example.com/gpu"
        )
    if not key and operator != "Exists":
        yield toleration.refuse(
            "operator", REQUIRED, "write Exists, which an empty key needs, or name the taint's key"
        )
    if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
        yield toleration.refuse(
            "effect",
            INVALID,
            "write NoExecute, the one effect that tolerationSeconds goes with, or leave that out",
        )
    if operator == "Exists" and value:
        yield toleration.refuse(
            "value", FORBIDDEN, "leave it out: Exists takes no value; or write Equal as operator"
        )
    elif operator in {"", "Equal"} and not is_label_value(value):
        yield toleration.refuse(
            "value",
            INVALID,
            f"{value[:80]!r} is no taint's value; write up to 63 letters, digits and inner - _ .",
        )
    elif operator not in {"", "Equal", "Exists"}:
        yield toleration.refuse(
            "operator", NOT_SUPPORTED, f"{operator[:80]!r} is unknown; write Equal or Exists"
        )
    if effect and effect not in _EFFECTS:
        yield toleration.refuse(
            "effect", NOT_SUPPORTED, f"{effect[:80]!r} is unknown; write one of {', '.join(_EFFECTS)}"
        )

"""The rights of OCM's work agent on the spokes that KMM and its Modules need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

AGENT_ROLE = "open-cluster-management:klusterlet-work:kmm-module-manager"
"""The dispatcher gives the same role, by the same name, to spokes of which modules select something."""

AGGREGATE_LABEL = "open-cluster-management.io/aggregate-to-work"
"""Since OCM 0.12 the agent's own role gathers every ClusterRole with this label, whatever its account is called."""

INSTALL_ROLE = "open-cluster-management:klusterlet-work:kmm-installer"

_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete")

_HAS_RIGHTS = frozenset(
    {
        "",
        "apps",
        "batch",
        "autoscaling",
        "networking.k8s.io",
        "apiextensions.k8s.io",
        "rbac.authorization.k8s.io",
    }
)
"""API groups in which an agent may do all that an installation needs (OCM, klusterlet's work roles, and `admin`)."""


def agent_role(*, name: str = AGENT_ROLE, is_aggregated: bool = True) -> dict[str, Any]:
    """A ClusterRole for Modules."""
    return _role(name, [("kmm.sigs.x-k8s.io", ["modules"])], is_aggregated=is_aggregated)


def installer_role(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A ClusterRole for those of the manifests that the agent could not apply and delete; None if it can.

    OCM lets an agent write webhook configurations, for instance, and not delete them.
    """
    needed: dict[str, set[str]] = {}
    for manifest in manifests:
        group = str(manifest["apiVersion"]).rpartition("/")[0]
        if group not in _HAS_RIGHTS:
            needed.setdefault(group, set()).add(plural_of(str(manifest["kind"])))
    if not needed:
        return None
    return _role(
        INSTALL_ROLE, [(group, sorted(needed[group])) for group in sorted(needed)], is_aggregated=True
    )


def plural_of(kind: str) -> str:
    """The resource of a kind by the rule that CRDs of KMM, cert-manager and Prometheus follow: English, lower case."""
    name = kind.lower()
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def _role(name: str, rules: Sequence[tuple[str, Sequence[str]]], *, is_aggregated: bool) -> dict[str, Any]:
    labels = {"labels": {AGGREGATE_LABEL: "true"}} if is_aggregated else {}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name, **labels},
        "rules": [
            {"apiGroups": [group], "resources": list(resources), "verbs": list(_VERBS)}
            for group, resources in rules
        ],
    }

"""The rights that OCM gives a work agent on its hub and on its spoke, as objects for the API servers.

What the roles allow: OCM's `manifests/klusterlet/managed/klusterlet-work-*.yaml` and the hub's ClusterRole
`open-cluster-management:managedcluster:work`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

AGENT_NAMESPACE = "open-cluster-management-agent"
AGENT_ACCOUNT = "klusterlet-work-sa"
AGENT_USER = f"system:serviceaccount:{AGENT_NAMESPACE}:{AGENT_ACCOUNT}"

AGGREGATE_LABEL = "open-cluster-management.io/aggregate-to-work"
AGGREGATED_ROLE = "open-cluster-management:klusterlet-work:aggregate"

PERMISSION_ROLE = "open-cluster-management:klusterlet-work:kmm-module-manager"
MODULE_RULE = {
    "apiGroups": ["kmm.sigs.x-k8s.io"],
    "resources": ["modules"],
    "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"],
}

_RBAC = "rbac.authorization.k8s.io"
_READ = ("get", "list", "watch")
_WRITE = ("create", "update", "patch", "delete")


def hub_user(cluster: str) -> tuple[str, tuple[str, ...]]:
    """User and groups under which a cluster's agent comes to the hub."""
    group = f"system:open-cluster-management:{cluster}"
    return f"{group}:agent1", (group, "system:open-cluster-management:managed-clusters")


def hub_rights(cluster: str) -> list[dict[str, Any]]:
    """What lets an agent at the works of its cluster's namespace, and at nothing else."""
    works = "work.open-cluster-management.io"
    role = "open-cluster-management:managedcluster:work"
    return [
        _role(
            role,
            [
                _rule(("", "events.k8s.io"), ("events",), ("create", "patch", "update")),
                _rule((works,), ("manifestworks",), (*_READ, "update", "patch")),
                _rule((works,), ("manifestworks/status",), ("patch", "update")),
            ],
        ),
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": {
                "name": f"open-cluster-management:managedcluster:{cluster}:work",
                "namespace": cluster,
            },
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": _RBAC, "kind": "Group", "name": hub_user(cluster)[1][0]}],
        },
    ]


def spoke_rights() -> list[dict[str, Any]]:
    """The agent's account on the spoke with the rights that a klusterlet gives it; Modules are not among them."""
    prefix = "open-cluster-management:klusterlet-work"
    aggregation = {"clusterRoleSelectors": [{"matchLabels": {AGGREGATE_LABEL: "true"}}]}
    return [
        _object("v1", "Namespace", AGENT_NAMESPACE),
        _object("v1", "ServiceAccount", AGENT_ACCOUNT, namespace=AGENT_NAMESPACE),
        _role(f"{prefix}:agent", _agent_rules()),
        _role(f"{prefix}:execution", _execution_rules(), aggregated=True),
        {
            **_object(f"{_RBAC}/v1", "ClusterRole", AGGREGATED_ROLE),
            "aggregationRule": aggregation,
            "rules": [],
        },
        _binding(f"{prefix}:agent", f"{prefix}:agent"),
        _binding(f"{prefix}:execution-admin", "admin"),
        _binding(AGGREGATED_ROLE, AGGREGATED_ROLE),
        # The agent's own endpoint reads the authority of clients from there, and does not start without.
        {
            **_object(f"{_RBAC}/v1", "RoleBinding", f"{prefix}:authentication", namespace="kube-system"),
            "roleRef": {
                "apiGroup": _RBAC,
                "kind": "Role",
                "name": "extension-apiserver-authentication-reader",
            },
            "subjects": [_account()],
        },
    ]


def permission_role() -> dict[str, Any]:
    """What lets the agent at Modules: a ClusterRole that the spoke aggregates into the agent's own."""
    return _role(PERMISSION_ROLE, [MODULE_RULE], aggregated=True)


def _agent_rules() -> list[dict[str, Any]]:
    applied = "appliedmanifestworks"
    work = "work.open-cluster-management.io"
    return [
        _rule((work,), (applied,), (*_READ, *_WRITE)),
        _rule((work,), (f"{applied}/status",), ("patch", "update")),
        _rule((work,), (f"{applied}/finalizers",), ("update",)),
        _rule(("authorization.k8s.io",), ("subjectaccessreviews",), ("create",)),
        _rule(("authentication.k8s.io",), ("tokenreviews",), ("create",)),
        _rule(("",), ("serviceaccounts",), ("impersonate",)),
        _rule(("", "events.k8s.io"), ("events",), ("create", "patch", "update")),
        _rule(("coordination.k8s.io",), ("leases",), (*_READ, *_WRITE)),
    ]


def _execution_rules() -> list[dict[str, Any]]:
    admission = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
    roles = ("clusterroles", "roles")
    bindings = ("clusterrolebindings", "rolebindings")
    everything = (*_READ, *_WRITE)
    return [
        _rule(
            ("apiextensions.k8s.io",), ("customresourcedefinitions",), (*_READ, "create", "delete", "update")
        ),
        _rule(("",), ("namespaces",), _WRITE),
        _rule((_RBAC,), bindings, everything),
        # With the last two an agent can be given any further right by a work: that is OCM's way.
        _rule((_RBAC,), roles, (*everything, "escalate", "bind")),
        _rule(("monitoring.coreos.com",), ("servicemonitors",), everything),
        _rule(("scheduling.k8s.io",), ("priorityclasses",), everything),
        _rule(("admissionregistration.k8s.io",), admission, (*_READ, "create", "update", "patch")),
    ]


def _rule(groups: Sequence[str], resources: Sequence[str], verbs: Sequence[str]) -> dict[str, Any]:
    return {"apiGroups": list(groups), "resources": list(resources), "verbs": list(verbs)}


def _object(api: str, kind: str, name: str, *, namespace: str | None = None) -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api, "kind": kind, "metadata": metadata}


def _role(name: str, rules: Sequence[Mapping[str, Any]], *, aggregated: bool = False) -> dict[str, Any]:
    role = {**_object(f"{_RBAC}/v1", "ClusterRole", name), "rules": [dict(rule) for rule in rules]}
    if aggregated:
        role["metadata"]["labels"] = {AGGREGATE_LABEL: "true"}
    return role


def _binding(name: str, role: str) -> dict[str, Any]:
    return {
        **_object(f"{_RBAC}/v1", "ClusterRoleBinding", name),
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [_account()],
    }


def _account() -> dict[str, str]:
    return {"kind": "ServiceAccount", "name": AGENT_ACCOUNT, "namespace": AGENT_NAMESPACE}

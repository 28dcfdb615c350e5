"""The rights of OCM's work agent on Modules, and the spoke's namespaces, as a ManifestWork of their own. Pure.

They travel ahead of the Modules and stay until the last one is gone: an agent that loses its rights first cannot delete
what it applied (OCM registration, annotation `cleanup-priority`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Any

from services.dispatcher.decide import Cluster, Create, Decision, Delete, Leave, Module, Patch, Why
from shared.domain.canonical import content_hash
from shared.domain.module import RESERVED_NAME
from shared.domain.selection import is_selected
from shared.domain.work import HASH_ANNOTATION, ObservedWork

PERMISSIONS_WORK = RESERVED_NAME
"""The work's name in each cluster's namespace."""

MANAGED_BY = {"app.kubernetes.io/managed-by": "kmm-hub"}

CLUSTER_ROLE = "open-cluster-management:klusterlet-work:kmm-module-manager"
AGGREGATE_LABEL = {"open-cluster-management.io/aggregate-to-work": "true"}
"""Since OCM 0.12 the work agent's own role gathers every ClusterRole with this label."""

AGENT = {"kind": "ServiceAccount", "name": "klusterlet-work-sa", "namespace": "open-cluster-management-agent"}
"""The agent's account where the Klusterlet has its default name and namespace."""


class Grant(StrEnum):
    """How work agents get their rights."""

    AGGREGATE = "aggregate"
    """By a ClusterRole that OCM gathers into the agent's own (OCM 0.12 and later, whatever the agent is called)."""
    BIND = "bind"
    """By a binding of that role to the agent's account under its default name, for older OCM."""
    OFF = "off"
    """Not through us."""


LAST = {"open-cluster-management.io/cleanup-priority": "100"}
"""When a ManagedCluster is deleted, works go by ascending priority; 100 is last."""


def assemble_permissions(
    cluster: str, namespaces: Iterable[str], grant: Grant = Grant.AGGREGATE
) -> dict[str, Any]:
    """The ManifestWork that lets a cluster's agent manage Modules in these namespaces, and makes the namespaces.

    The namespaces outlive the work: deleting one would delete what else is in it.
    """
    names = sorted(set(namespaces))
    spec: dict[str, Any] = {
        "workload": {"manifests": [*(_namespace(name) for name in names), *_rights(grant)]},
        "deleteOption": {
            "propagationPolicy": "SelectivelyOrphan",
            "selectivelyOrphans": {
                "orphaningRules": [{"group": "", "resource": "namespaces", "name": name} for name in names]
            },
        },
    }
    return {
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "ManifestWork",
        "metadata": {
            "name": PERMISSIONS_WORK,
            "namespace": cluster,
            "labels": MANAGED_BY,
            "annotations": {HASH_ANNOTATION: content_hash(spec), **LAST},
        },
        "spec": spec,
    }


def namespaces_needed(cluster: Cluster, modules: Iterable[Module]) -> frozenset[str]:
    """The spoke namespaces of the modules that select a cluster."""
    return frozenset(
        module.spec.spoke_namespace
        for module in modules
        if module.spec is not None
        and not module.is_deleting
        and is_selected(module.spec.selector, cluster.labels)
    )


def decide_permissions(
    *,
    cluster: Cluster | None,
    namespaces: Collection[str],
    grant: Grant,
    work: ObservedWork | None,
    posted_hash: str | None,
    has_modules: bool,
) -> Decision:
    """Decide about the permissions of one cluster.

    Args:
        cluster: None if it does not exist (any more).
        namespaces: of the modules that select it.
        grant: how the agent gets its rights.
        work: the work that is there now.
        posted_hash: its `observed_hash` right after our own last write; None if we never wrote it.
        has_modules: whether works of modules are left in the cluster.
    """
    stored = work if work is not None and not work.is_gone else None
    if stored is not None and stored.content_hash is None and posted_hash is None:
        return Leave(why=Why.FOREIGN)
    if stored is not None and stored.is_deleting:
        return Leave(why=Why.BEING_DELETED)
    if cluster is None or cluster.is_deleting:
        return Leave(why=Why.BEING_DELETED)  # OCM removes works of a cluster that goes, these last
    if grant is Grant.OFF or not namespaces:
        return (
            Delete(uid=stored.uid) if stored is not None and not has_modules else Leave(why=Why.NOT_SELECTED)
        )
    desired = assemble_permissions(cluster.name, namespaces, grant)
    if stored is None:
        return Create(work=desired)
    is_as_meant = stored.content_hash == desired["metadata"]["annotations"][HASH_ANNOTATION]
    is_as_posted = posted_hash is None or posted_hash == stored.observed_hash
    return Leave(why=Why.UP_TO_DATE) if is_as_meant and is_as_posted else Patch(uid=stored.uid, work=desired)


def _namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _rights(grant: Grant) -> list[dict[str, Any]]:
    verbs = ["get", "list", "watch", "create", "update", "patch", "delete"]
    rights: list[dict[str, Any]] = [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": CLUSTER_ROLE, "labels": AGGREGATE_LABEL},
            "rules": [{"apiGroups": ["kmm.sigs.x-k8s.io"], "resources": ["modules"], "verbs": verbs}],
        }
    ]
    if grant is Grant.BIND:
        rights.append(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": CLUSTER_ROLE},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": CLUSTER_ROLE,
                },
                "subjects": [AGENT],
            }
        )
    return rights

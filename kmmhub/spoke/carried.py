"""KMM's own manifests, carried to the spokes by OCM itself: as an add-on, or as one ManifestWork per cluster."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from kmmhub.spoke.policy import MANAGED
from kmmhub.spoke.rights import agent_role, installer_role
from kmmhub.spoke.selection import PLACEMENT, Selection, UnusableOptions, namespace, placement
from shared.domain.canonical import canonical_json, content_hash
from shared.domain.errors import PermanentError

ADDON = "kmm"
WORK = "kmm-install"

OPERATOR_CONTAINER = "manager"
"""The container of KMM's operator, in its Helm chart as in its kustomize bases."""

MAX_MANIFEST_BYTES = 500 * 1024
"""What OCM's webhook takes in one work (`--manifestLimit`)."""

KEPT_KINDS = frozenset({"Namespace", "CustomResourceDefinition"})
"""Stay on a spoke when KMM is taken away: with them every Module and whatever else is in the namespace would go."""

_ORPHAN = "addon.open-cluster-management.io/deletion-orphan"
_ADDONS = "addon.open-cluster-management.io"
_HUB_CRD = "managedclustermodules.hub.kmm.sigs.x-k8s.io"

Json = dict[str, Any]


class UnusableManifests(PermanentError):
    """Manifests that are not those of KMM's operator, or too large."""

    reason = "UnusableManifests"


def managed(manifests: Sequence[Mapping[str, Any]]) -> list[Json]:
    """KMM's manifests with the operator in managed mode, and with everything around them that a spoke needs.

    Namespaces that they use are made first; then come the agent's rights; the rest stays in its order.

    Args:
        manifests: as `helm template --include-crds` or `kustomize build` print them.

    Raises:
        UnusableManifests: there is not exactly one operator among them.
    """
    wanted = [copy.deepcopy(dict(manifest)) for manifest in manifests]
    if any(item["metadata"]["name"] == _HUB_CRD for item in wanted):
        raise UnusableManifests("these are the manifests of KMM's hub; spokes need those of KMM itself")
    operators = [container for item in wanted for container in _operators(item)]
    if len(operators) != 1:
        raise UnusableManifests(
            f"found {len(operators)} Deployments with a container {OPERATOR_CONTAINER!r}, expected KMM's one: "
            "give the output of `helm template --include-crds` or `kustomize build`"
        )
    (operator,) = operators
    others = [entry for entry in operator.get("env") or [] if entry["name"] != MANAGED["name"]]
    operator["env"] = [*others, dict(MANAGED)]
    present = {item["metadata"]["name"] for item in wanted if item["kind"] == "Namespace"}
    used = {name for item in wanted if (name := item["metadata"].get("namespace"))}
    namespaces = [item for item in wanted if item["kind"] == "Namespace"]
    rest = [item for item in wanted if item["kind"] != "Namespace"]
    role = installer_role(rest)
    return [
        *namespaces,
        *(namespace(name) for name in sorted(used - present)),
        agent_role(),
        *([role] if role else []),
        *rest,
    ]


def is_kept(item: Mapping[str, Any]) -> bool:
    """Whether an object stays on a spoke that KMM is taken from.

    The agent's own rights stay, too: an agent that deletes them first cannot delete the rest.
    """
    is_right = item["kind"] == "ClusterRole" and item["metadata"]["name"].startswith(
        "open-cluster-management:"
    )
    return item["kind"] in KEPT_KINDS or is_right


def addon(
    manifests: Sequence[Mapping[str, Any]], selection: Selection, *, namespace_name: str, cluster_set: str
) -> list[Json]:
    """Objects that make KMM an add-on of the selected clusters.

    Clusters that are named get the add-on by hand, all others through a Placement, a tenth at a time.

    Args:
        manifests: KMM's, see `managed`.
        selection: on which clusters.
        namespace_name: of the Placement on the hub.
        cluster_set: see `kmmhub.spoke.selection.placement`.

    Raises:
        UnusableManifests: see `managed`.
    """
    objects = managed(manifests)
    for item in objects:
        if is_kept(item):
            item["metadata"]["annotations"] = {**(item["metadata"].get("annotations") or {}), _ORPHAN: ""}
    agent_spec = {"workload": {"manifests": objects}}
    # Other manifests are another template: OCM then rolls it out as it did the first.
    name = f"{ADDON}-{content_hash(agent_spec)[:10]}"
    template = {
        "apiVersion": f"{_ADDONS}/v1alpha1",
        "kind": "AddOnTemplate",
        "metadata": {"name": name},
        "spec": {"addonName": ADDON, "agentSpec": agent_spec},
    }
    if selection.clusters:
        addons = [_cluster_addon(cluster) for cluster in selection.clusters]
        return [template, _management(name, {"type": "Manual"}), *addons]
    strategy = {
        "type": "Placements",
        "placements": [
            {
                "name": PLACEMENT,
                "namespace": namespace_name,
                "rolloutStrategy": {
                    "type": "Progressive",
                    "progressive": {
                        "maxConcurrency": "10%",
                        "minSuccessTime": "1m",
                        "progressDeadline": "30m",
                    },
                },
            }
        ],
    }
    return [
        namespace(namespace_name),
        *placement(selection, namespace=namespace_name, cluster_set=cluster_set),
        template,
        _management(name, strategy),
    ]


def works(manifests: Sequence[Mapping[str, Any]], selection: Selection) -> list[Json]:
    """One ManifestWork per named cluster, for hubs that have no add-on manager.

    Raises:
        UnusableOptions: no cluster is named: a ManifestWork is for exactly one.
        UnusableManifests: see `managed`; or they are more than one work may hold.
    """
    if not selection.clusters:
        raise UnusableOptions("--method manifestwork needs the clusters' names: add --cluster NAME for each")
    objects = managed(manifests)
    size = sum(len(canonical_json(item)) for item in objects)
    if size > MAX_MANIFEST_BYTES:
        raise UnusableManifests(
            f"the manifests have {size} bytes, and one ManifestWork takes {MAX_MANIFEST_BYTES}: use --method addon"
        )
    rules = [_orphaning_rule(item) for item in objects if is_kept(item)]
    spec = {
        "workload": {"manifests": objects},
        "deleteOption": {
            "propagationPolicy": "SelectivelyOrphan",
            "selectivelyOrphans": {"orphaningRules": rules},
        },
    }
    return [
        {
            "apiVersion": "work.open-cluster-management.io/v1",
            "kind": "ManifestWork",
            "metadata": {
                "name": WORK,
                "namespace": cluster,
                "labels": {"app.kubernetes.io/part-of": "kmm-hub"},
                # A cluster that leaves loses its Modules (0) before the operator that unloads them.
                "annotations": {"open-cluster-management.io/cleanup-priority": "50"},
            },
            "spec": spec,
        }
        for cluster in selection.clusters
    ]


def _operators(item: Json) -> list[Json]:
    if item["kind"] != "Deployment":
        return []
    containers = item["spec"]["template"]["spec"]["containers"]
    return [container for container in containers if container["name"] == OPERATOR_CONTAINER]


def _orphaning_rule(item: Mapping[str, Any]) -> Json:
    group = str(item["apiVersion"]).rpartition("/")[0]
    resource = {"Namespace": "namespaces", "ClusterRole": "clusterroles"}.get(
        item["kind"], "customresourcedefinitions"
    )
    return {"group": group, "resource": resource, "name": item["metadata"]["name"]}


def _management(template: str, strategy: Json) -> Json:
    return {
        "apiVersion": f"{_ADDONS}/v1alpha1",
        "kind": "ClusterManagementAddOn",
        "metadata": {"name": ADDON, "annotations": {f"{_ADDONS}/lifecycle": "addon-manager"}},
        "spec": {
            "addOnMeta": {
                "displayName": "Kernel Module Management",
                "description": "Loads the kernel modules that the hub built and signed",
            },
            "supportedConfigs": [
                {"group": _ADDONS, "resource": "addontemplates", "defaultConfig": {"name": template}}
            ],
            "installStrategy": strategy,
        },
    }


def _cluster_addon(cluster: str) -> Json:
    return {
        "apiVersion": f"{_ADDONS}/v1alpha1",
        "kind": "ManagedClusterAddOn",
        "metadata": {"name": ADDON, "namespace": cluster},
        "spec": {},
    }

"""Which spokes get KMM, and how OCM is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import re2

from shared.domain.errors import PermanentError

PLACEMENT = "kmm-spokes"
"""Name of the Placement, or PlacementRule."""

UNREACHABLE_TAINTS = (
    "cluster.open-cluster-management.io/unreachable",
    "cluster.open-cluster-management.io/unavailable",
)
"""OCM puts them on clusters that miss their heartbeats; a Placement that does not tolerate them drops such clusters."""

_NAME = re2.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_KEY = re2.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re2.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


class UnusableOptions(PermanentError):
    """Options that cannot be used, or not together."""

    reason = "UnusableOptions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Clusters by name, or by labels, or neither: then all but the hub itself.

    Attributes:
        clusters: names of ManagedClusters.
        labels: what a ManagedCluster must have.
        only_openshift: leave out clusters that are not OpenShift.
    """

    clusters: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    only_openshift: bool = False

    def label_selector(self) -> dict[str, Any]:
        """The Kubernetes label selector for ManagedClusters.

        Names are compared with the label `name`, which Advanced Cluster Management puts on every cluster. CEL could
        ask for the name itself, but hubs before OCM 1.0 drop that field, and what is left selects everything.
        """
        expressions: list[dict[str, Any]] = [
            {"key": "local-cluster", "operator": "NotIn", "values": ["true"]},
        ]
        if self.clusters:
            expressions = [{"key": "name", "operator": "In", "values": list(self.clusters)}]
        if self.only_openshift:
            expressions.append({"key": "vendor", "operator": "In", "values": ["OpenShift"]})
        labels = {"matchLabels": dict(self.labels)} if self.labels else {}
        return {**labels, "matchExpressions": expressions}


def read_selection(clusters: Sequence[str], selectors: Sequence[str], *, only_openshift: bool) -> Selection:
    """Read what the command line selects.

    Args:
        clusters: names of ManagedClusters.
        selectors: `key=value`, or several of them with commas between.
        only_openshift: as in `Selection`.

    Raises:
        UnusableOptions: a name or label that Kubernetes would refuse, or both names and labels.
    """
    if clusters and selectors:
        raise UnusableOptions(
            "--cluster and --selector exclude each other: name clusters, or give their labels"
        )
    for name in clusters:
        if not _NAME.fullmatch(name):
            raise UnusableOptions(f"--cluster {name!r} is no name of a ManagedCluster")
    labels: dict[str, str] = {}
    for pair in (part for selector in selectors for part in selector.split(",")):
        key, is_pair, value = pair.partition("=")
        if not is_pair or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise UnusableOptions(f"--selector {pair!r} is no label: write key=value")
        if labels.setdefault(key, value) != value:
            raise UnusableOptions(
                f"--selector asks for {key}={labels[key]} and {key}={value}: no cluster has both"
            )
    return Selection(clusters=tuple(dict.fromkeys(clusters)), labels=labels, only_openshift=only_openshift)


def namespace(name: str) -> dict[str, Any]:
    """A Namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def placement(selection: Selection, *, namespace: str, cluster_set: str) -> list[dict[str, Any]]:
    """The Placement, and the binding without which it selects nothing.

    Args:
        selection: the clusters.
        namespace: where both are.
        cluster_set: the ManagedClusterSet to choose from; `global` holds every cluster.
    """
    binding = {
        "apiVersion": "cluster.open-cluster-management.io/v1beta2",
        "kind": "ManagedClusterSetBinding",
        # OCM insists on the set's own name.
        "metadata": {"name": cluster_set, "namespace": namespace},
        "spec": {"clusterSet": cluster_set},
    }
    choice = {
        "apiVersion": "cluster.open-cluster-management.io/v1beta1",
        "kind": "Placement",
        "metadata": {"name": PLACEMENT, "namespace": namespace},
        "spec": {
            "clusterSets": [cluster_set],
            "predicates": [{"requiredClusterSelector": {"labelSelector": selection.label_selector()}}],
            "tolerations": [{"key": key, "operator": "Exists"} for key in UNREACHABLE_TAINTS],
        },
    }
    return [binding, choice]


def placement_rule(selection: Selection, *, namespace: str) -> dict[str, Any]:
    """The PlacementRule, which was there before Placements; it takes names as they are."""
    if selection.clusters:
        spec: dict[str, Any] = {"clusters": [{"name": name} for name in selection.clusters]}
    else:
        spec = {"clusterSelector": selection.label_selector()}
    return {
        "apiVersion": "apps.open-cluster-management.io/v1",
        "kind": "PlacementRule",
        "metadata": {"name": PLACEMENT, "namespace": namespace},
        "spec": spec,
    }

"""KMM through OLM on the spokes, by a Policy of Open Cluster Management's policy framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kmmhub.spoke.rights import agent_role
from kmmhub.spoke.selection import (
    PLACEMENT,
    Selection,
    UnusableOptions,
    namespace,
    placement,
    placement_rule,
)

POLICY = "install-kmm"
MANAGED = {"name": "KMM_MANAGED", "value": "1"}
"""Makes KMM on a spoke report its kernels to the hub, and leave building and signing to it."""

MAX_POLICY_NAME = 62
"""Characters of namespace and name together: OCM copies a policy under both (policy framework, "Policy")."""

_POLICIES = "policy.open-cluster-management.io"
_PACKAGE = "kernel-module-management"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Where OLM finds KMM.

    Attributes:
        namespace: where the operator runs.
        source, source_namespace: the CatalogSource.
        channel: whose releases are followed.
    """

    namespace: str
    source: str
    source_namespace: str
    channel: str = "stable"


UPSTREAM = Distribution(
    namespace="kmm-operator-system", source="operatorhubio-catalog", source_namespace="olm"
)
OPENSHIFT = Distribution(
    namespace="openshift-kmm", source="redhat-operators", source_namespace="openshift-marketplace"
)


def operator_policy(
    distribution: Distribution, selection: Selection, *, namespace_name: str, cluster_set: str
) -> list[dict[str, Any]]:
    """Objects that install KMM by an OperatorPolicy, placed by a Placement.

    Args:
        distribution: what is installed.
        selection: on which clusters.
        namespace_name: of the policy on the hub.
        cluster_set: see `kmmhub.spoke.selection.placement`.

    Raises:
        UnusableOptions: the namespace's name is too long for a policy.
    """
    operator = {
        "apiVersion": f"{_POLICIES}/v1beta1",
        "kind": "OperatorPolicy",
        "metadata": {"name": "kmm-operator"},
        "spec": {
            "remediationAction": "enforce",
            "severity": "high",
            "complianceType": "musthave",
            "upgradeApproval": "Automatic",
            "operatorGroup": {"name": "kmm", "namespace": distribution.namespace},
            "subscription": {
                "name": _PACKAGE,
                "namespace": distribution.namespace,
                **_subscription_spec(distribution),
            },
        },
    }
    prerequisites = _configuration("kmm-prerequisites", [namespace(distribution.namespace), agent_role()])
    return [
        namespace(namespace_name),
        *placement(selection, namespace=namespace_name, cluster_set=cluster_set),
        _policy(namespace_name, [prerequisites, operator]),
        _binding(namespace_name, "Placement", "cluster.open-cluster-management.io"),
    ]


def legacy_policy(
    distribution: Distribution, selection: Selection, *, namespace_name: str
) -> list[dict[str, Any]]:
    """Objects as KMM's documentation has them, for hubs without OperatorPolicy and Placement.

    Rights are bound to the agent's account by its usual name: agents before OCM 0.12 aggregate no roles.

    Raises:
        UnusableOptions: the namespace's name is too long for a policy.
    """
    place = {"name": _PACKAGE, "namespace": distribution.namespace}
    group = {
        "apiVersion": "operators.coreos.com/v1",
        "kind": "OperatorGroup",
        "metadata": {"name": "kmm", "namespace": distribution.namespace},
        "spec": {"upgradeStrategy": "Default"},
    }
    subscription = {
        "apiVersion": "operators.coreos.com/v1alpha1",
        "kind": "Subscription",
        "metadata": place,
        "spec": {"name": _PACKAGE, **_subscription_spec(distribution)},
    }
    role = agent_role(name="kmm-module-manager", is_aggregated=False)
    rights = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "klusterlet-kmm"},
        "subjects": [
            {
                "kind": "ServiceAccount",
                "name": "klusterlet-work-sa",
                "namespace": "open-cluster-management-agent",
            }
        ],
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": role["metadata"]["name"],
        },
    }
    objects = [namespace(distribution.namespace), group, subscription, role, rights]
    return [
        namespace(namespace_name),
        placement_rule(selection, namespace=namespace_name),
        _policy(namespace_name, [_configuration("install-kmm", objects)]),
        _binding(namespace_name, "PlacementRule", "apps.open-cluster-management.io"),
    ]


def _subscription_spec(distribution: Distribution) -> dict[str, Any]:
    return {
        "channel": distribution.channel,
        "source": distribution.source,
        "sourceNamespace": distribution.source_namespace,
        "config": {"env": [dict(MANAGED)]},
    }


def _configuration(name: str, objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    templates = [{"complianceType": "musthave", "objectDefinition": item} for item in objects]
    return {
        "apiVersion": f"{_POLICIES}/v1",
        "kind": "ConfigurationPolicy",
        "metadata": {"name": name},
        "spec": {"remediationAction": "enforce", "severity": "high", "object-templates": templates},
    }


def _policy(namespace_name: str, templates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if len(namespace_name) + len(POLICY) > MAX_POLICY_NAME:
        limit = MAX_POLICY_NAME - len(POLICY)
        raise UnusableOptions(
            f"--namespace {namespace_name!r} is too long: a policy's may have {limit} characters"
        )
    return {
        "apiVersion": f"{_POLICIES}/v1",
        "kind": "Policy",
        "metadata": {"name": POLICY, "namespace": namespace_name},
        "spec": {
            "disabled": False,
            "remediationAction": "enforce",
            "policy-templates": [{"objectDefinition": template} for template in templates],
        },
    }


def _binding(namespace_name: str, kind: str, group: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{_POLICIES}/v1",
        "kind": "PlacementBinding",
        "metadata": {"name": POLICY, "namespace": namespace_name},
        "placementRef": {"apiGroup": group, "kind": kind, "name": PLACEMENT},
        "subjects": [{"apiGroup": _POLICIES, "kind": "Policy", "name": POLICY}],
    }

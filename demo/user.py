"""What the people of the story do at the hub's API, and what they see there."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from shared.domain.claim import CLAIM_NAME, write_claim
from shared.kube.client import (
    CONFIG_MAPS,
    MANAGED_CLUSTERS,
    MANIFEST_WORKS,
    MODULES,
    NAMESPACES,
    SECRETS,
    KubeClient,
)
from shared.kube.errors import NotFound

MANAGER = "kmmhub-demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A ManifestWork as `kubectl get -o yaml` shows it, reduced to what the story looks at.

    Attributes:
        images: kernel to image, from the mappings that it ships.
        version: resourceVersion: any write changes it.
        text: the whole manifest, to look for what must not be in it.
    """

    cluster: str
    images: Mapping[str, str]
    version: str
    text: str


class User:
    """Talks to the hub as kubectl would."""

    def __init__(self, kube: KubeClient, *, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace

    async def join_cluster(self, name: str, *, labels: Mapping[str, str], kernels: Sequence[str]) -> None:
        """What OCM's registration does when a spoke joins: the cluster, its namespace, and its claims."""
        await self._apply(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        await self._apply(
            MANAGED_CLUSTERS,
            {
                "apiVersion": "cluster.open-cluster-management.io/v1",
                "kind": "ManagedCluster",
                "metadata": {"name": name, "labels": dict(labels)},
                "spec": {"hubAcceptsClient": True, "leaseDurationSeconds": 60},
            },
        )
        await self.report_kernels(name, kernels)

    async def report_kernels(self, cluster: str, kernels: Sequence[str]) -> None:
        """What KMM on a spoke and OCM's agent do when nodes boot kernels: the claim on the ManagedCluster."""
        claims = [
            {"name": "platform.open-cluster-management.io", "value": "Other"},
            {"name": CLAIM_NAME, "value": write_claim(kernels)},
        ]
        await self._kube.merge_patch(
            MANAGED_CLUSTERS,
            cluster,
            {"status": {"conditions": [], "version": {}, "clusterClaims": claims}},
            subresource="status",
        )

    async def remove_label(self, cluster: str, label: str) -> None:
        """`kubectl label managedcluster CLUSTER LABEL-`."""
        await self._kube.merge_patch(MANAGED_CLUSTERS, cluster, {"metadata": {"labels": {label: None}}})

    async def store_config_map(self, name: str, data: Mapping[str, str]) -> None:
        """A ConfigMap in the operator's namespace."""
        await self._apply(CONFIG_MAPS, self._named("ConfigMap", name) | {"data": dict(data)})

    async def store_secret(self, name: str, data: Mapping[str, bytes]) -> None:
        """A Secret in the operator's namespace."""
        encoded = {field: base64.b64encode(content).decode() for field, content in data.items()}
        await self._apply(SECRETS, self._named("Secret", name) | {"data": encoded})

    async def apply_module(self, name: str, spec: Mapping[str, Any]) -> None:
        """`kubectl apply` of a ManagedClusterModule."""
        await self._apply(
            MODULES,
            {
                "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
                "kind": "ManagedClusterModule",
                "metadata": {"name": name},
                "spec": dict(spec),
            },
        )

    async def delete_module(self, name: str) -> None:
        """`kubectl delete managedclustermodule`, without waiting."""
        await self._kube.delete(MODULES, name)

    async def module(self, name: str) -> dict[str, Any] | None:
        """The ManagedClusterModule, None if it is gone."""
        try:
            return await self._kube.get(MODULES, name)
        except NotFound:
            return None

    async def works(self) -> dict[str, Work]:
        """All ManifestWorks of the hub, by cluster."""
        page = orjson.loads(await self._kube.list_page(MANIFEST_WORKS))
        return {work["metadata"]["namespace"]: _work(work) for work in page["items"]}

    async def _apply(self, resource: Any, body: dict[str, Any]) -> None:
        metadata = body["metadata"]
        await self._kube.apply(
            resource, metadata["name"], body, manager=MANAGER, namespace=metadata.get("namespace")
        )

    def _named(self, kind: str, name: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": self._namespace}}


def condition(module: Mapping[str, Any], kind: str) -> tuple[str, str]:
    """(status, reason: message) of a module's condition; Unknown if it has none yet."""
    for one in (module.get("status") or {}).get("conditions") or []:
        if one["type"] == kind:
            return one["status"], f"{one['reason']}: {one['message']}"
    return "Unknown", "no condition yet"


def _work(work: Mapping[str, Any]) -> Work:
    manifests = work["spec"]["workload"]["manifests"]
    mappings = manifests[0]["spec"]["moduleLoader"]["container"]["kernelMappings"]
    return Work(
        cluster=work["metadata"]["namespace"],
        images={mapping["literal"]: mapping["containerImage"] for mapping in mappings},
        version=work["metadata"]["resourceVersion"],
        text=orjson.dumps(work["spec"]).decode(),
    )

"""A fleet and its user: clusters, modules and images made the way people and spokes make them."""

import contextlib
import json
import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
from running_services import Services, eventually

from localhub.hub import HubAddresses
from shared.domain.claim import CLAIM_NAME, write_claim
from shared.domain.image import ImageReference
from shared.domain.work import MODULE_LABEL
from shared.kube.client import (
    CONFIG_MAPS,
    MANAGED_CLUSTERS,
    MANIFEST_WORKS,
    MODULES,
    NAMESPACES,
    SECRETS,
    KubeClient,
    Resource,
)
from shared.kube.errors import Conflict, NotFound
from shared.registry.access import RegistryAccess
from shared.registry.client import RegistryClient
from shared.registry.content import digest_of
from shared.registry.manifest import OCI_MANIFEST

PLAIN = RegistryAccess(insecure=True)
FINALIZER = "test.example/agent"


class Fleet:
    """Everything a test does to a hub, and reads from it. Names made by `new_name` are its own."""

    def __init__(
        self,
        *,
        kube: KubeClient,
        registry: RegistryClient,
        addresses: HubAddresses,
        database: asyncpg.Pool,
        services: Services,
        namespace: str,
    ) -> None:
        self.kube = kube
        self.services = services
        self.namespace = namespace
        self.database = database
        self._registry = registry
        self._addresses = addresses
        self._prefix = f"f{secrets.token_hex(2)}"
        self._names = 0

    def new_name(self) -> str:
        """A name that no other test uses."""
        self._names += 1
        return f"{self._prefix}-{self._names}"

    # What people and spokes do

    async def add_cluster(
        self, name: str, *, label: str | None, kernels: Sequence[str] | None, has_namespace: bool = True
    ) -> None:
        """A spoke joins: its namespace, its ManagedCluster, and the claim with its kernels."""
        if has_namespace:
            await self.add_namespace(name)
        body = {
            "apiVersion": "cluster.open-cluster-management.io/v1",
            "kind": "ManagedCluster",
            "metadata": {"name": name, "labels": {"case": label} if label else {}},
            "spec": {"hubAcceptsClient": True},
        }
        await self.kube.create(MANAGED_CLUSTERS, body)
        if kernels is not None:
            await self.claim(name, kernels)

    async def add_namespace(self, name: str) -> None:
        """A namespace, unless it is there."""
        with contextlib.suppress(Conflict):
            await self.kube.create(
                NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            )

    async def claim(self, cluster: str, kernels: Sequence[str] | None) -> None:
        """The spoke reports its kernels; None takes the claim away and leaves another one."""
        claims = [{"name": "id.k8s.io", "value": cluster}]
        if kernels is not None:
            claims.append({"name": CLAIM_NAME, "value": write_claim(kernels)})
        await self.kube.merge_patch(
            MANAGED_CLUSTERS, cluster, {"status": {"clusterClaims": claims}}, subresource="status"
        )

    async def label(self, cluster: str, label: str | None) -> None:
        """Change the label that modules select by."""
        await self.kube.merge_patch(MANAGED_CLUSTERS, cluster, {"metadata": {"labels": {"case": label}}})

    def image(self, repository: str, tag: str = "${KERNEL_FULL_VERSION}") -> str:
        """A reference in the hub's registry."""
        return f"{self._addresses.registry}/{repository}:{tag}"

    async def push(self, repository: str, tag: str, *, content: bytes = b"") -> str:
        """Push a small image. Returns its digest."""
        image = ImageReference.parse(self.image(repository, tag))
        layer = content or secrets.token_bytes(64)
        rootfs = {"type": "layers", "diff_ids": [digest_of(layer)]}
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
        config["history"] = [{"created_by": "a test"}]  # buildah builds on no image without
        parts = [
            {
                "mediaType": f"application/vnd.oci.image.{kind}",
                "digest": await self._registry.upload_blob(image, blob, access=PLAIN),
                "size": len(blob),
            }
            for kind, blob in (
                ("config.v1+json", json.dumps(config).encode()),
                ("layer.v1.tar", layer),
            )
        ]
        manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": parts[0], "layers": parts[1:]}
        return await self._registry.put_manifest(
            image, json.dumps(manifest).encode(), OCI_MANIFEST, access=PLAIN
        )

    async def add_module(
        self,
        name: str,
        *,
        select: str | None = None,
        mappings: Sequence[Mapping[str, Any]] | None = None,
        **container: Any,
    ) -> dict[str, Any]:
        """A user creates a ManagedClusterModule for clusters labelled `select` (the module's name by default).

        By default every kernel is taken, and has the image `<name>:<kernel>`.
        """
        loader = {
            "modprobe": {"moduleName": "kmm_hello"},
            "registryTLS": {"insecure": True},
            **container,
            "kernelMappings": mappings or [{"regexp": "^.+$", "containerImage": self.image(name)}],
        }
        body = {
            "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
            "kind": "ManagedClusterModule",
            "metadata": {"name": name},
            "spec": {
                "selector": {"case": select or name},
                "spokeNamespace": "kmm",
                "moduleSpec": {"selector": {}, "moduleLoader": {"container": loader}},
            },
        }
        return await self.kube.create(MODULES, body)

    async def change_module(self, name: str, **container: Any) -> None:
        """Change fields of the module loader's container."""
        spec = {"moduleSpec": {"moduleLoader": {"container": container}}}
        await self.kube.merge_patch(MODULES, name, {"spec": spec})

    async def add_config_map(self, name: str, data: Mapping[str, str]) -> None:
        """A ConfigMap in the operator's namespace."""
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": dict(data)}
        await self.kube.create(CONFIG_MAPS, body, namespace=self.namespace)

    async def add_secret(self, name: str, data: Mapping[str, str]) -> None:
        """A Secret in the operator's namespace."""
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(data)}
        await self.kube.create(SECRETS, body, namespace=self.namespace)

    async def hold_work(self, cluster: str, name: str, *, is_held: bool = True) -> None:
        """The spoke's agent puts its finalizer on a work, or takes it off."""
        finalizers = [FINALIZER] if is_held else []
        await self.kube.merge_patch(
            MANIFEST_WORKS, name, {"metadata": {"finalizers": finalizers}}, namespace=cluster
        )

    # What can be seen

    async def module(self, name: str) -> dict[str, Any] | None:
        """A ManagedClusterModule, None if there is none."""
        return await self._get(MODULES, name)

    async def work(self, cluster: str, name: str) -> dict[str, Any] | None:
        """A ManifestWork, None if there is none."""
        return await self._get(MANIFEST_WORKS, name, namespace=cluster)

    async def condition(self, module: str, kind: str) -> dict[str, Any]:
        """A condition of a module; fails if it has none yet."""
        found = await self.module(module)
        assert found is not None, f"module {module} is not there"
        conditions = (found.get("status") or {}).get("conditions") or []
        chosen: list[dict[str, Any]] = [one for one in conditions if one["type"] == kind]
        assert chosen, f"module {module} has no condition {kind}: {conditions}"
        return chosen[0]

    async def posted(self, cluster: str, name: str, *, seconds: float = 25.0) -> dict[str, Any]:
        """Wait until there is a work of ours."""

        async def look() -> dict[str, Any] | None:
            work = await self.work(cluster, name)
            return (
                work
                if work is not None and work["metadata"].get("labels", {}).get(MODULE_LABEL) == name
                else None
            )

        return await eventually(look, what=f"a work {name} in {cluster}", seconds=seconds)

    async def gone(self, cluster: str, name: str) -> None:
        """Wait until there is no work of this name."""

        async def look() -> bool:
            return await self.work(cluster, name) is None

        await eventually(look, what=f"work {name} in {cluster} is gone")

    async def module_gone(self, name: str) -> None:
        """Wait until the module itself is gone."""

        async def look() -> bool:
            return await self.module(name) is None

        await eventually(look, what=f"module {name} is gone")

    async def shows(self, module: str, kind: str, status: str, reason: str, *, seconds: float = 25.0) -> str:
        """Wait until a condition has a status and a reason. Returns its message."""

        async def look() -> str:
            condition = await self.condition(module, kind)
            assert (condition["status"], condition["reason"]) == (status, reason), condition
            return str(condition["message"])

        return await eventually(look, what=f"{kind}={status} ({reason}) on module {module}", seconds=seconds)

    async def ready(self, module: str, *, seconds: float = 25.0) -> None:
        """Wait until the module says that everything is done."""
        await self.shows(module, "Ready", "True", "Ready", seconds=seconds)

    async def serves(self, cluster: str, name: str, expected: Mapping[str, str]) -> dict[str, Any]:
        """Wait until a work serves exactly these kernels with these images. Returns the work."""

        async def look() -> dict[str, Any]:
            work = await self.work(cluster, name)
            assert work is not None, "no work"
            assert served(work) == expected
            return work

        return await eventually(look, what=f"work {name} in {cluster} serves {dict(expected)}")

    async def _get(
        self, resource: Resource, name: str, *, namespace: str | None = None
    ) -> dict[str, Any] | None:
        try:
            return await self.kube.get(resource, name, namespace=namespace)
        except NotFound:
            return None

    async def versions(self) -> dict[tuple[str, str], str]:
        """resourceVersion of every work and module on the hub."""
        found = {}
        for resource in (MANIFEST_WORKS, MODULES):
            for item in json.loads(await self.kube.list_page(resource, limit=5000))["items"]:
                metadata = item["metadata"]
                found[metadata.get("namespace", ""), metadata["name"]] = metadata["resourceVersion"]
        return found

    def write_requests(self) -> dict[str, float]:
        """How many writing requests for works and modules the API server has answered, by verb and resource."""
        command = [str(self._addresses.kubectl), f"--kubeconfig={self._addresses.kubeconfig}", "get", "--raw"]
        text = subprocess.run([*command, "/metrics"], capture_output=True, text=True, timeout=30, check=True)
        counts: dict[str, float] = {}
        for labels, value in re.findall(
            r"^apiserver_request_total\{(.*)\} (\S+)$", text.stdout, re.MULTILINE
        ):
            named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            is_ours = named["resource"] in {"manifestworks", "managedclustermodules"}
            if is_ours and named["verb"] not in {"GET", "LIST", "WATCH"}:
                key = f"{named['verb']} {named['resource']} {named['code']}"
                counts[key] = counts.get(key, 0) + float(value)
        return counts


def served(work: Mapping[str, Any]) -> dict[str, str]:
    """Kernels of a work with their images."""
    container = work["spec"]["workload"]["manifests"][0]["spec"]["moduleLoader"]["container"]
    return {mapping["literal"]: mapping["containerImage"] for mapping in container["kernelMappings"]}

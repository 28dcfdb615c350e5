"""Does what the plan says people and spokes do. Goes to the servers themselves, and tries again until they answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from chaos.inputs import (
    Action,
    AddCluster,
    AddModule,
    ChangeModule,
    DeleteCluster,
    DeleteModule,
    Inputs,
    Module,
    ModuleKind,
    Moment,
    Relabel,
    SetKernels,
    apply,
)
from chaos.material import MODULE_PATH, Material, padding, push_image
from chaos.world import NAMESPACE, World
from shared.domain.claim import CLAIM_NAME, write_claim
from shared.domain.errors import HubError, TransientError
from shared.kube.client import (
    CONFIG_MAPS,
    MANAGED_CLUSTERS,
    MANIFEST_WORKS,
    MODULES,
    NAMESPACES,
    SECRETS,
    KubeClient,
)
from shared.kube.errors import Conflict, NotFound
from shared.registry.client import RegistryClient

PATIENCE_SECONDS = 120.0
AGAIN_SECONDS = 0.3

UNSIGNED_IMAGE = "base:unsigned"
FOREIGN_WORK = "somebody-elses"
KEY_SECRET, CERT_SECRET = "chaos-key", "chaos-cert"
BUILD_SECRET, PULL_SECRET = "chaos-build-secret", "chaos-pull"

BUILT = "FROM scratch\nARG KERNEL_VERSION\nARG VERSION\nLABEL kernel=$KERNEL_VERSION version=$VERSION\n"
BROKEN = "FROM scratch\nCOPY nothing /\n"
DOCKERFILES: Mapping[ModuleKind, str] = {
    ModuleKind.BUILT: BUILT,
    ModuleKind.BUILT_AND_SIGNED: BUILT,
    ModuleKind.BROKEN: BROKEN,
}


class StillThere(TransientError):
    """A module that was deleted has not gone yet."""

    reason = "StillThere"


class User:
    """The user and all spokes of a run. `history` says what was wanted when, in seconds of the run."""

    def __init__(
        self,
        world: World,
        material: Material,
        *,
        kube: KubeClient,
        registry: RegistryClient,
        clock: Callable[[], float],
    ) -> None:
        self.history: list[Moment] = [Moment(since=0.0, inputs=Inputs())]
        self.digests: dict[str, str] = {}
        """Of the images that modules adopt, by reference."""
        self._world = world
        self._material = material
        self._kube = kube
        self._registry = registry
        self._clock = clock

    @property
    def inputs(self) -> Inputs:
        """What is wanted now."""
        return self.history[-1].inputs

    async def prepare(self) -> None:
        """Make what modules name, and a work that is somebody else's."""
        files = {MODULE_PATH: self._material.module, "opt/padding": padding("base")}
        await push_image(self._registry, self._image(UNSIGNED_IMAGE), files=files, labels={})
        for kind in DOCKERFILES:
            dockerfile = DOCKERFILES[kind]
            if kind is ModuleKind.BUILT_AND_SIGNED:
                dockerfile = dockerfile.replace("FROM scratch", f"FROM {self._named(UNSIGNED_IMAGE)}")
            await self._create(CONFIG_MAPS, _config_map(_name_of(kind), dockerfile), namespace=NAMESPACE)
        signing, canaries = self._material.signing, self._material.canaries
        login = base64.b64encode(f"chaos:{canaries['registry password']}".encode()).decode()
        auths = {"auths": {self._world.registry_address: {"auth": login}}}
        for name, data in (
            (KEY_SECRET, {"key": signing.key.decode()}),
            (CERT_SECRET, {"cert": signing.certificate.decode()}),
            (BUILD_SECRET, {"token": canaries["build secret"]}),
            (PULL_SECRET, {".dockerconfigjson": json.dumps(auths)}),
        ):
            await self._create(SECRETS, _secret(name, data), namespace=NAMESPACE)
        await self._create(NAMESPACES, _namespace("cluster-1"))
        await self._create(MANIFEST_WORKS, _foreign_work(), namespace="cluster-1")

    async def do(self, action: Action) -> None:
        """Do one thing. It counts as wanted from its beginning.

        Raises:
            HubError: the servers did not take it for two minutes.
        """
        self.history.append(Moment(since=self._clock(), inputs=apply(self.inputs, action)))
        await persist(lambda: self._do(action))

    async def _do(self, action: Action) -> None:
        match action:
            case AddCluster(name=name, label=label, kernels=kernels):
                await self._create(NAMESPACES, _namespace(name))
                await self._create(MANAGED_CLUSTERS, _cluster(name, label))
                await self._claim(name, kernels)
            case SetKernels(cluster=name, kernels=kernels):
                await self._claim(name, kernels)
            case Relabel(cluster=name, label=label):
                await self._kube.merge_patch(
                    MANAGED_CLUSTERS, name, {"metadata": {"labels": {"case": label}}}
                )
            case DeleteCluster(name=name):
                with contextlib.suppress(NotFound):
                    await self._kube.delete(MANAGED_CLUSTERS, name)
            case AddModule(name=name, kind=kind, select=select, version=version):
                module = Module(kind=kind, select=select, version=version)
                await self._create_module(await self._module(name, module))
            case ChangeModule(name=name):
                body = await self._module(name, self.inputs.modules[name])
                await self._kube.merge_patch(MODULES, name, {"spec": body["spec"]})
            case DeleteModule(name=name):
                with contextlib.suppress(NotFound):
                    await self._kube.delete(MODULES, name)

    async def _create(self, resource: Any, body: Mapping[str, Any], *, namespace: str | None = None) -> None:
        with contextlib.suppress(Conflict):
            await self._kube.create(resource, body, namespace=namespace)

    async def _create_module(self, body: Mapping[str, Any]) -> None:
        """One of the same name that is being deleted has to go first."""
        try:
            await self._kube.create(MODULES, body)
        except Conflict:
            found = await self._kube.get(MODULES, body["metadata"]["name"])
            if "deletionTimestamp" in found["metadata"]:
                raise StillThere(f"module {body['metadata']['name']} is still being deleted") from None

    async def _claim(self, cluster: str, kernels: tuple[str, ...]) -> None:
        claims = [
            {"name": "id.k8s.io", "value": cluster},
            {"name": CLAIM_NAME, "value": write_claim(kernels)},
        ]
        await self._kube.merge_patch(
            MANAGED_CLUSTERS, cluster, {"status": {"clusterClaims": claims}}, subresource="status"
        )

    async def _module(self, name: str, module: Module) -> dict[str, Any]:
        """The object; what it adopts is pushed before."""
        loader: dict[str, Any] = {
            "modprobe": {"moduleName": "hello"},
            "registryTLS": {"insecure": True},
            "kernelMappings": [{"regexp": "^.+$", "containerImage": self.target(name, module)}],
        }
        if module.kind is ModuleKind.ADOPTED:
            image = f"{name}:v{module.version}"
            files = {"opt/version": f"{name} {module.version}".encode()}
            labels = {"version": str(module.version)}
            digest = await push_image(self._registry, self._image(image), files=files, labels=labels)
            self.digests[self._named(image)] = digest
        if module.kind in DOCKERFILES:
            loader["build"] = {
                "dockerfileConfigMap": {"name": _name_of(module.kind)},
                "buildArgs": [{"name": "VERSION", "value": str(module.version)}],
                "secrets": [{"name": BUILD_SECRET}],
            }
        if module.kind.is_signed:
            loader["sign"] = {
                "keySecret": {"name": KEY_SECRET},
                "certSecret": {"name": CERT_SECRET},
                "filesToSign": [f"/{MODULE_PATH}"],
            }
        if module.kind is ModuleKind.SIGNED:
            loader["sign"] |= {
                "unsignedImage": self._named(UNSIGNED_IMAGE),
                "unsignedImageRegistryTLS": {"insecure": True},
            }
        return {
            "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
            "kind": "ManagedClusterModule",
            "metadata": {"name": name},
            "spec": {
                "selector": {"case": module.select},
                "spokeNamespace": "kmm",
                "moduleSpec": {
                    "selector": {},
                    "imageRepoSecret": {"name": PULL_SECRET},
                    "moduleLoader": {"container": loader},
                },
            },
        }

    def target(self, name: str, module: Module, kernel: str = "${KERNEL_FULL_VERSION}") -> str:
        """The reference that a module names for a kernel."""
        match module.kind:
            case ModuleKind.ADOPTED:
                return self._named(f"{name}:v{module.version}")
            case ModuleKind.SIGNED:
                return self._named(f"{name}:{kernel}-v{module.version}")
            case _:
                return self._named(f"{name}:{kernel}")

    def _named(self, image: str) -> str:
        """An image as the hub reaches it."""
        return f"{self._world.registry_address}/{image}"

    def _image(self, image: str) -> str:
        """The same image as the user reaches it."""
        return f"{self._world.addresses.registry}/{image}"


async def persist(task: Callable[[], Awaitable[None]], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Do something, again and again until it succeeds. Raises the last HubError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            await task()
        except HubError:
            if time.monotonic() > deadline:
                raise
        else:
            return
        await asyncio.sleep(AGAIN_SECONDS)


def _name_of(kind: ModuleKind) -> str:
    return f"chaos-{kind.value.replace(' ', '-')}"


def _config_map(name: str, dockerfile: str) -> dict[str, Any]:
    data = {"dockerfile": dockerfile}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def _secret(name: str, data: Mapping[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(data)}


def _namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _cluster(name: str, label: str) -> dict[str, Any]:
    return {
        "apiVersion": "cluster.open-cluster-management.io/v1",
        "kind": "ManagedCluster",
        "metadata": {"name": name, "labels": {"case": label}},
        "spec": {"hubAcceptsClient": True},
    }


def _foreign_work() -> dict[str, Any]:
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "other", "namespace": "default"},
    }
    return {
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "ManifestWork",
        "metadata": {"name": FOREIGN_WORK},
        "spec": {"workload": {"manifests": [manifest]}},
    }

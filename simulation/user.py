"""People and spokes: what they want, kept apart from what the services make of it. Every act takes effect at once."""

from __future__ import annotations

import base64
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from shared.domain.claim import CLAIM_NAME, write_claim
from shared.kube.client import CONFIG_MAPS, MANAGED_CLUSTERS, MANIFEST_WORKS, MODULES, NAMESPACES, SECRETS
from shared.kube.errors import Conflict, NotFound
from simulation.material import CERTIFICATE, PRIVATE_KEY
from simulation.module_image import module_image
from simulation.world import NAMESPACE, World

KERNELS = (*(f"6.1.0-{number}-amd64" for number in (13, 17, 21, 25)), "5.14.0-427.el9.x86_64+rt")
LABELS = ("edge", "core")
REGISTRY = "registry.example"
BROKEN = "FROM scratch\nRUN false\n"
AGENT_FINALIZER = "cluster.open-cluster-management.io/manifest-work-cleanup"
MAX_CLUSTERS, MAX_MODULES = 5, 4


class Making(StrEnum):
    """Where a module's images come from."""

    PUSHED = "pushed"
    BUILT = "built"
    SIGNED = "signed"
    SIGNED_FROM = "signed-from"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedModule:
    """What the user wants of a module.

    Attributes:
        label: of the clusters that it selects.
        making: where its images come from.
        kernels: those that its mappings take.
        argument: a build argument, changed to get another build.
        is_broken: its Dockerfile does not build.
        repository: of its images. What people push has one of its own in each life: whoever pushes to a tag that
            the hub still builds for gets what comes last.
    """

    name: str
    label: str
    making: Making
    kernels: tuple[str, ...]
    argument: int = 0
    is_broken: bool = False
    repository: str = ""

    @property
    def is_signed(self) -> bool:
        """Whether spokes may only get signed files."""
        return self.making in {Making.SIGNED, Making.SIGNED_FROM}

    def image(self, kernel: str) -> str:
        """The target of a kernel."""
        return f"{REGISTRY}/{self.repository}:{kernel.replace('+', '_')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedCluster:
    """A spoke: what it runs and says. `kernels` None: it makes no claim."""

    name: str
    label: str
    kernels: tuple[str, ...] | None


@dataclass(slots=True)
class User:
    """Acts on the world, and remembers what was wanted.

    Attributes:
        gentle: everything that is asked for can be made at once; no try fails.
        modules, clusters: as they are wanted now.
        pushed: digests of the images that people pushed.
        labels: that modules ever selected by, and that clusters ever had, by name. Each watch has its own
            delay: the hub may see any of a module's together with any of a cluster's.
    """

    world: World
    chance: random.Random
    gentle: bool = False
    modules: dict[str, WantedModule] = field(default_factory=dict)
    clusters: dict[str, WantedCluster] = field(default_factory=dict)
    labels: dict[str, set[str]] = field(default_factory=dict)
    pushed: dict[str, str] = field(default_factory=dict)
    _count: int = 0

    def begin(self) -> None:
        """A small fleet, and the signing key."""
        self._put(
            SECRETS,
            "signing",
            {"data": {"key": _base64(PRIVATE_KEY), "cert": _base64(CERTIFICATE)}},
            namespace=NAMESPACE,
        )
        for _ in range(3):
            self.add_cluster()
        for _ in range(2):
            self.add_module()

    def act(self) -> None:
        """Do one thing, drawn at random."""
        acts: list[Callable[[], None]] = [
            self.add_cluster,
            self.remove_cluster,
            self.relabel,
            self.boot,
            self.boot,
            self.silence_claim,
            self.add_module,
            self.remove_module,
            self.rebuild,
            self.rebuild,
            self.break_or_mend,
            self.push_one,
            self.tamper,
        ]
        self.chance.choice(acts)()

    def mend_everything(self) -> None:
        """Before the calm: every claim is there, every Dockerfile builds, every image that must be pushed is."""
        for cluster in list(self.clusters.values()):
            if cluster.kernels is None:
                self._claim(replace(cluster, kernels=(self.chance.choice(KERNELS),)))
        for module in list(self.modules.values()):
            if module.is_broken:
                self._put_module(replace(module, is_broken=False, argument=module.argument + 1))
            for kernel in module.kernels:
                self._push(module, kernel)

    # Acts

    def add_cluster(self) -> None:
        """A spoke joins."""
        if len(self.clusters) >= MAX_CLUSTERS:
            return
        self._count += 1
        cluster = WantedCluster(
            name=f"c{self._count}", label=self.chance.choice(LABELS), kernels=self._some_kernels()
        )
        self.world.note(f"cluster {cluster.name} joins: {cluster.label}, {cluster.kernels}")
        hub = self.world.hub
        hub.create(NAMESPACES, {"metadata": {"name": cluster.name}})
        hub.create(MANAGED_CLUSTERS, {"metadata": {"name": cluster.name, "labels": {"site": cluster.label}}})
        self._claim(cluster)

    def remove_cluster(self) -> None:
        """A spoke leaves, with its namespace."""
        if len(self.clusters) < 2:
            return
        name = self.chance.choice(sorted(self.clusters))
        self.world.note(f"cluster {name} leaves")
        del self.clusters[name]
        self.world.hub.delete(MANAGED_CLUSTERS, name)
        self.world.hub.delete(NAMESPACES, name)

    def relabel(self) -> None:
        """A cluster moves to the other site."""
        cluster = self._any_cluster()
        moved = replace(cluster, label=self.chance.choice(LABELS))
        self.world.note(f"cluster {cluster.name} is labelled {moved.label}")
        self.world.hub.merge_patch(
            MANAGED_CLUSTERS, cluster.name, {"metadata": {"labels": {"site": moved.label}}}
        )
        self.clusters[cluster.name] = moved
        self._remember(moved)

    def boot(self) -> None:
        """Nodes of a spoke get other kernels."""
        cluster = replace(self._any_cluster(), kernels=self._some_kernels())
        self.world.note(f"cluster {cluster.name} runs {cluster.kernels}")
        self._claim(cluster)

    def silence_claim(self) -> None:
        """A spoke stops saying which kernels it runs."""
        cluster = replace(self._any_cluster(), kernels=None)
        self.world.note(f"cluster {cluster.name} names no kernels")
        self._claim(cluster)

    def add_module(self) -> None:
        """Somebody writes a ManagedClusterModule, perhaps one of a name that was there before."""
        name = f"m{self.chance.randrange(MAX_MODULES)}"
        if name in self.modules or self._exists(name):
            return
        making = self.chance.choice(list(Making))
        self._count += 1
        module = WantedModule(
            name=name,
            label=self.chance.choice(LABELS),
            making=making,
            repository=f"{name}-{self._count}" if making is Making.PUSHED else name,
            kernels=tuple(sorted(self.chance.sample(KERNELS, self.chance.randint(3, len(KERNELS))))),
            is_broken=self.chance.random() < 0.1 and not self.gentle,
        )
        self.world.note(f"module {name} is wanted: {module.making}, {module.label}")
        if module.making in {Making.PUSHED, Making.SIGNED_FROM}:
            for kernel in module.kernels:
                if self.chance.random() < 0.7 or self.gentle:
                    self._push(module, kernel)
        self._put_module(module)

    def remove_module(self) -> None:
        """Somebody deletes a ManagedClusterModule."""
        if len(self.modules) < 2:
            return
        name = self.chance.choice(sorted(self.modules))
        self.world.note(f"module {name} is deleted")
        del self.modules[name]
        self.world.hub.delete(MODULES, name)

    def rebuild(self) -> None:
        """A build argument changes."""
        module = self._any_module()
        if module.making in {Making.BUILT, Making.SIGNED}:
            self.world.note(f"module {module.name} is to be built anew")
            self._put_module(replace(module, argument=module.argument + 1))

    def break_or_mend(self) -> None:
        """A Dockerfile is broken, or put right."""
        if self.gentle:
            return
        module = self._any_module()
        if module.making in {Making.BUILT, Making.SIGNED}:
            self.world.note(
                f"module {module.name}: its Dockerfile {'is mended' if module.is_broken else 'breaks'}"
            )
            self._put_module(replace(module, is_broken=not module.is_broken))

    def push_one(self) -> None:
        """Somebody pushes an image that was missing."""
        module = self._any_module()
        self._push(module, self.chance.choice(module.kernels))

    def tamper(self) -> None:
        """Somebody edits or deletes a work of ours."""
        works = self.world.hub.objects(MANIFEST_WORKS)
        if not works:
            return
        metadata = self.chance.choice(works)["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        with contextlib.suppress(NotFound, Conflict):
            if self.chance.random() < 0.5:
                self.world.note(f"somebody deletes work {name} of {namespace}")
                self.world.hub.delete(MANIFEST_WORKS, name, namespace=namespace)
            else:
                self.world.note(f"somebody edits work {name} of {namespace}")
                nothing: dict[str, Any] = {"spec": {"workload": {"manifests": []}}}
                self.world.hub.merge_patch(MANIFEST_WORKS, name, nothing, namespace=namespace)

    def run_agents(self) -> None:
        """What the spokes' work agents do now and then: guard works, and let those go that are to be deleted."""
        for work in list(self.world.hub.objects(MANIFEST_WORKS)):
            metadata = work["metadata"]
            finalizers = metadata.get("finalizers") or []
            is_going = "deletionTimestamp" in metadata
            wanted = [] if is_going else [AGENT_FINALIZER]
            if (AGENT_FINALIZER in finalizers) == is_going:
                with contextlib.suppress(NotFound, Conflict):
                    self.world.hub.merge_patch(
                        MANIFEST_WORKS,
                        metadata["name"],
                        {"metadata": {"finalizers": wanted}},
                        namespace=metadata["namespace"],
                    )

    # Inside

    def _some_kernels(self) -> tuple[str, ...]:
        return tuple(sorted(self.chance.sample(KERNELS, self.chance.randint(1, 2))))

    def _any_cluster(self) -> WantedCluster:
        return self.clusters[self.chance.choice(sorted(self.clusters))]

    def _any_module(self) -> WantedModule:
        if not self.modules:
            self.add_module()
        return self.modules[self.chance.choice(sorted(self.modules))] if self.modules else _NOTHING

    def _exists(self, name: str) -> bool:
        return any(one["metadata"]["name"] == name for one in self.world.hub.objects(MODULES))

    def was_selected(self, module: str, cluster: str) -> bool:
        """Whether a cluster was ever one of a module's, for whoever sees the past of either."""
        return bool(self.labels.get(module, set()) & self.labels.get(cluster, set()))

    def _remember(self, wanted: WantedModule | WantedCluster) -> None:
        self.labels.setdefault(wanted.name, set()).add(wanted.label)

    def _claim(self, cluster: WantedCluster) -> None:
        claims = [{"name": "id.k8s.io", "value": cluster.name}]
        if cluster.kernels is not None:
            claims.append({"name": CLAIM_NAME, "value": write_claim(cluster.kernels)})
        self.world.hub.merge_patch(
            MANAGED_CLUSTERS, cluster.name, {"status": {"clusterClaims": claims}}, subresource="status"
        )
        self.clusters[cluster.name] = cluster
        self._remember(cluster)

    def _push(self, module: WantedModule, kernel: str) -> None:
        """The image that must be there before the hub can do anything: to ship, or to sign."""
        if module.making is Making.PUSHED:
            image = module.image(kernel)
        elif module.making is Making.SIGNED_FROM:
            image = f"{module.image(kernel)}-raw"
        else:
            return
        if image not in self.pushed:
            self.world.note(f"somebody pushes {image}")
            self.pushed[image] = self.world.registry.push(image, module_image(kernel=kernel))

    def _put_module(self, module: WantedModule) -> None:
        self.modules[module.name] = module
        self._remember(module)
        config_map = f"{module.name}-dockerfile"
        dockerfile = BROKEN if module.is_broken else "FROM scratch\nCOPY hello.ko /opt/hello.ko\n"
        self._put(CONFIG_MAPS, config_map, {"data": {"dockerfile": dockerfile}}, namespace=NAMESPACE)
        container: dict[str, Any] = {
            "modprobe": {"moduleName": "hello"},
            "kernelMappings": [
                {"literal": kernel, "containerImage": module.image(kernel)} for kernel in module.kernels
            ],
        }
        if module.making in {Making.BUILT, Making.SIGNED}:
            container["build"] = {
                "dockerfileConfigMap": {"name": config_map},
                "buildArgs": [{"name": "N", "value": str(module.argument)}],
            }
        if module.is_signed:
            container["sign"] = {
                "keySecret": {"name": "signing"},
                "certSecret": {"name": "signing"},
                "filesToSign": ["/opt/hello.ko"],
            }
        if module.making is Making.SIGNED_FROM:
            for mapping, kernel in zip(container["kernelMappings"], module.kernels, strict=True):
                mapping["sign"] = {"unsignedImage": f"{module.image(kernel)}-raw"}
        spec = {
            "selector": {"site": module.label},
            "spokeNamespace": "kmm",
            "moduleSpec": {"selector": {}, "moduleLoader": {"container": container}},
        }
        self._put(MODULES, module.name, {"spec": spec})

    def _put(self, resource: Any, name: str, body: dict[str, Any], *, namespace: str | None = None) -> None:
        try:
            self.world.hub.create(resource, {"metadata": {"name": name}} | body, namespace=namespace)
        except Conflict:
            self.world.hub.merge_patch(resource, name, body, namespace=namespace)


_NOTHING = WantedModule(name="", label="", making=Making.PUSHED, kernels=KERNELS)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

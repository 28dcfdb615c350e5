"""Small fleets: modules, clusters, kernels, artifacts and posted works, as values that decisions take."""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from services.dispatcher.assemble import Owner, Shipment, draft_work
from services.dispatcher.catalog import Catalog, outcome_of
from services.dispatcher.decide import Cluster, Decision, KernelOutcome, Module, Pending, decide
from services.dispatcher.demand import Configuration, SecretFact, Unmet, Wanted
from services.dispatcher.stored import StoredModule
from shared.domain.artifact import Access, Artifact, ArtifactKey, ArtifactState
from shared.domain.kernel import KernelVersion
from shared.domain.mapping import Resolution
from shared.domain.module import parse_module
from shared.domain.work import MODULE_LABEL, ObservedWork, observe_work

Json = dict[str, Any]
NAME = "m"
KERNELS = tuple(KernelVersion(f"5.{number}.0-1.x86_64") for number in range(5))
CONFIGURATION = Configuration(
    namespace="kmm",
    dockerfiles={"df": "FROM scratch\n", "empty": None},
    secrets={
        "key": SecretFact(version="k1", keys=frozenset({"key"})),
        "cert": SecretFact(version="c1", keys=frozenset({"cert"})),
        "pull": SecretFact(version="p1", keys=frozenset({".dockerconfigjson"})),
        "token": SecretFact(version="t1", keys=frozenset({"token"})),
        "bare": SecretFact(version="b1", keys=frozenset()),
    },
)


def digest(number: int) -> str:
    """A digest that a registry could have answered."""
    return f"sha256:{number:064x}"


BUILD: Json = {"dockerfileConfigMap": {"name": "df"}}
SIGN: Json = {"keySecret": {"name": "key"}, "certSecret": {"name": "cert"}, "filesToSign": ["/opt/a.ko"]}


def raw_spec(
    *mappings: Json, selector: Mapping[str, str] | None = None, module: Json | None = None, **container: Any
) -> Json:
    """The `spec` of a ManagedClusterModule; one mapping for every kernel unless others are given."""
    loader = {
        "container": {
            "modprobe": {"moduleName": "kmod", "dirName": "/opt"},
            "kernelMappings": list(mappings)
            or [{"regexp": ".", "containerImage": "r.example/k:${KERNEL_FULL_VERSION}"}],
            **container,
        }
    }
    return {
        "spokeNamespace": "spoke",
        "selector": dict(selector or {}),
        "moduleSpec": {"selector": {"role": "edge"}, "moduleLoader": loader, **(module or {})},
    }


def without_loader(**module: Any) -> Json:
    """The `spec` of a module that has only a device plugin."""
    plugin = {"container": {"image": "r.example/plugin:1"}}
    return {
        "spokeNamespace": "spoke",
        "selector": {},
        "moduleSpec": {"selector": {}, "devicePlugin": plugin, **module},
    }


def stored_module(spec: Json | None = None, **fields: Any) -> StoredModule:
    """A module as the watcher stored it."""
    defaults: Json = {
        "name": NAME,
        "uid": "uid-m",
        "generation": 1,
        "spec": raw_spec() if spec is None else spec,
        "status": {},
        "finalizers": (),
        "is_deleting": False,
        "resource_version": 1,
    }
    return StoredModule(**{**defaults, **fields})


def a_module(spec: Json | None = None, **fields: Any) -> Module:
    """A module that could be read."""
    parsed = parse_module(raw_spec() if spec is None else spec)
    return Module(**{"name": NAME, "uid": "uid-m", "spec": parsed, "is_deleting": False, **fields})


def a_cluster(*kernels: KernelVersion, name: str = "c1", **fields: Any) -> Cluster:
    """A cluster that runs these kernels."""
    return Cluster(
        **{
            "name": name,
            "labels": {},
            "kernels": kernels,
            "has_claim": True,
            "is_deleting": False,
            **fields,
        }
    )


def shipment(kernel: KernelVersion, number: int = 1, **fields: Any) -> Shipment:
    """A kernel whose image is ready, with the digest of that number."""
    tag = f"r.example/k:{kernel}"
    resolution = Resolution(
        **{
            "kernel": kernel,
            "mapping_index": 0,
            "image": tag,
            "tls": Access(),
            "build": None,
            "sign": None,
            "in_tree_modules_to_remove": None,
            "dir_name": "/opt",
            **fields,
        }
    )
    return Shipment(resolution=resolution, image=f"r.example/k@{digest(number)}", tag=tag)


BUILDING = Pending(reason="Building", message="image r.example/k is being built")
FAILED = Pending(reason="BuildFailed", message="the compiler said no")
NO_MATCH = Pending(reason="NoMatchingKernel", message="no entry takes it", is_match=False)


def as_stored(work: Mapping[str, Any], *, uid: str = "uid-w", version: int = 7, **metadata: Any) -> Json:
    """A work as the API server answers it."""
    answer = copy.deepcopy(dict(work))
    answer["metadata"] |= {"uid": uid, "resourceVersion": str(version), "generation": 1, **metadata}
    return answer


def posted(
    shipments: Iterable[Shipment], *, spec: Json | None = None, cluster: str = "c1", **metadata: Any
) -> ObservedWork:
    """Our work with these kernels, as the hub stores it."""
    draft = draft_work(
        owner=Owner(name=NAME, uid="uid-m"),
        spec=parse_module(raw_spec() if spec is None else spec),
        shipments=list(shipments),
    )
    return observe_work(as_stored(draft.work_for(cluster), **metadata))


def somebody_elses_work(label: str | None = None) -> ObservedWork:
    """A work of our name that we did not make."""
    labels = {} if label is None else {MODULE_LABEL: label}
    metadata = {"name": NAME, "namespace": "c1", "labels": labels}
    return observe_work(as_stored({"metadata": metadata, "spec": {}}))


def decided(
    outcomes: Mapping[KernelVersion, KernelOutcome],
    work: ObservedWork | None = None,
    *,
    module: Module | None = None,
    cluster: Cluster | None = None,
    posted_hash: str | None = None,
) -> Decision:
    """The decision about module NAME on a cluster that runs the kernels of `outcomes`."""
    return decide(
        module=module or a_module(),
        cluster=cluster or a_cluster(*outcomes),
        outcomes=outcomes,
        work=work,
        posted_hash=posted_hash,
    )


def container_of(work: Mapping[str, Any]) -> Json:
    """The `moduleLoader.container` that a work ships."""
    (manifest,) = work["spec"]["workload"]["manifests"]
    container: Json = manifest["spec"]["moduleLoader"]["container"]
    return container


def mappings_of(work: Mapping[str, Any]) -> list[Json]:
    """The kernel mappings that a work ships."""
    mappings: list[Json] = container_of(work)["kernelMappings"]
    return mappings


def served_by(work: Mapping[str, Any]) -> set[str]:
    """The kernels that a work ships an image for."""
    return {mapping["literal"] for mapping in mappings_of(work)}


def an_artifact(need: Wanted, **fields: Any) -> Artifact:
    """The row of what a kernel needs; ready with a digest unless told otherwise."""
    key = need.request.key
    defaults: Json = {
        "key": key,
        "request": need.request,
        "state": ArtifactState.READY,
        "attempts": 0,
        "source": None,
        "digest": f"sha256:{key}",
        "signed_by": None,
        "reason": None,
        "message": None,
    }
    return Artifact(**{**defaults, **fields})


def works_of(
    spec: Json,
    clusters: Collection[Cluster],
    *,
    catalog: Catalog | None = None,
    configuration: Configuration = CONFIGURATION,
) -> dict[str, Decision]:
    """What a module gets on each cluster once all of its images are ready: read, demand, outcome, decide."""
    read = (catalog or Catalog()).read(stored_module(spec))
    decisions: dict[str, Decision] = {}
    for cluster in clusters:
        needs = {kernel: read.demand(kernel, configuration) for kernel in cluster.kernels}
        decisions[cluster.name] = decide(
            module=read.module,
            cluster=cluster,
            outcomes={kernel: outcome_of(need, ready(needs.values())) for kernel, need in needs.items()},
            work=None,
            posted_hash=None,
        )
    return decisions


def ready(needs: Iterable[Wanted | Unmet]) -> dict[ArtifactKey, Artifact]:
    """All artifacts of these needs, made."""
    return {need.request.key: an_artifact(need) for need in needs if isinstance(need, Wanted)}

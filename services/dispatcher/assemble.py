"""The ManifestWork of one module for one cluster. Pure: equal input gives byte-for-byte equal output.

Shape: upstream's `internal/manifestwork/manifestwork.go`; differences are listed in docs/compatibility.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.domain.artifact import Access
from shared.domain.canonical import Json, canonical_json, content_hash
from shared.domain.image import ImageReference
from shared.domain.mapping import Resolution
from shared.domain.module import ModuleSpec
from shared.domain.work import HASH_ANNOTATION, IMAGES_ANNOTATION, MODULE_LABEL

_COUNTED = ("devicePlugin", "dra", "moduleLoader")
_COUNTERS = ("availableNumber", "desiredNumber", "nodesMatchingSelectorNumber")

OPTIONAL_SPEC_FIELDS = ("deleteOption", "executor")
"""Fields of a ManifestWork's spec that a patch takes away from whoever set them, unless the work has them."""


MAX_MANIFEST_BYTES = 500 * 1024
"""What OCM's webhook lets the manifests of one work take (`--manifestLimit`, 500 KiB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The ManagedClusterModule that a work belongs to."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """One kernel's mapping, ready to be shipped: the digest was seen in the registry."""

    resolution: Resolution
    image: str
    tag: str


def pin(tag: str, digest: str) -> str:
    """`name@digest` for the reference that the user wrote; one that has a digest already stays as it is."""
    return ImageReference.parse(tag).pinned(digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What the works of clusters with the same kernels have in common: all but the namespace.

    Attributes:
        work: the object, in namespace "".
        content_hash: in its HASH_ANNOTATION.
        size: as `size_of`.
    """

    work: Mapping[str, Any]
    content_hash: str
    size: int

    def work_for(self, cluster: str) -> dict[str, Any]:
        """The ManifestWork to be stored in namespace `cluster`; the works of a draft share what is inside."""
        return {**self.work, "metadata": {**self.work["metadata"], "namespace": cluster}}


def draft_work(*, owner: Owner, spec: ModuleSpec, shipments: Sequence[Shipment]) -> Draft:
    """The works of a module for these kernels.

    Args:
        owner: the module.
        spec: the module's spec.
        shipments: one per kernel that is ready; none where the module has no loader.
    """
    content: dict[str, Any] = {
        "workload": {"manifests": [_module(owner.name, spec, shipments)]},
        "manifestConfigs": [_feedback(owner.name, spec.spoke_namespace)],
    }
    images: dict[str, Json] = {shipment.resolution.kernel: shipment.tag for shipment in shipments}
    hashed = content_hash({"spec": content, "images": images, "owner": owner.uid})
    work: dict[str, Any] = {
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "ManifestWork",
        "metadata": {
            "name": owner.name,
            "namespace": "",
            "labels": {MODULE_LABEL: owner.name},
            "annotations": {
                HASH_ANNOTATION: hashed,
                IMAGES_ANNOTATION: canonical_json(images).decode(),
            },
            "ownerReferences": [
                {
                    "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
                    "kind": "ManagedClusterModule",
                    "name": owner.name,
                    "uid": owner.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": content,
    }
    return Draft(work=work, content_hash=hashed, size=size_of(work))


def size_of(work: Mapping[str, Any]) -> int:
    """Bytes that OCM's webhook counts: the manifests as protobuf, each its JSON, a tag byte and a length.

    A length takes one byte for each seven bits of it (protobuf encoding, "varints").
    """
    sizes = [len(canonical_json(manifest)) for manifest in work["spec"]["workload"]["manifests"]]
    return sum(size + 1 + max(1, -(-size.bit_length() // 7)) for size in sizes)


def patch_of(work: Mapping[str, Any], *, uid: str) -> dict[str, Any]:
    """The JSON merge patch that brings a stored work to `work`, and refuses another object of its name."""
    written = ("labels", "annotations", "ownerReferences")
    metadata = {name: work["metadata"][name] for name in written if name in work["metadata"]}
    return {
        "metadata": {"uid": uid, **metadata},
        "spec": {**dict.fromkeys(OPTIONAL_SPEC_FIELDS), **work["spec"]},
    }


def _module(name: str, spec: ModuleSpec, shipments: Sequence[Shipment]) -> dict[str, Any]:
    shipped = without_nulls(spec.module_spec)
    loader = shipped.get("moduleLoader")
    if loader is not None:
        container = {key: value for key, value in loader["container"].items() if key not in {"build", "sign"}}
        inherited = spec.loader.tls if spec.loader is not None else None
        container["kernelMappings"] = [_mapping(shipment, inherited or Access()) for shipment in shipments]
        # Mappings carry the resolved list; the deprecated field beside it would be refused by KMM's webhook.
        container.pop("inTreeModuleToRemove", None)
        # Defaults are spelled out, or the work agent finds a difference to the stored Module at each resync.
        container["modprobe"] = {"dirName": "/opt", **container.get("modprobe", {})}
        shipped["moduleLoader"] = {**loader, "container": container}
    return {
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1",
        "kind": "Module",
        "metadata": {"name": name, "namespace": spec.spoke_namespace},
        "spec": shipped,
    }


def _mapping(shipment: Shipment, inherited: Access) -> dict[str, Any]:
    """One literal mapping; what it says about TLS stands there even if it only takes back the container's word."""
    resolution = shipment.resolution
    mapping: dict[str, Any] = {"literal": resolution.kernel, "containerImage": shipment.image}
    if resolution.in_tree_modules_to_remove is not None:
        mapping["inTreeModulesToRemove"] = list(resolution.in_tree_modules_to_remove)
    if resolution.tls != Access() or inherited != Access():
        mapping["registryTLS"] = {
            "insecure": resolution.tls.insecure,
            "insecureSkipTLSVerify": resolution.tls.skip_tls_verify,
        }
    return mapping


def _feedback(name: str, namespace: str) -> dict[str, Any]:
    return {
        "resourceIdentifier": {
            "group": "kmm.sigs.x-k8s.io",
            "resource": "modules",
            "name": name,
            "namespace": namespace,
        },
        "feedbackRules": [
            {
                "type": "JSONPaths",
                "jsonPaths": [
                    {"name": f"{part}.{counter}", "path": f".status.{part}.{counter}"}
                    for part in _COUNTED
                    for counter in _COUNTERS
                ],
            }
        ],
    }


def without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without null members: clients written in Go send them, and null means absent."""
    return {key: _without_nulls_inside(member) for key, member in value.items() if member is not None}


def _without_nulls_inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_nulls(value)
    if isinstance(value, list):
        return [_without_nulls_inside(member) for member in value]
    return value

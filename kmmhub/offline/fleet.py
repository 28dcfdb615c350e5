"""The works that the dispatcher would post for modules and clusters in files, by the dispatcher's own functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from kmmhub.offline.documents import CLUSTER_KIND, Document, UnusableInput, read_mapping
from kmmhub.offline.structure import check_structure
from services.dispatcher.assemble import Shipment, pin, without_nulls
from services.dispatcher.catalog import Catalog, ReadModule, names_used
from services.dispatcher.decide import Cluster, Create, KernelOutcome, Leave, Pending, Why, decide
from services.dispatcher.demand import CERT_FIELD, KEY_FIELD, Configuration, SecretFact, Unmet
from services.dispatcher.stored import StoredModule
from services.watcher.facts import cluster_row
from services.watcher.kinds import ManagedCluster
from shared.domain.claim import CLAIM_NAME
from shared.domain.image import ImageReference, InvalidImageReference
from shared.domain.kernel import KernelVersion
from shared.domain.module import ModuleSpec
from shared.domain.selection import is_selected

Digests = Mapping[str, str]
"""Digest by image reference, as written in modules after their variables are replaced."""

_WHY = {
    Why.BEING_DELETED: "the cluster is being deleted",
    Why.TOO_LARGE: "the work would be larger than OCM allows; split the module, or use fewer and shorter mappings",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The works for one module, or for the part of them that could be told.

    Attributes:
        works: ManifestWorks, by cluster name.
        lines: what is missing and where, for people.
        has_failed: a work is missing because of the module itself.
    """

    works: tuple[dict[str, Any], ...]
    lines: tuple[str, ...]
    has_failed: bool = False


def read_clusters(documents: Sequence[Document]) -> list[Cluster]:
    """The ManagedClusters among documents, by name, read as the watcher reads them.

    Raises:
        UnusableInput: a cluster cannot be read, or two have one name.
    """
    clusters: dict[str, Cluster] = {}
    for document in documents:
        if document.kind != CLUSTER_KIND:
            continue
        cluster = _cluster(document)
        if cluster.name in clusters:
            raise UnusableInput(f"{document.where}: cluster {cluster.name!r} is there twice; leave one out")
        clusters[cluster.name] = cluster
    return [clusters[name] for name in sorted(clusters)]


def read_module(document: Document) -> ReadModule:
    """A ManagedClusterModule as the dispatcher would find it: with defaults, without nulls and unknown fields.

    Raises:
        UnusableInput: it has no name.
    """
    if not document.name:
        raise UnusableInput(f"{document.where}: metadata.name is missing; write the module's name")
    metadata = document.content["metadata"]
    spec = check_structure(document.content).content.get("spec")
    return Catalog().read(
        StoredModule(
            name=document.name,
            uid=str(metadata.get("uid") or ""),
            generation=0,
            spec=spec if isinstance(spec, dict) else {},
            status={},
            finalizers=(),
            is_deleting=metadata.get("deletionTimestamp") is not None,
            resource_version=0,
        )
    )


def read_digests(file: str) -> Digests:
    """Read a map from image references to digests.

    Raises:
        UnusableInput: a value is no digest.
    """
    digests = read_mapping(file)
    for reference, digest in digests.items():
        try:
            ImageReference.parse(f"image@{digest}")
        except InvalidImageReference as error:
            raise UnusableInput(f"{file}: {reference}: {digest!r} is no digest; write sha256:…") from error
    return digests


def claim_problems(clusters: Sequence[Cluster]) -> Iterator[str]:
    """A line for each entry of a claim that is no kernel."""
    for cluster in clusters:
        for reason in cluster.bad_kernels:
            yield f"cluster {cluster.name}: its claim has an entry that is left out: {reason}"


def render_module(read: ReadModule, clusters: Sequence[Cluster], digests: Digests | None) -> Rendered:
    """The works of one module on all clusters that it selects, none of which has a work yet.

    Args:
        read: the module.
        clusters: all clusters, in the order of the works.
        digests: by image; None to ship the images as they are written.
    """
    module, spec = read.module, read.module.spec
    if module.is_deleting:
        return Rendered(works=(), lines=(f"module {module.name}: is being deleted: no works",))
    if spec is None:
        reason = read.problem[1] if read.problem else "it cannot be read"
        return Rendered(works=(), lines=(f"module {module.name}: no works: {reason}",), has_failed=True)
    works: list[dict[str, Any]] = []
    lines: list[str] = []
    has_failed = False
    configuration = _assumed(spec)
    known: dict[KernelVersion, KernelOutcome] = {}
    for cluster in clusters:
        if not is_selected(spec.selector, cluster.labels):
            continue
        for kernel in cluster.kernels if spec.loader is not None else ():
            if kernel not in known:
                known[kernel] = _outcome(read, kernel, configuration, digests)
        outcomes = {kernel: known[kernel] for kernel in cluster.kernels if kernel in known}
        lines.extend(
            f"cluster {cluster.name}: module {module.name}: {text}" for text in _gaps(cluster, spec, outcomes)
        )
        decision = decide(module=module, cluster=cluster, outcomes=outcomes, work=None, posted_hash=None)
        if isinstance(decision, Create):
            works.append(decision.work)
        elif isinstance(decision, Leave) and decision.why in _WHY:
            lines.append(f"cluster {cluster.name}: module {module.name}: no work: {_WHY[decision.why]}")
            has_failed = has_failed or decision.why is Why.TOO_LARGE
    return Rendered(works=tuple(works), lines=tuple(lines), has_failed=has_failed)


def _cluster(document: Document) -> Cluster:
    content = without_nulls(document.content)
    metadata = content.get("metadata")
    if not document.name or not isinstance(metadata, dict):
        raise UnusableInput(f"{document.where}: metadata.name is missing; write the cluster's name")
    # Versions and times of a file mean nothing here, and need not be there.
    metadata = {name: metadata[name] for name in ("name", "labels", "deletionTimestamp") if name in metadata}
    try:
        row = cluster_row(msgspec.convert({**content, "metadata": metadata}, ManagedCluster))
    except msgspec.ValidationError as error:
        raise UnusableInput(f"{document.where}: cluster {document.name!r} cannot be read: {error}") from error
    return Cluster(
        name=row["name"],
        labels=row["labels"],
        kernels=tuple(row["kernels"]),
        has_claim=row["claim_is_present"],
        is_deleting=row["is_deleting"],
        bad_kernels=tuple(entry["reason"] for entry in row["invalid_kernels"]),
    )


def _assumed(spec: ModuleSpec) -> Configuration:
    """Whatever the module names exists: which image a kernel gets does not depend on it."""
    names = names_used(spec)
    keys = frozenset({KEY_FIELD, CERT_FIELD})
    return Configuration(
        namespace="",
        dockerfiles=dict.fromkeys(names, "FROM scratch"),
        secrets={name: SecretFact(version="", keys=keys) for name in names},
    )


def _outcome(
    read: ReadModule, kernel: KernelVersion, configuration: Configuration, digests: Digests | None
) -> KernelOutcome:
    need = read.demand(kernel, configuration)
    if isinstance(need, Unmet):
        return Pending(reason=need.reason, message=need.message, is_match=need.is_match)
    tag = need.resolution.image
    if digests is None:
        return Shipment(resolution=need.resolution, image=tag, tag=tag)
    reference = ImageReference.parse(tag)
    digest = reference.digest or digests.get(tag) or digests.get(reference.lookup)
    if digest is None:
        return Pending(reason="DigestMissing", message=f"image {tag} is not among the digests; add it there")
    return Shipment(resolution=need.resolution, image=pin(tag, digest), tag=tag)


def _gaps(
    cluster: Cluster, spec: ModuleSpec, outcomes: Mapping[KernelVersion, KernelOutcome]
) -> Iterator[str]:
    """What a person must know about a selected cluster: kernels that get nothing, or that nobody knows."""
    if not cluster.has_claim:
        result = "no work" if spec.loader is not None else "its work needs none"
        yield f"it has no claim {CLAIM_NAME}: {result}"
    elif not cluster.kernels and spec.loader is not None:
        yield f"its claim {CLAIM_NAME} names no kernel: no work"
    for kernel, outcome in outcomes.items():
        if isinstance(outcome, Pending):
            why = outcome.message.removeprefix(f"kernel {kernel}: ")
            yield f"kernel {kernel} is left out: {why}"

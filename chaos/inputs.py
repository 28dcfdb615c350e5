"""What the user asked for, and what must therefore be on the hub in the end. Pure, and none of the product's code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

LABELS = ("east", "west")
"""Values of the label that modules select clusters by."""


class ModuleKind(StrEnum):
    """How a module comes to its images."""

    ADOPTED = "adopted"
    """They are in the registry already."""
    BUILT = "built"
    SIGNED = "signed"
    """An image of the user's is signed."""
    BUILT_AND_SIGNED = "built and signed"
    BROKEN = "broken"
    """Its Dockerfile can never be built."""

    @property
    def is_signed(self) -> bool:
        """Whether what it ships bears signatures."""
        return self in {ModuleKind.SIGNED, ModuleKind.BUILT_AND_SIGNED}

    @property
    def is_built(self) -> bool:
        """Whether what it ships is built from the user's Dockerfile, with the module's version as an argument."""
        return self in {ModuleKind.BUILT, ModuleKind.BUILT_AND_SIGNED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A ManagedCluster."""

    label: str
    kernels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A ManagedClusterModule; `version` goes into its build arguments."""

    kind: ModuleKind
    select: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that the user wants, by name."""

    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    modules: Mapping[str, Module] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddCluster:
    """A spoke joins."""

    name: str
    label: str
    kernels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetKernels:
    """A spoke's nodes run other kernels now."""

    cluster: str
    kernels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabel:
    """A cluster gets another label."""

    cluster: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteCluster:
    """A spoke leaves."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddModule:
    """A user creates a module."""

    name: str
    kind: ModuleKind
    select: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeModule:
    """A user changes a build argument."""

    name: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteModule:
    """A user deletes a module."""

    name: str


Action: TypeAlias = (
    AddCluster | SetKernels | Relabel | DeleteCluster | AddModule | ChangeModule | DeleteModule
)


def apply(inputs: Inputs, action: Action) -> Inputs:
    """What the user wants after an action."""
    clusters, modules = dict(inputs.clusters), dict(inputs.modules)
    match action:
        case AddCluster(name=name, label=label, kernels=kernels):
            clusters[name] = Cluster(label=label, kernels=kernels)
        case SetKernels(cluster=name, kernels=kernels):
            clusters[name] = replace(clusters[name], kernels=kernels)
        case Relabel(cluster=name, label=label):
            clusters[name] = replace(clusters[name], label=label)
        case DeleteCluster(name=name):
            del clusters[name]
        case AddModule(name=name, kind=kind, select=select, version=version):
            modules[name] = Module(kind=kind, select=select, version=version)
        case ChangeModule(name=name, version=version):
            modules[name] = replace(modules[name], version=version)
        case DeleteModule(name=name):
            del modules[name]
    return Inputs(clusters=clusters, modules=modules)


Place: TypeAlias = tuple[str, str]
"""A module and a cluster."""


def desired_kernels(inputs: Inputs) -> dict[Place, frozenset[str]]:
    """The ManifestWorks that must be there in the end, each with the kernels that it serves.

    A module that cannot be built has none.
    """
    return {
        (name, cluster_name): frozenset(cluster.kernels)
        for name, module in inputs.modules.items()
        if module.kind is not ModuleKind.BROKEN
        for cluster_name, cluster in inputs.clusters.items()
        if cluster.label == module.select
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the user wanted from a time on, in seconds of the run."""

    since: float
    inputs: Inputs


def could_be_wanted(history: Sequence[Moment], place: Place, kernels: frozenset[str], *, since: float) -> str:
    """Why a work that was written may not have been: nothing that the user wanted since then explains it.

    Args:
        history: in order of time.
        place: the work's module and cluster.
        kernels: those that it serves.
        since: how old the hub's knowledge may be, in seconds of the run.

    Returns:
        Empty if it may.
    """
    name, cluster_name = place
    ends = [moment.since for moment in history[1:]] + [float("inf")]
    recent = [moment.inputs for moment, end in zip(history, ends, strict=True) if end >= since]
    selected = False
    reported: set[str] = set()
    for inputs in recent:
        module, cluster = inputs.modules.get(name), inputs.clusters.get(cluster_name)
        if cluster is not None:
            reported |= set(cluster.kernels)
            selected |= module is not None and module.select == cluster.label
    if not selected:
        return "the module does not select the cluster, or one of them is not there"
    unknown = sorted(kernels - reported)
    return f"the cluster does not run {', '.join(unknown)}" if unknown else ""

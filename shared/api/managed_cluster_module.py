"""`ManagedClusterModule` of `hub.kmm.sigs.x-k8s.io/v1beta1`: a Module for many clusters.

The spec and the three counters are those of kernel-module-management's
`api-hub/v1beta1/managedclustermodule_types.go`; conditions and `observedGeneration` are this hub's.
"""

from typing import Annotated, Literal

from pydantic import Field

from shared.api.base import ApiModel, Condition, Int32, Int64, Labels, Metadata
from shared.api.module import DaemonSetStatus, ModuleSpec


class ManagedClusterModuleSpec(ApiModel):
    """Which module goes to which clusters."""

    selector: Labels
    """Labels that a ManagedCluster must have; {} selects every cluster."""
    spoke_namespace: str
    """Namespace of the Module on the clusters, where it must exist."""
    module_spec: ModuleSpec | None = None
    """The spec of the Module on the clusters."""


class Attention(ApiModel):
    """One cluster on which something has to be done, or for which something is missing on the hub."""

    cluster: str
    """Name of the ManagedCluster."""
    kernel: str | None = None
    """The kernel version that it is about; absent where it is about all of them."""
    reason: str
    """Why, as one CamelCase word for programs."""
    message: str
    """What is wrong, and what to do, in words for people."""


class ManagedClusterModuleStatus(ApiModel):
    """How far the module has come on the selected clusters."""

    number_desired: Int32 | None = None
    """ManifestWorks that exist for this module."""
    number_applied: Int32 | None = None
    """ManifestWorks that their cluster has applied."""
    number_degraded: Int32 | None = None
    """ManifestWorks that their cluster reports as degraded."""
    observed_generation: Annotated[Int64, Field(ge=0)] | None = None
    """The `metadata.generation` that this status was made from."""
    phases: dict[str, Int32] | None = None
    """How many selected clusters are in which phase."""
    attention: Annotated[tuple[Attention, ...], Field(max_length=20)] | None = None
    """The first clusters that need attention, at most 20."""
    module_loader: DaemonSetStatus | None = None
    """Nodes and the kernel module, added up over the clusters that report them."""
    device_plugin: DaemonSetStatus | None = None
    """Nodes and the device plugin, added up over the clusters that report them."""
    dra: DaemonSetStatus | None = None
    """Nodes and the DRA driver, added up over the clusters that report them."""
    conditions: (
        Annotated[
            tuple[Condition, ...],
            Field(
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
            ),
        ]
        | None
    ) = None
    """What holds for the module, one entry per type."""


class ManagedClusterModule(ApiModel):
    """A kernel module for every selected cluster: built and signed on the hub, loaded on the spokes."""

    api_version: Literal["hub.kmm.sigs.x-k8s.io/v1beta1"] = "hub.kmm.sigs.x-k8s.io/v1beta1"
    kind: Literal["ManagedClusterModule"] = "ManagedClusterModule"
    metadata: Metadata
    spec: ManagedClusterModuleSpec | None = None
    """Which module goes to which clusters."""
    status: ManagedClusterModuleStatus | None = None
    """How far the module has come."""

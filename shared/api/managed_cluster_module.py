"""`ManagedClusterModule` of `hub.kmm.sigs.x-k8s.io/v1beta1`: a Module for many clusters.

The spec and the three counters are those of kernel-module-management's
`api-hub/v1beta1/managedclustermodule_types.go`; conditions and `observedGeneration` are this hub's.
"""

from typing import Annotated, Literal

from pydantic import Field

from shared.api.base import ApiModel, Condition, Int32, Int64, Labels, Metadata
from shared.api.module import ModuleSpec


class ManagedClusterModuleSpec(ApiModel):
    """Which module goes to which clusters."""

    selector: Labels
    """Labels that a ManagedCluster must have; {} selects every cluster."""
    spoke_namespace: str
    """Namespace of the Module on the clusters, where it must exist."""
    module_spec: ModuleSpec | None = None
    """The spec of the Module on the clusters."""


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

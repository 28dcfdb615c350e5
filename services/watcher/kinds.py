"""The parts of API objects that we read. Everything else in an event is skipped without being decoded."""

from __future__ import annotations

from typing import Any

import msgspec

from shared.kube.reflector import Metadata


class ClusterClaim(msgspec.Struct):
    """One claim of a spoke."""

    name: str
    value: str = ""


class ManagedClusterStatus(msgspec.Struct, rename="camel"):
    """Claims only; capacity and the rest change often and mean nothing to us."""

    cluster_claims: list[ClusterClaim] | None = None


class ManagedCluster(msgspec.Struct):
    """cluster.open-cluster-management.io/v1."""

    metadata: Metadata
    status: ManagedClusterStatus | None = None


class ManagedClusterModule(msgspec.Struct):
    """hub.kmm.sigs.x-k8s.io/v1beta1."""

    metadata: Metadata
    spec: dict[str, Any] | None = None
    status: dict[str, Any] | None = None


class ConfigMap(msgspec.Struct):
    """v1."""

    metadata: Metadata
    data: dict[str, str] | None = None


class Secret(msgspec.Struct):
    """v1. The content is hashed at once and never kept."""

    metadata: Metadata
    data: dict[str, str] | None = None


class ManifestWork(msgspec.Struct):
    """work.open-cluster-management.io/v1."""

    metadata: Metadata
    spec: dict[str, Any] | None = None
    status: dict[str, Any] | None = None

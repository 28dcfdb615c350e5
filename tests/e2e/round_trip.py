"""What the round trip's tests share: a spoke that joins the fleet, and the parts of OCM's hub that tests play."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fleet import Fleet
from running_services import eventually
from spoke.client import ApiClient
from spoke.lane import Lane, open_lane

from localhub.hub import HubAddresses
from shared.kube.client import MANAGED_CLUSTERS, MANIFEST_WORKS

PERMISSIONS = "kmm-hub-permissions"
KERNEL, NEWER = "6.1.0-13-amd64", "6.1.0-14-amd64"
SECONDS = 60.0
"""For a way to the spoke and back; agents that failed for a while pause as long again."""

CLEANUP = "cluster.open-cluster-management.io/resource-cleanup"
PRIORITY = "open-cluster-management.io/cleanup-priority"


@contextlib.asynccontextmanager
async def joined(
    fleet: Fleet, hub: HubAddresses, agent: str, name: str, *, has_kmm: bool = True
) -> AsyncIterator[Lane]:
    """A new spoke in the fleet, selected by the module `name`, with one kernel; its agent runs.

    Args:
        fleet: running services.
        hub: their hub.
        agent: see `spoke.agents`.
        name: of a module that selects it; the cluster is called `<name>-spoke`.
        has_kmm: whether KMM's CRD is there.
    """
    cluster = f"{name}-spoke"
    await fleet.add_namespace(cluster)
    async with open_lane(hub, cluster, agent=agent) as lane:
        if has_kmm:
            await lane.install_kmm()
        await lane.agent.start()
        await fleet.add_cluster(cluster, label=name, kernels=[KERNEL])
        yield lane


async def add_module(fleet: Fleet, name: str) -> None:
    """A module with ready images for both kernels."""
    for tag in (KERNEL, NEWER):
        await fleet.push(name, tag)
    await fleet.add_module(name)


async def on_spoke(
    lane: Lane, name: str, kernels: Sequence[str], *, seconds: float = SECONDS
) -> dict[str, Any]:
    """Wait until a Module on the spoke serves exactly these kernels. Returns it."""

    async def look() -> dict[str, Any]:
        module = await lane.module(name)
        assert module is not None, "no Module on the spoke"
        assert sorted(images_of(module)) == sorted(kernels)
        return module

    return await eventually(look, what=f"Module {name} serves {kernels} on {lane.cluster}", seconds=seconds)


async def off_spoke(lane: Lane, name: str) -> None:
    """Wait until a Module is gone from the spoke."""

    async def look() -> bool:
        return await lane.module(name) is None

    await eventually(look, what=f"Module {name} is gone from {lane.cluster}", seconds=SECONDS)


def images_of(module: dict[str, Any]) -> dict[str, str]:
    """Kernels of a Module with their images."""
    mappings = module["spec"]["moduleLoader"]["container"]["kernelMappings"]
    return {mapping["literal"]: mapping["containerImage"] for mapping in mappings}


async def status_of(fleet: Fleet, name: str) -> dict[str, Any]:
    """A module's status."""
    found = await fleet.module(name)
    assert found is not None
    return dict(found.get("status") or {})


async def begin_detach(fleet: Fleet, cluster: str) -> None:
    """An administrator deletes a ManagedCluster; OCM's finalizer keeps it until its works are gone."""
    await fleet.kube.merge_patch(MANAGED_CLUSTERS, cluster, {"metadata": {"finalizers": [CLEANUP]}})
    await fleet.kube.delete(MANAGED_CLUSTERS, cluster)


async def clean_cluster(fleet: Fleet, hub: ApiClient, cluster: str) -> list[str]:
    """Play the cleanup of OCM's registration controller: it deletes works by ascending priority.

    Returns:
        The names of the works in the order of their deletion.
    """
    works = await hub.list_all(MANIFEST_WORKS, namespace=cluster)
    works.sort(key=lambda work: int((work["metadata"].get("annotations") or {}).get(PRIORITY, "0")))
    names = [work["metadata"]["name"] for work in works]
    for name in names:
        await hub.delete(MANIFEST_WORKS, name, namespace=cluster)
        await fleet.gone(cluster, name)
    return names


async def finish_detach(fleet: Fleet, cluster: str) -> None:
    """OCM lets the ManagedCluster go."""
    await fleet.kube.merge_patch(MANAGED_CLUSTERS, cluster, {"metadata": {"finalizers": []}})

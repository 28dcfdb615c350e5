"""A spoke with its agent beside a hub: two real API servers, real rights, and KMM's operator played by hand."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kmmhub.crds import CRD_DIRECTORY
from localhub import ocm
from localhub.files import write_private
from localhub.hub import HubAddresses
from localhub.pki import issue_client_certificate
from localhub.progress import silent
from localhub.settings import LocalHubSettings
from localhub.spoke import Spoke
from shared.kube.client import CRDS, NAMESPACES
from shared.kube.errors import Conflict, NotFound
from spoke import rights
from spoke.agents import Place, WorkAgent, make_agent
from spoke.aggregation import keep_aggregating
from spoke.client import APPLIED_WORKS, KMM_MODULES, ApiClient

APPLIED_WORK_CRD = "work/v1/0000_01_work.open-cluster-management.io_appliedmanifestworks.crd.yaml"
MODULE_CRD = CRD_DIRECTORY / "kmm.sigs.x-k8s.io_modules.yaml"
MANAGER = "kmmhub-tests"
ESTABLISHED_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One spoke as its administrator sees it, and its agent, which is not started.

    Attributes:
        cluster: the ManagedCluster's name.
        kube: the spoke under an administrator's rights.
        hub_url: the hub's address, whose hash names what the agent notes on the spoke.
        agent: start it when the spoke shall join.
    """

    cluster: str
    kube: ApiClient
    hub_url: str
    agent: WorkAgent

    async def install_kmm(self) -> None:
        """Install KMM as far as anybody outside of it can see: its CRD."""
        await self.install_crd(yaml.safe_load(MODULE_CRD.read_text()))

    async def install_crd(self, crd: Mapping[str, Any]) -> None:
        """Install a CRD and wait until it is served."""
        await _install_crd(self.kube, crd)

    async def add_namespace(self, name: str) -> None:
        """A namespace, unless it is there."""
        with contextlib.suppress(Conflict):
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            await self.kube.create(NAMESPACES, body)

    async def module(self, name: str, *, namespace: str = "kmm") -> dict[str, Any] | None:
        """A Module on the spoke, None if it or its kind is not there."""
        try:
            return await self.kube.get(KMM_MODULES, name, namespace=namespace)
        except NotFound:
            return None

    async def report(
        self, name: str, *, namespace: str = "kmm", part: str = "moduleLoader", **counters: int
    ) -> None:
        """KMM's operator counts nodes. What is 0 it leaves out, as its `omitempty` does."""
        counted = {key: value or None for key, value in counters.items()}
        await self.kube.merge_patch(
            KMM_MODULES, name, {"status": {part: counted}}, namespace=namespace, subresource="status"
        )

    async def hold_module(self, name: str, *, namespace: str = "kmm", is_held: bool = True) -> None:
        """KMM's operator puts its finalizer on a Module, or has unloaded it and takes the finalizer off."""
        finalizers = ["kmm.node.kubernetes.io/module-finalizer"] if is_held else []
        await self.kube.merge_patch(
            KMM_MODULES, name, {"metadata": {"finalizers": finalizers}}, namespace=namespace
        )

    async def applied_works(self) -> dict[str, dict[str, Any]]:
        """What the agent notes, by name of the work; of other hubs' works nothing."""
        return {one["spec"]["manifestWorkName"]: one for one in await self.kube.list_all(APPLIED_WORKS)}


def refuse_foreign_hub(hub: HubAddresses) -> None:
    """Skip the test unless the hub's API server is the local hub's: agents get certificates of its authority."""
    if not (hub.kubeconfig.parent / "pki" / "ca.key").is_file():
        pytest.skip(
            f"the hub of {hub.kubeconfig} is somebody else's: no certificate can be issued for agents"
        )


@contextlib.asynccontextmanager
async def open_lane(
    hub: HubAddresses, cluster: str, *, agent: str, eviction_grace: float = 3600.0
) -> AsyncIterator[Lane]:
    """An empty spoke for a cluster whose namespace is on the hub; it and its agent end with the block.

    Args:
        hub: a hub that `refuse_foreign_hub` lets pass.
        cluster: the ManagedCluster's name; also the spoke's, so that each is used once on a hub.
        agent: see `spoke.agents.make_agent`.
        eviction_grace: seconds that objects outlive works that vanish.
    """
    spoke = Spoke(hub.kubeconfig.parent, cluster)
    try:
        await asyncio.to_thread(spoke.up)
        async with (
            await ApiClient.connect(hub.kubeconfig) as hub_admin,
            await ApiClient.connect(spoke.kubeconfig) as admin,
        ):
            await _apply_all(hub_admin, rights.hub_rights(cluster))
            await _apply_all(admin, rights.spoke_rights())
            await _install_crd(admin, await asyncio.to_thread(_applied_work_crd))
            place = Place(
                cluster=cluster,
                hub=_hub_kubeconfig(hub, cluster, spoke.directory),
                spoke=await asyncio.to_thread(_spoke_kubeconfig, hub.kubectl, spoke),
                directory=spoke.directory,
                eviction_grace=eviction_grace,
            )
            runner = make_agent(agent, place)
            aggregation = asyncio.create_task(keep_aggregating(admin))
            try:
                yield Lane(cluster=cluster, kube=admin, hub_url=hub_admin.url, agent=runner)
            finally:
                await runner.stop()
                aggregation.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await aggregation
    finally:
        await asyncio.to_thread(spoke.down, purge=True)


async def _apply_all(kube: ApiClient, objects: list[dict[str, Any]]) -> None:
    for item in objects:
        resource, _ = await kube.mapping(item["apiVersion"], item["kind"])
        metadata = item["metadata"]
        await kube.apply(
            resource, metadata["name"], item, manager=MANAGER, namespace=metadata.get("namespace")
        )


async def _install_crd(kube: ApiClient, crd: Mapping[str, Any]) -> None:
    name = crd["metadata"]["name"]
    await kube.apply(CRDS, name, crd, manager=MANAGER)
    for _ in range(round(ESTABLISHED_SECONDS / 0.1)):
        if _is_served(await kube.get(CRDS, name)):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{name} is not served after {ESTABLISHED_SECONDS:.0f} seconds")


def _is_served(crd: Mapping[str, Any]) -> bool:
    conditions = (crd.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def _applied_work_crd() -> dict[str, Any]:
    module = ocm.fetch_module(ocm.MODULE, LocalHubSettings().cache, silent)
    crd: dict[str, Any] = yaml.safe_load((module / APPLIED_WORK_CRD).read_text())
    return crd


def _hub_kubeconfig(hub: HubAddresses, cluster: str, directory: Path) -> Path:
    user, groups = rights.hub_user(cluster)
    certificate, key = issue_client_certificate(hub.kubeconfig.parent / "pki", user=user, groups=groups)
    files = {"client-certificate": directory / "hub-agent.crt", "client-key": directory / "hub-agent.key"}
    for path, text in zip(files.values(), (certificate, key), strict=True):
        write_private(path, text)
    target = directory / "hub-agent.kubeconfig"
    return _as_user(hub.kubeconfig, {name: str(path) for name, path in files.items()}, target)


def _spoke_kubeconfig(kubectl: Path, spoke: Spoke) -> Path:
    """A kubeconfig with a token of the agent's service account."""
    arguments = (
        str(kubectl),
        f"--kubeconfig={spoke.kubeconfig}",
        "create",
        "token",
        rights.AGENT_ACCOUNT,
        f"--namespace={rights.AGENT_NAMESPACE}",
        "--duration=24h",
    )
    made = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    return _as_user(spoke.kubeconfig, {"token": made.stdout.strip()}, spoke.directory / "agent.kubeconfig")


def _as_user(kubeconfig: Path, credentials: Mapping[str, str], target: Path) -> Path:
    """A kubeconfig of the same server with other credentials."""
    content = yaml.safe_load(kubeconfig.read_text())
    content["users"] = [{"name": content["users"][0]["name"], "user": dict(credentials)}]
    write_private(target, yaml.safe_dump(content))
    return target

"""`kmmhub install`: what a hub needs before the services start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import yaml

from shared.kube.client import CRDS, NAMESPACES, KubeClient
from shared.kube.errors import ApiUnavailable

CRD_DIRECTORY = Path(__file__).parent.parent / "deploy" / "crds"
HUB_CRDS = ("hub.kmm.sigs.x-k8s.io_managedclustermodules.yaml",)
"""Only the hub's own: the spoke's Module has no place on a hub."""

MANAGER = "kmmhub-install"
ESTABLISHED_SECONDS = 30


def install_hub(kubeconfig: Path | None, namespace: str) -> list[str]:
    """Apply our CRDs and the operator's namespace to a hub. Running it again changes nothing.

    Args:
        kubeconfig: None takes KUBECONFIG, ~/.kube/config or the pod's own account.
        namespace: the operator's namespace.

    Returns:
        What was applied, in words.

    Raises:
        HubError: the API server refused or cannot be reached.
    """
    return asyncio.run(_install(kubeconfig, namespace))


async def _install(kubeconfig: Path | None, namespace: str) -> list[str]:
    applied = []
    async with await KubeClient.connect(kubeconfig) as kube:
        for file in HUB_CRDS:
            crd = yaml.safe_load((CRD_DIRECTORY / file).read_text())
            name = crd["metadata"]["name"]
            await kube.apply(CRDS, name, crd, manager=MANAGER)
            await _wait_until_established(kube, name)
            applied.append(f"CustomResourceDefinition {name}")
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        await kube.apply(NAMESPACES, namespace, body, manager=MANAGER)
        applied.append(f"Namespace {namespace}")
    return applied


async def _wait_until_established(kube: KubeClient, name: str) -> None:
    for _ in range(ESTABLISHED_SECONDS * 10):
        if _is_established(await kube.get(CRDS, name)):
            return
        await asyncio.sleep(0.1)
    raise ApiUnavailable(f"CustomResourceDefinition {name} is not served after {ESTABLISHED_SECONDS} seconds")


def _is_established(crd: dict[str, Any]) -> bool:
    conditions = (crd.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)

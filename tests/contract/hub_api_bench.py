"""Runs one case against a real API server and against the simulated one, on virtual time."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kmmhub.install import install_hub
from localhub.hub import HubAddresses
from shared.kube.client import MANIFEST_WORKS, NAMESPACES, KubeClient, Resource
from shared.kube.port import HubApi
from simulation.hub import HubState, SimulatedKube
from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.run import simulate

Json = dict[str, Any]
OTHER_UID = "11111111-1111-4111-8111-111111111111"
SEEDS = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A hub, and a namespace of the case's own in it."""

    kube: HubApi
    namespace: str
    compact: Callable[[], Awaitable[None]]
    """Makes the server's store forget the past."""

    age: Callable[[str], str] = lambda token: token
    """Makes a token of a list so old that `compact` concerns it: real servers keep young lists in memory."""

    async def add(self, name: str, *, manifests: int = 0, **metadata: Any) -> Json:
        """Create a ManifestWork."""
        return await self.kube.create(
            MANIFEST_WORKS, work(name, manifests=manifests, **metadata), namespace=self.namespace
        )

    async def get(self, name: str) -> Json:
        return await self.kube.get(MANIFEST_WORKS, name, namespace=self.namespace)

    async def patch(self, name: str, subresource: str | None = None, **body: Any) -> Json:
        return await self.kube.merge_patch(
            MANIFEST_WORKS, name, body, namespace=self.namespace, subresource=subresource
        )

    async def delete(self, name: str, *, uid: str | None = None) -> None:
        await self.kube.delete(MANIFEST_WORKS, name, namespace=self.namespace, uid=uid)

    async def events(self, version: str, count: int, resource: Resource = MANIFEST_WORKS) -> list[Json]:
        """The first events after a version, in the case's namespace; bookmarks left out."""
        return await first_events(self.kube, resource, version, count, namespace=self.namespace)

    async def names(self, *, limit: int, token: str | None = None, **labels: str) -> tuple[list[str], Json]:
        """One page: names, and the metadata of the list."""
        page = json.loads(
            await self.kube.list_page(
                MANIFEST_WORKS, namespace=self.namespace, limit=limit, token=token, labels=labels
            )
        )
        return [item["metadata"]["name"] for item in page["items"]], page["metadata"]


async def first_events(
    kube: HubApi, resource: Resource, version: str, count: int, *, namespace: str | None = None
) -> list[Json]:
    """The first events of a watch, without bookmarks."""
    found: list[Json] = []
    watch: AsyncIterator[bytes] = kube.watch(resource, resource_version=version, namespace=namespace)
    async with asyncio.timeout(20), aclosing(watch):
        async for line in watch:
            assert line.endswith(b"\n")
            event = json.loads(line)
            if event["type"] != "BOOKMARK":
                found.append(event)
            if len(found) == count:
                break
    return found


def work(name: str, *, manifests: int = 0, **metadata: Any) -> Json:
    """A ManifestWork with so many ConfigMaps."""
    manifest = {"apiVersion": "v1", "kind": "ConfigMap"}
    return {
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "ManifestWork",
        "metadata": {"name": name, **metadata},
        "spec": workload(*(manifest | {"metadata": {"name": f"m{n}"}} for n in range(manifests))),
    }


def workload(*manifests: Mapping[str, Any]) -> Json:
    """A work's spec."""
    return {"workload": {"manifests": list(manifests)}}


Case = Callable[[Bench], Awaitable[None]]


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.integration)])
def run_case(request: pytest.FixtureRequest) -> Callable[[Case], None]:
    """Runs a case on one of the two."""
    if request.param == "simulated":
        return run_simulated
    kubeconfig = request.getfixturevalue("kubeconfig_with_modules")
    return lambda case: asyncio.run(run_real(case, kubeconfig))


@pytest.fixture(scope="session")
def kubeconfig_with_modules(hub: HubAddresses) -> Path:
    """Of a hub that serves our own resource, too."""
    install_hub(hub.kubeconfig, "kmm-operator-system")
    return hub.kubeconfig


async def run_real(case: Case, kubeconfig: Path) -> None:
    async with await KubeClient.connect(kubeconfig) as kube:
        await prepare(kube, name := f"api-{secrets.token_hex(4)}")
        compact = functools.partial(compact_etcd, kube, kubeconfig.parent / "kubernetes" / "etcd.sock")
        await case(Bench(kube=kube, namespace=name, compact=compact, age=with_first_version))
    await asyncio.sleep(0.1)  # aiohttp lets go of TLS connections a moment after it says so


def run_simulated(case: Case) -> None:
    for seed in SEEDS:

        async def main(loop: SimulationLoop) -> None:
            state = HubState(loop.chance("hub"), loop.time)
            kube = SimulatedKube(state, Line("test", Weather(), loop.chance("line")))
            await prepare(kube, "api")

            async def compact() -> None:
                state.compact()

            await case(Bench(kube=kube, namespace="api", compact=compact))

        simulate(main, seed=seed)


async def prepare(kube: HubApi, namespace: str) -> None:
    """Make a namespace."""
    await kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})


async def compact_etcd(kube: HubApi, socket: Path) -> None:
    """What the API server does every few minutes, now. Only the tests' own hub has the socket."""
    if not socket.is_socket():  # noqa: ASYNC240 - a test may wait
        pytest.skip(f"{socket} is not there: a hub that was given cannot be compacted")
    version = json.loads(await kube.list_page(NAMESPACES, limit=1))["metadata"]["resourceVersion"]
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session:
        body = {"revision": version, "physical": True}
        async with session.post("http://localhost/v3/kv/compaction", json=body) as response:
            assert response.status == 200, await response.text()


def with_first_version(token: str) -> str:
    """The same place in the list as it was at the server's first version (apiserver, storage/continue.go)."""
    content = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    return base64.urlsafe_b64encode(json.dumps(content | {"rv": 1}).encode()).decode().rstrip("=")


def on_both(case: Case) -> Callable[[Callable[[Case], None]], None]:
    """Turns a case into a test that runs on both."""

    @functools.wraps(case)
    def test(run_case: Callable[[Case], None]) -> None:
        run_case(case)

    del test.__wrapped__  # pytest would look for the case's own arguments
    return test

"""Fixtures: services of a test module's own on the hub, with an empty database, and a fleet to drive them."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import nats
import pytest
from fleet import Fleet
from nats.js.errors import NotFoundError
from running_services import Services

from kmmhub.install import install_hub
from localhub.hub import HubAddresses
from shared.bus.topology import QUEUES
from shared.kube.client import MANAGED_CLUSTERS, MANIFEST_WORKS, MODULES, KubeClient
from shared.kube.errors import NotFound
from shared.registry.client import RegistryClient
from shared.store.migrate import upgrade


@pytest.fixture(scope="module")
async def fleet(hub: HubAddresses, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Running services, and whatever drives them. No error may be in their logs at the end."""
    async with run_fleet(hub, tmp_path_factory.mktemp("services")) as running:
        yield running
        assert running.services.surprises() == []


@contextlib.asynccontextmanager
async def run_fleet(hub: HubAddresses, directory: Path, **settings: str) -> AsyncIterator[Fleet]:
    """Services on a hub, with a database and an operator's namespace of their own; `settings` are environment.

    Everything is compared once at the start and never again by the clock: what is put right, is put right because
    it was announced.
    """
    name = f"services_{secrets.token_hex(6)}"
    namespace = name.replace("_", "-")
    addresses = hub.with_database(name)
    database_url = addresses.database_url
    await _execute(hub.database_url, f"CREATE DATABASE {name}")
    await asyncio.to_thread(upgrade, database_url)
    await asyncio.to_thread(install_hub, hub.kubeconfig, namespace)
    await delete_streams(hub.nats_url)
    environment = addresses.environment() | {
        "OPERATOR_NAMESPACE": namespace,
        "KMMHUB_RESYNC_SECONDS": "3600",
        "KMMHUB_LEADER_LEASE_SECONDS": "2",
        "KMMHUB_LEASE_SECONDS": "3",
        **settings,
    }
    services = Services(directory, environment)
    services.start()
    try:
        async with (
            await KubeClient.connect(hub.kubeconfig) as kube,
            RegistryClient() as registry,
            asyncpg.create_pool(database_url, min_size=1, max_size=2) as database,
        ):
            try:
                yield Fleet(
                    kube=kube,
                    registry=registry,
                    addresses=addresses,
                    database=database,
                    services=services,
                    namespace=namespace,
                )
            finally:
                statuses = services.end()
                await _clear(kube)
        assert set(statuses.values()) <= {0}, f"services ended with {statuses}"
    finally:
        services.kill()
        await _execute(hub.database_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


async def _clear(kube: KubeClient) -> None:
    """Remove every cluster, module and work, so that the next module's services find an empty hub."""
    for resource in (MANIFEST_WORKS, MODULES, MANAGED_CLUSTERS):
        for item in json.loads(await kube.list_page(resource, limit=5000))["items"]:
            name, namespace = item["metadata"]["name"], item["metadata"].get("namespace")
            with contextlib.suppress(NotFound):
                if item["metadata"].get("finalizers"):
                    bare = {"metadata": {"finalizers": None}}
                    await kube.merge_patch(resource, name, bare, namespace=namespace)
                await kube.delete(resource, name, namespace=namespace)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def delete_streams(url: str) -> None:
    """Remove the product's streams with all that is in them."""
    client = await nats.connect(url)
    try:
        for queue in QUEUES:
            with contextlib.suppress(NotFoundError):
                await client.jetstream().delete_stream(queue.stream)
    finally:
        await client.close()

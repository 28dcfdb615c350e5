"""Lists that come again and again, from a real API server into a real Postgres: they write what differs alone."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from running_services import eventually

from kmmhub.install import install_hub
from localhub.hub import HubAddresses
from services.watcher.main import leading_watcher
from shared.bus import jetstream
from shared.domain.claim import CLAIM_NAME
from shared.events.messages import decode_changed
from shared.kube import client, reflector
from shared.kube.client import (
    CONFIG_MAPS,
    MANAGED_CLUSTERS,
    MANIFEST_WORKS,
    MODULES,
    NAMESPACES,
    SECRETS,
    KubeClient,
)
from shared.relay.backbone import Backbone
from shared.relay.relay import Relay
from shared.runtime.process import Process
from shared.store.database import connect
from shared.store.migrate import upgrade
from shared.store.postgres import PostgresStore

pytestmark = pytest.mark.integration

TABLES = ("clusters", "modules", "config_maps", "secrets", "works", "syncs")
NAMESPACE = f"relists-{secrets.token_hex(4)}"


class CountingKube(KubeClient):
    """Counts the lists of ManifestWorks."""

    lists = 0

    async def list_page(self, resource: client.Resource, **rest: Any) -> bytes:
        self.lists += resource == MANIFEST_WORKS
        return await super().list_page(resource, **rest)


async def add_one_of_each(kube: KubeClient, name: str) -> None:
    def meta(api: str, kind: str, **rest: Any) -> dict[str, Any]:
        return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "labels": {"a": "b"}}, **rest}

    image = "registry.example/module:$KERNEL_FULL_VERSION"
    mapping = {"regexp": "^.+$", "containerImage": image}
    loader = {"container": {"modprobe": {"moduleName": name}, "kernelMappings": [mapping]}}
    spec = {"moduleSpec": {"moduleLoader": loader, "selector": {"é": "ü"}}, "spokeNamespace": "x"}
    spec |= {"selector": {"no-such-cluster": "1"}}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "default"}}
    await kube.create(NAMESPACES, meta("v1", "Namespace"))
    cluster = meta("cluster.open-cluster-management.io/v1", "ManagedCluster", spec={"hubAcceptsClient": True})
    await kube.create(MANAGED_CLUSTERS, cluster)
    claims = [{"name": CLAIM_NAME, "value": "6.1.0-13-amd64\nnonsense"}]
    status = {"conditions": [], "version": {}, "clusterClaims": claims}
    await kube.merge_patch(MANAGED_CLUSTERS, name, {"status": status}, subresource="status")
    await kube.create(MODULES, meta("hub.kmm.sigs.x-k8s.io/v1beta1", "ManagedClusterModule", spec=spec))
    work = meta(
        "work.open-cluster-management.io/v1", "ManifestWork", spec={"workload": {"manifests": [manifest]}}
    )
    await kube.create(MANIFEST_WORKS, work, namespace=name)
    recipe = meta("v1", "ConfigMap", data={"dockerfile": "FROM a"})
    await kube.create(CONFIG_MAPS, recipe, namespace=NAMESPACE)
    secret = meta("v1", "Secret", data={"key": "YQ==", "cert": "Yg=="})
    await kube.create(SECRETS, secret, namespace=NAMESPACE)


@pytest.fixture
async def backbone(hub: HubAddresses, database_url: str) -> AsyncIterator[Backbone]:
    """A store, and a relay that does not run: what is announced stays in the outbox."""
    await asyncio.to_thread(upgrade, database_url)
    opened = connect(database_url, application="test")
    bus = await jetstream.connect(hub.nats_url, name="test")
    store = PostgresStore(opened)
    yield Backbone(store=store, bus=bus, relay=Relay(store, bus))
    await bus.close()
    await opened.dispose()


async def test_lists_write_nothing_but_what_differs(
    hub: HubAddresses, database_url: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "RELIST_SECONDS", 0.5)
    monkeypatch.setattr(reflector, "LIVED_SECONDS", 0.5)
    monkeypatch.setattr(client, "WATCH_SECONDS", 1)
    await asyncio.to_thread(install_hub, hub.kubeconfig, NAMESPACE)
    name, process = f"one-{secrets.token_hex(4)}", Process()
    async with (
        await CountingKube.connect(hub.kubeconfig) as kube,
        asyncpg.create_pool(database_url, min_size=1, max_size=1) as database,
    ):

        async def rows() -> dict[str, list[str]]:
            """Every row with the transaction that wrote it."""
            return {
                table: sorted(str(row) for row in await database.fetch(f"SELECT xmin, * FROM {table}"))
                for table in TABLES
            }

        async def told() -> list[tuple[str, str]]:
            found = [decode_changed(row["payload"]) for row in await database.fetch("SELECT * FROM outbox")]
            return sorted((str(one.kind), one.name) for one in found if one.name == name)

        async def listed_again() -> None:
            lists = kube.lists

            async def look() -> bool:
                return kube.lists >= lists + 3

            await eventually(look, what="three more lists", seconds=60)

        await add_one_of_each(kube, name)
        watching = asyncio.create_task(
            leading_watcher(kube, backbone, process, namespace=NAMESPACE)(process.stop)
        )
        try:
            await listed_again()
            before = await rows()
            assert all(name in str(before[table]) for table in TABLES[:-1])
            assert len(before["syncs"]) == 5
            await database.execute("DELETE FROM outbox")

            await listed_again()
            assert await rows() == before
            assert await told() == []

            async with database.acquire() as connection, connection.transaction():
                for table in TABLES[:-1]:
                    await connection.execute(f"DELETE FROM {table} WHERE name = $1", name)
            await listed_again()
            after = await rows()
            assert all(name in str(after[table]) for table in TABLES[:-1])
            assert await told() == [
                (kind, name) for kind in ("cluster", "config-map", "module", "secret", "work")
            ]
            assert not watching.done()
        finally:
            process.stop.set()
            await watching
            await kube.delete(MODULES, name)
            await kube.delete(MANIFEST_WORKS, name, namespace=name)
            await kube.delete(MANAGED_CLUSTERS, name)

"""The watcher's composition: which resource is read how, and where its facts go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from services.watcher import facts, kinds, record
from services.watcher.facts import Row
from services.watcher.record import FactTable
from services.watcher.reflect import Recorder, reflect
from shared.domain.work import ObservedWork, observe_work
from shared.kube import client
from shared.kube.client import KubeClient
from shared.kube.reflector import Listed, Reflector
from shared.relay.backbone import open_backbone
from shared.runtime.process import Process, run
from shared.runtime.settings import ServiceSettings, read_settings
from shared.store.port import Transaction


class WatcherSettings(ServiceSettings):
    """Nothing of its own yet."""


def main() -> int:
    """Run the watcher. Returns the exit status."""
    settings = read_settings(WatcherSettings)

    async def body(process: Process) -> None:
        await watch(settings, process)

    return run("watcher", settings, body)


async def watch(settings: WatcherSettings, process: Process) -> None:
    """Reflect all resources until the process is stopped."""
    async with (
        await KubeClient.connect() as kube,
        open_backbone(settings, process, service="watcher") as backbone,
    ):
        if backbone is None:
            return
        namespace = settings.operator_namespace
        listed: set[str] = set()

        async def follow(
            resource: client.Resource, kind: type[Any], recorder: Recorder[Any], *, within: str | None = None
        ) -> None:
            await reflect(
                Reflector(kube, resource, kind, namespace=within),
                recorder,
                resource=resource.plural,
                store=backbone.store,
                relay=backbone.relay,
                listed=listed,
                stop=process.stop,
            )

        sources: list[tuple[client.Resource, type[Any], Recorder[Any], str | None]] = [
            (
                client.CONFIG_MAPS,
                kinds.ConfigMap,
                facts_recorder(record.CONFIG_MAPS, facts.config_map_row),
                namespace,
            ),
            (client.SECRETS, kinds.Secret, facts_recorder(record.SECRETS, facts.secret_row), namespace),
            (
                client.MANAGED_CLUSTERS,
                kinds.ManagedCluster,
                facts_recorder(record.CLUSTERS, facts.cluster_row),
                None,
            ),
            (
                client.MODULES,
                kinds.ManagedClusterModule,
                facts_recorder(record.MODULES, facts.module_row),
                None,
            ),
            (client.MANIFEST_WORKS, kinds.ManifestWork, works_recorder(), None),
        ]
        process.checks["hub"] = lambda: len(listed) == len(sources)
        async with asyncio.TaskGroup() as group:
            for resource, kind, recorder, within in sources:
                group.create_task(follow(resource, kind, recorder, within=within))


def facts_recorder(table: FactTable, to_row: Callable[[Any], Row]) -> Recorder[Any]:
    """A recorder of objects that become one row each."""

    async def seen(transaction: Transaction, objects: Sequence[Any]) -> None:
        # In a thread: hashing a Secret is slow on purpose.
        rows = await asyncio.to_thread(lambda: [to_row(item) for item in objects])
        await record.record_facts(transaction, table, rows)

    async def removed(transaction: Transaction, objects: Sequence[Any]) -> None:
        await record.forget_facts(transaction, table, [item.metadata.name for item in objects])

    async def listed(transaction: Transaction, end: Listed) -> None:
        await record.keep_only_facts(transaction, table, {name for _, name in end.keys})
        await record.mark_synced(transaction, table.table, resource_version=end.resource_version)

    return Recorder(seen=seen, removed=removed, listed=listed)


def works_recorder() -> Recorder[kinds.ManifestWork]:
    """A recorder of ManifestWorks, which keep a trace of their deletion."""

    def observe(work: kinds.ManifestWork, *, is_gone: bool) -> ObservedWork:
        return observe_work(msgspec.to_builtins(work), is_gone=is_gone)

    async def record_all(
        transaction: Transaction, works: Sequence[kinds.ManifestWork], *, are_gone: bool
    ) -> None:
        await record.record_observed_works(transaction, [observe(work, is_gone=are_gone) for work in works])

    async def seen(transaction: Transaction, works: Sequence[kinds.ManifestWork]) -> None:
        await record_all(transaction, works, are_gone=False)

    async def removed(transaction: Transaction, works: Sequence[kinds.ManifestWork]) -> None:
        await record_all(transaction, works, are_gone=True)

    async def listed(transaction: Transaction, end: Listed) -> None:
        await record.keep_only_works(transaction, end.keys, resource_version=end.resource_version)
        await record.mark_synced(transaction, "works", resource_version=end.resource_version)

    return Recorder(seen=seen, removed=removed, listed=listed)

"""The watcher's composition: which resource is read how, and where its facts go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from services.watcher import facts, kinds, record
from services.watcher.facts import Row
from services.watcher.record import FactTable
from services.watcher.reflect import Recorder, reflect
from shared.domain.leadership import Terms
from shared.domain.work import ObservedWork, observe_work
from shared.kube import client
from shared.kube.client import KubeClient
from shared.kube.leadership import Work, lead, make_identity
from shared.kube.port import HubApi
from shared.kube.reflector import Listed, Reflector
from shared.relay.backbone import Backbone, open_backbone
from shared.runtime.process import Process, run
from shared.runtime.settings import ReplicaSettings, read_settings
from shared.store.port import Transaction

MAX_SILENCE_SECONDS = 3 * client.WATCH_SECONDS
"""A resource of which neither a list nor a watch has succeeded for so long: the watcher is not ready."""


class WatcherSettings(ReplicaSettings):
    """Nothing of its own yet."""


def facts_recorder(table: FactTable, to_row: Callable[[Any], Row]) -> Recorder[Any]:
    """A recorder of objects that become one row each."""

    async def seen(transaction: Transaction, objects: Sequence[Any]) -> None:
        # In a thread: hashing a Secret is slow on purpose.
        rows = await asyncio.to_thread(lambda: [to_row(item) for item in objects])
        await record.record_facts(transaction, table, rows)

    async def removed(transaction: Transaction, objects: Sequence[Any]) -> None:
        gone = {item.metadata.name: int(item.metadata.resource_version) for item in objects}
        await record.forget_facts(transaction, table, gone)

    async def listed(transaction: Transaction, end: Listed) -> None:
        await record.keep_only_facts(
            transaction, table, {name for _, name in end.keys}, resource_version=end.resource_version
        )
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One resource that is reflected; `is_ours`: only within the operator's namespace."""

    resource: client.Resource
    kind: type[Any]
    recorder: Recorder[Any]
    is_ours: bool = False


SOURCES = (
    Source(
        resource=client.CONFIG_MAPS,
        kind=kinds.ConfigMap,
        recorder=facts_recorder(record.CONFIG_MAPS, facts.config_map_row),
        is_ours=True,
    ),
    Source(
        resource=client.SECRETS,
        kind=kinds.Secret,
        recorder=facts_recorder(record.SECRETS, facts.secret_row),
        is_ours=True,
    ),
    Source(
        resource=client.MANAGED_CLUSTERS,
        kind=kinds.ManagedCluster,
        recorder=facts_recorder(record.CLUSTERS, facts.cluster_row),
    ),
    Source(
        resource=client.MODULES,
        kind=kinds.ManagedClusterModule,
        recorder=facts_recorder(record.MODULES, facts.module_row),
    ),
    Source(resource=client.MANIFEST_WORKS, kind=kinds.ManifestWork, recorder=works_recorder()),
)


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
        await KubeClient.connect() as election,
        open_backbone(settings, process, service="watcher") as backbone,
    ):
        if backbone is not None:
            await lead(
                election,
                name="kmm-hub-watcher",
                namespace=settings.operator_namespace,
                identity=make_identity(),
                stop=process.stop,
                work=leading_watcher(kube, backbone, process, namespace=settings.operator_namespace),
                terms=Terms(lease_seconds=settings.leader_lease_seconds),
                checks=process.checks,
            )


def leading_watcher(kube: HubApi, backbone: Backbone, process: Process, *, namespace: str) -> Work:
    """What a watcher does while it leads. A replica that stands by is ready without having listed anything."""

    async def work(leading: asyncio.Event) -> None:
        try:
            await reflect_all(
                kube, backbone, Process(stop=leading, checks=process.checks), namespace=namespace
            )
        finally:
            process.checks.pop("hub", None)

    return work


async def reflect_all(kube: HubApi, backbone: Backbone, process: Process, *, namespace: str) -> None:
    """Reflect all resources, ConfigMaps and Secrets of `namespace` among them, until the process is stopped.

    The check `hub` holds while each was listed once and is heard of.
    """
    listed: set[str] = set()
    reflectors = [
        Reflector(kube, source.resource, source.kind, namespace=namespace if source.is_ours else None)
        for source in SOURCES
    ]

    def list_again() -> None:
        for reflector in reflectors:
            reflector.list_again()

    def is_in_contact() -> bool:
        return len(listed) == len(SOURCES) and all(
            reflector.silent_seconds < MAX_SILENCE_SECONDS for reflector in reflectors
        )

    process.checks["hub"] = is_in_contact
    async with asyncio.TaskGroup() as group:
        for source, reflector in zip(SOURCES, reflectors, strict=True):
            group.create_task(
                reflect(
                    reflector,
                    source.recorder,
                    resource=source.resource.plural,
                    store=backbone.store,
                    relay=backbone.relay,
                    listed=listed,
                    doubt=list_again,
                    stop=process.stop,
                )
            )

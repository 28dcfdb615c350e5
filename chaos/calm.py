"""After the storm: everything comes to what the user wants within a bound, and then nothing is written any more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import nats
import nats.errors
import orjson

from chaos.inputs import Inputs, ModuleKind, Place, desired_kernels
from chaos.material import PLAIN
from chaos.oracle import Breach
from chaos.traces import tables_of
from chaos.user import FOREIGN_WORK, User
from chaos.witness import POSTGRES_ERRORS, Witness, served_by
from chaos.world import World
from kmmhub.retry import NothingFailed, retry
from shared.bus.topology import QUEUES
from shared.domain.errors import HubError
from shared.domain.image import ImageReference
from shared.kube.client import (
    CONFIG_MAPS,
    EVENTS,
    MANAGED_CLUSTERS,
    MANIFEST_WORKS,
    MODULES,
    SECRETS,
    KubeClient,
)
from shared.registry.client import RegistryClient

PERMISSIONS_WORK = "kmm-hub-permissions"
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """An artifact that some module wants for a kernel; `reason` is why it failed."""

    module: str
    kernel: str
    state: str
    digest: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """All stores at one time.

    Attributes:
        works: of modules: by module and cluster, kernels with their images.
        permissions: clusters with a work of the agent's rights.
        others: works that are somebody else's.
        modules: objects of the API server.
        unfinished: states of the artifacts that have not ended.
        outbox: rows that wait.
        queued: messages that wait or are being handled.
    """

    works: Mapping[Place, Mapping[str, str]]
    permissions: frozenset[str]
    others: frozenset[tuple[str, str]]
    modules: Mapping[str, Mapping[str, Any]]
    needs: Sequence[Need]
    unfinished: Sequence[str]
    outbox: int
    queued: int


def differences(inputs: Inputs, sight: Sight) -> list[str]:
    """What is not yet as the user wants it, in words. Pure; the product's decisions play no part in it."""
    desired = desired_kernels(inputs)
    found = [
        f"work {place[1]}/{place[0]} is missing" for place in sorted(desired.keys() - sight.works.keys())
    ]
    found += [
        f"work {place[1]}/{place[0]} is left over" for place in sorted(sight.works.keys() - desired.keys())
    ]
    ready = {(need.module, need.kernel): need.digest for need in sight.needs if need.state == "ready"}
    for place in sorted(desired.keys() & sight.works.keys()):
        served = sight.works[place]
        if set(served) != desired[place]:
            found.append(f"work {place[1]}/{place[0]} serves {sorted(served)}, not {sorted(desired[place])}")
        found += [
            f"work {place[1]}/{place[0]} ships {image} to {kernel}, its artifact is {ready.get((place[0], kernel))}"
            for kernel, image in served.items()
            if kernel in desired[place] and image.partition("@")[2] != ready.get((place[0], kernel))
        ]
    found += [f"module {name} is left over" for name in sorted(sight.modules.keys() - inputs.modules.keys())]
    found += [f"module {name} is missing" for name in sorted(inputs.modules.keys() - sight.modules.keys())]
    selected = {cluster for _, cluster in desired} | _with_broken(inputs)
    alive = sight.permissions & inputs.clusters.keys()  # what is left of a cluster that went, OCM removes
    found += [f"the permissions of {name} are wrong" for name in sorted(selected ^ alive)]
    found += [f"artifact {one} has not ended" for one in sight.unfinished]
    found += ["somebody else's work is gone"] if not sight.others else []
    found += [f"{sight.outbox} rows are in the outbox"] if sight.outbox else []
    found += [f"{sight.queued} messages are queued"] if sight.queued else []
    for name in sorted(inputs.modules.keys() & sight.modules.keys()):
        found += _status_problems(name, inputs, sight)
    return found


def _with_broken(inputs: Inputs) -> set[str]:
    labels = {module.select for module in inputs.modules.values()}
    return {name for name, cluster in inputs.clusters.items() if cluster.label in labels}


def _status_problems(name: str, inputs: Inputs, sight: Sight) -> list[str]:
    """A module that is done says so; one whose image failed says why."""
    module, stored = inputs.modules[name], sight.modules[name]
    status = stored.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or []}
    ready = conditions.get("Ready")
    if ready is None or ready.get("observedGeneration") != stored["metadata"]["generation"]:
        return [f"module {name} has no current status"]
    kernels = {
        kernel
        for cluster in inputs.clusters.values()
        if cluster.label == module.select
        for kernel in cluster.kernels
    }
    failed = [
        need
        for need in sight.needs
        if need.module == name and need.kernel in kernels and need.state == "failed"
    ]
    if failed:
        shown = json.dumps(status)
        return [
            f"module {name} does not show {need.reason}"
            for need in failed
            if (need.reason or "") not in shown
        ]
    if module.kind is ModuleKind.BROKEN and kernels:
        return [f"module {name} cannot be built, and its artifacts have not failed"]
    return (
        []
        if ready["status"] == "True"
        else [f"module {name} is not ready: {ready['reason']}: {ready['message']}"]
    )


def to_retry(inputs: Inputs, sight: Sight) -> list[str]:
    """Modules that a person would try again: faults made them fail, nothing is wrong with them."""
    return sorted(
        {
            need.module
            for need in sight.needs
            if need.state == "failed"
            and need.module in inputs.modules
            and inputs.modules[need.module].kind is not ModuleKind.BROKEN
        }
    )


class Calm:
    """Looks at a hub whose inputs do not change any more."""

    def __init__(
        self, world: World, user: User, witness: Witness, *, kube: KubeClient, registry: RegistryClient
    ) -> None:
        self._world = world
        self._user = user
        self._witness = witness
        self._kube = kube
        self._registry = registry
        self.retried: set[str] = set()

    async def converge(self, *, seconds: float) -> float | None:
        """Wait until everything is as the user wants it; failures that faults made are tried again, as people do.

        Returns:
            The seconds that it took; None if it did not happen within `seconds`, which is noted as a breach.
        """
        began = time.monotonic()
        while True:
            try:
                sight = await self._look()
                problems = differences(self._user.inputs, sight)
            except (HubError, *POSTGRES_ERRORS, nats.errors.Error) as error:
                sight, problems = None, [f"a store cannot be read: {error!r}"]
            if not problems:
                await self._check_content()
                return time.monotonic() - began
            if time.monotonic() - began > seconds:
                what = "; ".join(problems)[:3000]
                self._breach("convergence", f"not within {seconds:.0f} s: {what}", "hub")
                return None
            if sight is not None:
                await self._retry(to_retry(self._user.inputs, sight))
            await asyncio.sleep(LOOK_SECONDS)

    async def silence(self, *, seconds: float) -> None:
        """Nothing may be written for so long; each thing that is, is a breach."""
        before = await self._versions()
        pushes, writes = self._world.registry.written, self._world.api.written
        await asyncio.sleep(seconds)
        after = await self._versions()
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                self._breach("silence", f"{before.get(name)} became {after.get(name)}", name)
        if self._world.registry.written != pushes:
            self._breach("silence", f"{self._world.registry.written - pushes} writing requests", "registry")
        if self._world.api.written != writes:
            self._breach("silence", f"{self._world.api.written - writes} writing requests", "API server")

    def _breach(self, invariant: str, what: str, where: str) -> None:
        self._witness.note(Breach(invariant=invariant, what=what, where=where, when=self._witness.clock()))

    async def _retry(self, modules: Sequence[str]) -> None:
        for name in modules:
            self.retried.add(name)
            with contextlib.suppress(NothingFailed):
                await asyncio.to_thread(retry, name, database_url=self._world.addresses.database_url)

    async def _look(self) -> Sight:
        works: dict[Place, dict[str, str]] = {}
        permissions, others = set(), set()
        for work in await self._list(MANIFEST_WORKS):
            cluster, name = work["metadata"]["namespace"], work["metadata"]["name"]
            if name == PERMISSIONS_WORK:
                permissions.add(cluster)
            elif name == FOREIGN_WORK:
                others.add((cluster, name))
            else:
                works[name, cluster] = served_by(work["spec"])
        connection = await asyncpg.connect(self._world.addresses.database_url, timeout=5)
        try:
            needs = await connection.fetch(
                "SELECT module, m.kernel, state, digest, reason FROM module_kernels m "
                "JOIN artifacts a ON a.key = m.artifact_key"
            )
            unfinished = await connection.fetch(
                "SELECT target, state, attempts, announced, reason, (not_before - now())::text AS due FROM artifacts "
                "WHERE state NOT IN ('ready', 'failed', 'unwanted')"
            )
            outbox = await connection.fetchval("SELECT count(*) FROM outbox")
        finally:
            await connection.close()
        return Sight(
            works=works,
            permissions=frozenset(permissions),
            others=frozenset(others),
            modules={one["metadata"]["name"]: one for one in await self._list(MODULES)},
            needs=[Need(**row) for row in needs],
            unfinished=[" ".join(f"{name}={value}" for name, value in row.items()) for row in unfinished],
            outbox=outbox,
            queued=await self._queued(),
        )

    async def _queued(self) -> int:
        client = await nats.connect(self._world.addresses.nats_url, allow_reconnect=False)
        try:
            stream = client.jetstream()
            infos = [await stream.consumer_info(queue.stream, queue.consumer) for queue in QUEUES]
        finally:
            await client.close()
        return sum((info.num_pending or 0) + (info.num_ack_pending or 0) for info in infos)

    async def _check_content(self) -> None:
        """The images that are shipped hold what the user asked for, by the labels that the Dockerfile gives."""
        inputs, sight = self._user.inputs, await self._look()
        for (name, cluster), served in sight.works.items():
            module = inputs.modules[name]
            for kernel, image in served.items():
                where = f"image {image} of work {cluster}/{name}"
                if module.kind is ModuleKind.ADOPTED:
                    wanted = self._user.digests[self._user.target(name, module)]
                    if image.partition("@")[2] != wanted:
                        self._breach("right content", f"the user pushed {wanted}", where)
                elif module.kind.is_built:
                    labels = await self._labels(image)
                    expected = {"kernel": kernel, "version": str(module.version)}
                    if not expected.items() <= labels.items():
                        self._breach("right content", f"it was built for {labels}, not {expected}", where)

    async def _labels(self, image: str) -> Mapping[str, str]:
        reference = ImageReference.parse(
            image.replace(self._world.registry_address, self._world.addresses.registry)
        )
        found = await self._registry.image(reference, access=PLAIN)
        config = orjson.loads(await self._registry.config(reference, found.config, access=PLAIN))
        labels: Mapping[str, str] = config["config"].get("Labels") or {}
        return labels

    async def _versions(self) -> dict[str, str]:
        """What moves when anything is written: versions of objects, and of each table's rows."""
        found = {}
        for resource in (MANIFEST_WORKS, MODULES, MANAGED_CLUSTERS, CONFIG_MAPS, SECRETS, EVENTS):
            for item in await self._list(resource):
                metadata = item["metadata"]
                place = f"{resource.plural} {metadata.get('namespace', '')}/{metadata['name']}"
                found[place] = metadata["resourceVersion"]
        connection = await asyncpg.connect(self._world.addresses.database_url, timeout=5)
        try:
            for table in await tables_of(connection):
                # xmin is the transaction that wrote a row (PostgreSQL, "System Columns").
                rows = await connection.fetch(
                    f'SELECT xmin::text || ctid::text AS v FROM "{table}" ORDER BY 1'  # noqa: S608 - our tables
                )
                found[f"table {table}"] = f"{len(rows)} rows, {hash(tuple(row['v'] for row in rows)):x}"
        finally:
            await connection.close()
        return found

    async def _list(self, resource: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = orjson.loads(await self._kube.list_page(resource, limit=5000))["items"]
        return items

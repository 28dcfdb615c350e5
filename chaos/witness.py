"""Looks at all stores throughout a run and has the oracle judge what it sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import nats
import nats.errors
from cryptography import x509
from nats.aio.msg import Msg

from chaos import audit
from chaos.material import MODULE_PATH, PLAIN, Material
from chaos.oracle import (
    Announcement,
    Breach,
    Posted,
    builds_from,
    concurrent_builds,
    digest_breaches,
    find_secrets,
    is_lease_lost,
    lease_breaches,
    lost_announcements,
    needles_of,
    place_breaches,
    surprises,
)
from chaos.traces import all_text, read_log, secrets_of
from chaos.user import FOREIGN_WORK, User
from chaos.world import World
from services.signer.image import verify_image
from shared.domain.errors import HubError
from shared.domain.image import ImageReference
from shared.events.messages import SUBJECT_ROOT
from shared.kube.client import MANIFEST_WORKS, KubeClient
from shared.kube.reflector import Metadata, Reflector, Seen
from shared.registry.client import RegistryClient

LAG_SECONDS = 120.0
"""How old the hub's knowledge may be while faults go on; a half-open watch is noticed after so long."""

LOOK_SECONDS = 0.5
DEAF_SECONDS = 1.0
"""Around a time without a connection to NATS, in which messages may have been missed."""

POSTGRES_ERRORS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


class _Work(msgspec.Struct):
    metadata: Metadata
    spec: dict[str, Any] | None = None


class Witness:
    """Sees a run. Everything it found wrong is in `breaches`; `counts` says how much it has judged."""

    def __init__(
        self,
        world: World,
        user: User,
        material: Material,
        *,
        kube: KubeClient,
        registry: RegistryClient,
        started: float,
        on_breach: Callable[[Breach], None],
    ) -> None:
        """`started` is when the run began, in seconds of the epoch; `on_breach` is told of each breach once."""
        self.breaches: list[Breach] = []
        self.counts: Counter[str] = Counter()
        self._world = world
        self._user = user
        self._kube = kube
        self._registry = registry
        self._started = started
        self._on_breach = on_breach
        self._certificate = x509.load_pem_x509_certificate(material.signing.certificate)
        self._needles = needles_of(secrets_of(material))
        self._seen: dict[tuple[str, str], tuple[str, int, str]] = {}
        self._unjudged: list[Posted] = []
        self._images: dict[str, bool] = {}
        """Images that works name: whether they were checked."""
        self._ready: dict[tuple[str, str], set[str]] = {}
        self._losses: dict[str, list[float]] = {}
        self._ports: dict[int, int] = {}
        self._waiting: dict[int, tuple[str, str, float]] = {}
        self._gone: list[Announcement] = []
        self._published: dict[str, float] = {}
        self._deaf: list[tuple[float, float]] = []
        self._deaf_since: float | None = None

    def note(self, breach: Breach) -> None:
        """Keep a breach; the same one is kept once."""
        known = {(one.invariant, one.what, one.where) for one in self.breaches}
        if (breach.invariant, breach.what, breach.where) not in known:
            self.breaches.append(breach)
            self._on_breach(breach)

    async def watch(self, stop: asyncio.Event) -> None:
        """Look until `stop` is set; then once more."""
        connection = await asyncpg.connect(self._world.addresses.database_url)
        await audit.install(connection)
        await connection.close()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_works(stop))
            group.create_task(self._follow_database(stop))
            group.create_task(self._listen(stop))
            group.create_task(self._check_images(stop))

    def clock(self) -> float:
        """Seconds of the run."""
        return time.time() - self._started

    async def _watch_works(self, stop: asyncio.Event) -> None:
        """A watch that hears nothing does not look at `stop`: it is cancelled."""
        reflecting = asyncio.create_task(self._reflect_works(stop))
        reflecting.add_done_callback(lambda _: stop.set())
        await stop.wait()
        reflecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reflecting

    async def _reflect_works(self, stop: asyncio.Event) -> None:
        async for happening in Reflector(self._kube, MANIFEST_WORKS, _Work).run(stop):
            if isinstance(happening, Seen):
                self._see_work(happening.object)

    def _see_work(self, work: _Work) -> None:
        metadata = work.metadata
        place, labels = (metadata.namespace, metadata.name), metadata.labels or {}
        version = (metadata.uid, metadata.generation, json.dumps(labels, sort_keys=True))
        if self._seen.get(place) == version:
            return
        if metadata.name == FOREIGN_WORK:
            if metadata.generation != 1 or labels:
                what = f"somebody else's work was written: generation {metadata.generation}, labels {labels}"
                where = f"ManifestWork {metadata.namespace}/{metadata.name}"
                self.note(Breach(invariant="S9 owner label", what=what, where=where, when=self.clock()))
            return
        self._seen[place] = version
        self.counts["works"] += 1
        posted = Posted(
            cluster=metadata.namespace,
            name=metadata.name,
            labels=labels,
            served=served_by(work.spec or {}),
            when=self.clock(),
        )
        for breach in place_breaches(posted, self._user.history, lag=LAG_SECONDS):
            self.note(breach)
        self._unjudged.append(posted)
        for image in posted.served.values():
            self._images.setdefault(image, False)

    async def _follow_database(self, stop: asyncio.Event) -> None:
        """Drain the record that Postgres keeps; a server that is away is asked again."""
        url = self._world.addresses.database_url
        connection: asyncpg.Connection | None = None
        is_last = False
        while not is_last:
            is_last = stop.is_set()
            before = self.clock()
            try:
                if connection is None or connection.is_closed():
                    connection = await asyncpg.connect(url, timeout=5, command_timeout=10)
                self._look_at_ports(urlsplit(url).port or 5432)
                changes = await audit.drain(connection)
            except POSTGRES_ERRORS:
                connection = None
            else:
                for change in changes:
                    self._judge(change)
                self._judge_digests(before)
            await _pause(stop, LOOK_SECONDS)
        if connection is not None:
            await connection.close()

    def _look_at_ports(self, server_port: int) -> None:
        pids = {service.lives[-1]: service.name for service in self._world.services.values() if service.lives}
        self._ports |= audit.owners_of_ports(pids, server_port)

    def _judge(self, change: audit.Change) -> None:
        when = change.at.timestamp() - self._started
        if change.table == "outbox":
            row = change.row
            if change.after is not None:
                self._waiting[row["id"]] = (row["message_id"], row["subject"], when)
            elif row["id"] in self._waiting:
                message_id, subject, since = self._waiting.pop(row["id"])
                self._gone.append(
                    Announcement(message_id=message_id, subject=subject, since=since, until=when)
                )
            return
        self.counts["changes of artifacts"] += 1
        if change.after is not None and change.after["state"] == "ready":
            name = str(change.after["target"]).rpartition(":")[0]
            self._ready.setdefault((change.after["kernel"], name), set()).add(change.after["digest"])
        if is_lease_lost(change):
            self.counts["leases lost"] += 1
            self._losses.setdefault(change.row["key"][:16], []).append(change.at.timestamp())
        writer = self._ports.get(change.port or 0)
        self.counts["of them by a known process"] += writer is not None
        for breach in lease_breaches(change, writer, when=when):
            self.note(breach)

    def _judge_digests(self, before: float) -> None:
        """S4 of the works that were seen before the last look at the database began."""
        due = [posted for posted in self._unjudged if posted.when < before]
        self._unjudged = [posted for posted in self._unjudged if posted.when >= before]
        for posted in due:
            for breach in digest_breaches(posted, self._ready):
                self.note(breach)

    async def _listen(self, stop: asyncio.Event) -> None:
        """Hear every message that is published; a plain subscriber gets what streams get."""

        async def heard(message: Msg) -> None:
            self._published[(message.headers or {}).get("Nats-Msg-Id", "")] = self.clock()
            for breach in find_secrets(message.data, self._needles, where="NATS", when=self.clock()):
                self.note(breach)

        async def lost() -> None:
            if self._deaf_since is None:
                self._deaf_since = self.clock() - DEAF_SECONDS

        async def found() -> None:
            if self._deaf_since is not None:
                self._deaf.append((self._deaf_since, self.clock() + DEAF_SECONDS))
                self._deaf_since = None

        async def ignored(_: Exception) -> None:
            pass  # the connection comes back; what was missed meanwhile is not judged

        client = await nats.connect(
            self._world.addresses.nats_url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,
            ping_interval=2,
            disconnected_cb=lost,
            reconnected_cb=found,
            error_cb=ignored,
        )
        await client.subscribe(f"{SUBJECT_ROOT}.>", cb=heard)
        await stop.wait()
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await client.flush(2)
        await client.close()

    async def _check_images(self, stop: asyncio.Event) -> None:
        """S3: whatever a work names can be pulled, and bears the signatures that were asked for."""
        is_last = False
        while not is_last:
            is_last = stop.is_set()
            for image in [image for image, is_checked in self._images.items() if not is_checked]:
                with contextlib.suppress(HubError):  # the registry is away: looked at again
                    await self._check_image(image)
            await _pause(stop, LOOK_SECONDS)

    async def _check_image(self, image: str) -> None:
        reference = ImageReference.parse(
            image.replace(self._world.registry_address, self._world.addresses.registry)
        )
        name = image.partition("@")[0].rpartition("/")[2]
        kinds = [
            moment.inputs.modules[name].kind for moment in self._user.history if name in moment.inputs.modules
        ]
        problem = ""
        if await self._registry.head(reference, access=PLAIN) is None:
            problem = "the registry does not have it"
        elif kinds and kinds[0].is_signed:
            unsigned = await verify_image(
                self._registry, reference, [f"/{MODULE_PATH}"], self._certificate, access=PLAIN
            )
            problem = f"{', '.join(unsigned)} bears no signature of the certificate" if unsigned else ""
        self._images[image] = True
        self.counts["images"] += 1
        if problem:
            self.note(
                Breach(
                    invariant="S3 pushed and signed", what=problem, where=f"image {image}", when=self.clock()
                )
            )

    async def conclude(self) -> None:
        """Judge what is judged at the end: announcements, logs, secrets."""
        self.counts["announcements judged"], lost = lost_announcements(
            self._gone, self._published, self._deaf
        )
        builds = []
        for service in self._world.services.values():
            lines = list(read_log(service.log))
            for breach in surprises(lines, service.name, started=self._started):
                self.note(breach)
            if service.name.startswith("builder"):
                builds += builds_from(lines, service.name, service.deaths)
        self.counts["build stages"] = len(builds)
        overlaps = concurrent_builds(builds, self._losses, started=self._started)
        for breach in (*lost, *overlaps):
            self.note(breach)
        for where, text in await all_text(self._world, self._kube):
            for breach in find_secrets(text, self._needles, where=where, when=self.clock()):
                self.note(breach)


def served_by(spec: dict[str, Any]) -> dict[str, str]:
    """Kernels and images of the Modules in a work's spec."""
    return {
        mapping["literal"]: mapping["containerImage"]
        for manifest in spec["workload"]["manifests"]
        if manifest["kind"] == "Module"
        for mapping in manifest["spec"]["moduleLoader"]["container"]["kernelMappings"]
    }


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)

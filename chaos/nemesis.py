"""Brings about each fault of a plan, and heals it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Mapping

import nats
import nats.errors
from aiohttp import web
from nats.js import errors as js_errors

from chaos.plan import Fault, FaultKind
from chaos.proxy import Answer, Matches, is_upload, is_watch
from chaos.world import Service, World
from localhub.apiserver import ApiServer, Etcd
from localhub.nats_server import NatsServer
from localhub.postgres import Postgres
from localhub.registry import Registry
from shared.bus.topology import QUEUES
from shared.domain.errors import HubError

SERVERS: Mapping[FaultKind, tuple[str, signal.Signals]] = {
    FaultKind.NATS_KILLED: (NatsServer.name, signal.SIGKILL),
    FaultKind.NATS_WIPED: (NatsServer.name, signal.SIGKILL),
    FaultKind.POSTGRES_RESTARTED: (Postgres.name, signal.SIGINT),
    FaultKind.POSTGRES_KILLED: (Postgres.name, signal.SIGKILL),
    FaultKind.REGISTRY_KILLED: (Registry.name, signal.SIGKILL),
    FaultKind.API_KILLED: (ApiServer.name, signal.SIGKILL),
    FaultKind.ETCD_KILLED: (Etcd.name, signal.SIGKILL),
}
API_ANSWERS = {
    FaultKind.API_409: (409, "Conflict"),
    FaultKind.API_410: (410, "Expired"),
    FaultKind.API_429: (429, "TooManyRequests"),
    FaultKind.API_500: (500, "InternalError"),
}
REGISTRY_ANSWERS = {
    FaultKind.REGISTRY_401: (401, "UNAUTHORIZED"),
    FaultKind.REGISTRY_404: (404, "MANIFEST_UNKNOWN"),
    FaultKind.REGISTRY_429: (429, "TOOMANYREQUESTS"),
    FaultKind.REGISTRY_500: (503, "UNAVAILABLE"),
}
RETRY_AFTER_SECONDS = 1
WATCH_SECONDS = 0.1
UPLOAD_PAUSE_SECONDS = 0.5
UPLOAD_BYTES = 300
REVIVALS = 8


class Nemesis:
    """Performs faults; two that concern the same thing follow each other, all others may overlap."""

    def __init__(self, world: World) -> None:
        self.unwilling: list[str] = []
        """Services that did not end on SIGTERM."""
        self._world = world
        self._locks: dict[str, asyncio.Lock] = {}
        self._reviving = asyncio.Lock()

    async def perform(self, fault: Fault) -> bool:
        """Bring a fault about and heal it. Returns false if this machine cannot."""
        async with self._lock(fault):
            if fault.kind in {FaultKind.KILL, FaultKind.PAUSE, FaultKind.RESTART}:
                await self._trouble_service(fault)
            elif fault.kind in SERVERS:
                await self._kill_server(fault)
            elif fault.kind in {FaultKind.STREAM_DELETED, FaultKind.CONSUMER_DELETED}:
                await self._delete_from_nats(fault)
            elif fault.kind is FaultKind.DISK_FULL:
                return await self._fill_disk(fault)
            else:
                with self._misbehaving(fault.kind):
                    await asyncio.sleep(fault.seconds)
        return True

    async def keep_running(self, stop: asyncio.Event) -> None:
        """Start services that ended by themselves, as whatever runs them in production does."""
        while not stop.is_set():
            for service in self._world.services.values():
                if not self._named_lock(service.name).locked():
                    service.start()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)

    async def heal(self) -> None:
        """Everything runs, whatever was left."""
        await self._revive()
        self._world.start_services()

    def _lock(self, fault: Fault) -> asyncio.Lock:
        kubernetes = {FaultKind.API_KILLED, FaultKind.ETCD_KILLED}
        if fault.kind in kubernetes:
            return self._named_lock("kubernetes")
        if fault.kind in SERVERS:
            return self._named_lock(SERVERS[fault.kind][0])
        watches = {FaultKind.WATCH_CUT, FaultKind.WATCH_SILENT}
        uploads = {FaultKind.UPLOAD_CUT, FaultKind.UPLOAD_SLOW}
        name = "watches" if fault.kind in watches else "uploads" if fault.kind in uploads else fault.kind
        return self._named_lock(fault.target or name)

    def _named_lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _trouble_service(self, fault: Fault) -> None:
        service: Service = self._world.services[fault.target]
        match fault.kind:
            case FaultKind.KILL:
                await service.end(signal.SIGKILL)
                await asyncio.sleep(fault.seconds)
            case FaultKind.PAUSE:
                service.send(signal.SIGSTOP)
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    service.send(signal.SIGCONT)
            case _:
                if await service.end(signal.SIGTERM) is None:
                    self.unwilling.append(service.name)
        service.start()

    async def _kill_server(self, fault: Fault) -> None:
        name, number = SERVERS[fault.kind]
        await self._world.stop_server(name, number)
        if fault.kind is FaultKind.NATS_WIPED:
            self._world.wipe_nats()
        await asyncio.sleep(fault.seconds)
        await self._revive()

    async def _revive(self) -> None:
        """Start what is down. Another fault may strike meanwhile, so it is tried again."""
        async with self._reviving:
            for number in range(REVIVALS):
                try:
                    await self._world.revive()
                except HubError:
                    if number == REVIVALS - 1:
                        raise
                else:
                    return

    async def _delete_from_nats(self, fault: Fault) -> None:
        """Whoever finds NATS away has nothing to delete."""
        queue = next(queue for queue in QUEUES if queue.stream == fault.target)
        with contextlib.suppress(nats.errors.Error, js_errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(5):
                client = await nats.connect(self._world.addresses.nats_url, allow_reconnect=False)
                try:
                    if fault.kind is FaultKind.STREAM_DELETED:
                        await client.jetstream().delete_stream(queue.stream)
                    else:
                        await client.jetstream().delete_consumer(queue.stream, queue.consumer)
                finally:
                    await client.close()

    async def _fill_disk(self, fault: Fault) -> bool:
        if self._world.disk is None:
            return False
        await asyncio.to_thread(self._world.fill_disk)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self._world.empty_disk()
        return True

    def _misbehaving(self, kind: FaultKind) -> contextlib.AbstractContextManager[None]:
        """A proxy that does wrong what this kind says."""
        api, registry = self._world.api, self._world.registry
        match kind:
            case FaultKind.WATCH_CUT:
                return api.cutting_watches(WATCH_SECONDS)
            case FaultKind.WATCH_SILENT:
                return api.silencing_watches()
            case FaultKind.UPLOAD_SLOW:
                return registry.slowing_uploads(UPLOAD_PAUSE_SECONDS)
            case FaultKind.UPLOAD_CUT:
                return registry.cutting_uploads(UPLOAD_BYTES)
            case _ if kind in API_ANSWERS:
                if kind is FaultKind.API_410:
                    api.drop_watches()  # so that the next ones are refused
                return api.answering(api_answer(kind))
            case _:
                return registry.answering(registry_answer(kind))


def api_answer(kind: FaultKind) -> Answer:
    """A Status object (Kubernetes API conventions, "Response Status Kind")."""
    status, reason = API_ANSWERS[kind]
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "code": status,
        "message": "a fault that was asked for",
    }
    matches: Matches = {FaultKind.API_409: is_upload_or_delete, FaultKind.API_410: _is_old}.get(kind, _any)
    headers = {"Content-Type": "application/json"}
    if kind is FaultKind.API_429:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return Answer(status=status, matches=matches, headers=headers, body=json.dumps(body).encode())


def registry_answer(kind: FaultKind) -> Answer:
    """An error as registries write it (OCI distribution specification, "Error codes")."""
    status, code = REGISTRY_ANSWERS[kind]
    headers = {"Content-Type": "application/json"}
    if status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="chaos"'
    if status == 429:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    body = {"errors": [{"code": code, "message": "a fault that was asked for"}]}
    return Answer(status=status, matches=_any, headers=headers, body=json.dumps(body).encode())


def is_upload_or_delete(request: web.BaseRequest) -> bool:
    """Whether a request to the API server writes."""
    return is_upload(request) or request.method == "DELETE"


def _is_old(request: web.BaseRequest) -> bool:
    """What may be answered with "too old": watches, and the later pages of lists."""
    return is_watch(request) or "continue" in request.query


def _any(request: web.BaseRequest) -> bool:
    return request is not None

"""A stand-in for OCM's work agent: what it does to a hub and to a spoke, without its machinery.

Facts: OCM 1.3, package `work/spoke`. `tests/contract/test_work_agent.py` puts the same cases to both. Left out, because
no work of ours asks for it: executors, condition rules (CEL), feedback by watch (it is polled), typed comparison of
built-in kinds, ordering by kind (what fails for want of another manifest is tried again).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from shared.domain.errors import HubError
from shared.kube.client import MANIFEST_WORKS
from shared.kube.errors import NotFound
from shared.kube.reflector import Listed, Metadata, Reflector
from shared.runtime.clock import now
from shared.runtime.pause import pause
from spoke import applied_work
from spoke.client import APPLIED_WORKS, ApiClient
from spoke.conditions import (
    DELETING,
    condition,
    find,
    manifest_statuses,
    with_condition,
    work_applied,
    work_available,
)
from spoke.manifests import apply_manifest
from spoke.observation import observe

log = structlog.get_logger()

FINALIZER = "cluster.open-cluster-management.io/manifest-work-cleanup"

FIRST_RETRY_SECONDS = 0.005
LONGEST_RETRY_SECONDS = 1000.0
DELETION_SECONDS = 0.2
RESYNC_JITTER = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When an agent looks again; the defaults are OCM's.

    Attributes:
        status_interval: seconds between looks at the objects of a work.
        resync: least seconds until everything is applied anew; half as much may be added.
        eviction_grace: seconds that objects outlive a work that is gone from the hub without asking.
    """

    status_interval: float = 10.0
    resync: float = 240.0
    eviction_grace: float = 3600.0


class _Work(msgspec.Struct):
    metadata: Metadata


@dataclass(slots=True)
class _Memory:
    """What the agent remembers of one work: of which version it was applied, and when it is to be again."""

    seen: tuple[int, tuple[tuple[str, str], ...]] | None = None
    failures: int = 0
    apply_at: float = 0.0


@dataclass(slots=True)
class Agent:
    """The agent of one cluster; `run` it as a task, and cancel that to take it away.

    Attributes:
        hub: the hub, under rights for the cluster's namespace alone.
        spoke: the spoke, under the rights of a klusterlet's work agent.
        cluster: the ManagedCluster's name.
        agent_id: which AppliedManifestWorks are its own.
    """

    hub: ApiClient
    spoke: ApiClient
    cluster: str
    agent_id: str = "agent1"
    timing: Timing = field(default_factory=Timing)
    _memory: dict[str, _Memory] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Serve the cluster until cancelled. Faults of either API server are logged and tried again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._serve())
            tasks.create_task(self._clean())

    async def _watch(self) -> None:
        reflector = Reflector(self.hub, MANIFEST_WORKS, _Work, namespace=self.cluster)
        async for happening in reflector.run(asyncio.Event()):
            if not isinstance(happening, Listed):
                self._due[happening.object.metadata.name] = 0.0
                self._woken.set()

    async def _serve(self) -> None:
        while True:
            self._woken.clear()
            for name in [name for name, at in self._due.items() if at <= time.monotonic()]:
                del self._due[name]
                delay = await self._guarded(name)
                if delay is not None:
                    self._due.setdefault(name, time.monotonic() + delay)
            soonest = min(self._due.values(), default=time.monotonic() + 60)
            await pause(self._woken, max(0.01, soonest - time.monotonic()))

    async def _guarded(self, name: str) -> float | None:
        try:
            return await self._sync(name)
        except HubError as error:
            log.info("agent.failed", work=name, error=str(error))
            memory = self._memory.setdefault(name, _Memory())
            memory.failures += 1
            return _backoff(memory.failures)

    async def _sync(self, name: str) -> float | None:
        """Bring one work forward. Returns the seconds until the next look, None if there is nothing to look at."""
        try:
            work = await self.hub.get(MANIFEST_WORKS, name, namespace=self.cluster)
        except NotFound:
            self._memory.pop(name, None)
            return None
        if work["metadata"].get("deletionTimestamp"):
            return await self._delete(work)
        finalizers = work["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            work = await self._patch(work, {"metadata": {"finalizers": [*finalizers, FINALIZER]}})
        memory = self._memory.setdefault(name, _Memory())
        seen = (work["metadata"]["generation"], tuple(sorted((work["metadata"].get("labels") or {}).items())))
        if seen != memory.seen:
            memory.seen, memory.failures, memory.apply_at = seen, 0, 0.0
        if memory.apply_at <= time.monotonic():
            work = await self._apply(work, memory)
        await self._observe(work)
        until_apply = max(0.0, memory.apply_at - time.monotonic())
        return min(until_apply, self.timing.status_interval * random.uniform(1.0, 1.9))

    async def _apply(self, work: dict[str, Any], memory: _Memory) -> dict[str, Any]:
        """Apply every manifest, say on the work how it went, and note what is there. Returns the work as stored."""
        name, generation = work["metadata"]["name"], work["metadata"]["generation"]
        applied = await applied_work.ensure_applied_work(
            self.spoke, url=self.hub.url, work=name, agent_id=self.agent_id
        )
        owner = applied_work.owner_reference(applied)
        count = len(work["spec"]["workload"].get("manifests") or [])
        outcomes = [await apply_manifest(self.spoke, ordinal, work, owner) for ordinal in range(count)]
        time_now = _timestamp()
        status = work.get("status") or {}
        manifests = manifest_statuses(
            (status.get("resourceStatus") or {}).get("manifests") or [],
            [(outcome.meta, outcome.error) for outcome in outcomes],
            generation=generation,
            now=time_now,
        )
        conditions = with_condition(
            status.get("conditions") or [], work_applied(manifests, generation), now=time_now
        )
        work = await self._write_status(work, conditions, manifests)
        memory.failures = memory.failures + 1 if any(outcome.error for outcome in outcomes) else 0
        pause = _backoff(memory.failures) if memory.failures else self._until_resync()
        memory.apply_at = time.monotonic() + pause
        if not await applied_work.track(self.spoke, applied, [outcome.meta for outcome in outcomes]):
            memory.apply_at = time.monotonic() + DELETION_SECONDS
        return work

    async def _observe(self, work: dict[str, Any]) -> None:
        """Say on the work which of its objects exist, and what their status has for the hub."""
        status, generation = work.get("status") or {}, work["metadata"]["generation"]
        time_now = _timestamp()
        manifests = [
            await observe(self.spoke, work, manifest, now=time_now)
            for manifest in (status.get("resourceStatus") or {}).get("manifests") or []
        ]
        conditions = with_condition(
            status.get("conditions") or [], work_available(manifests, generation), now=time_now
        )
        await self._write_status(work, conditions, manifests)

    async def _delete(self, work: dict[str, Any]) -> float | None:
        """Remove what a work delivered, and only then let it go."""
        status = work.get("status") or {}
        finalizers = work["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            return None  # held by somebody else
        if find(status.get("conditions") or [], DELETING) is None:
            text = "Work is being deleted"
            conditions = with_condition(
                status.get("conditions") or [],
                condition(
                    DELETING,
                    "True",
                    "WorkDeleting",
                    text,
                    observedGeneration=work["metadata"]["generation"],
                ),
                now=_timestamp(),
            )
            work = await self._patch(work, {"status": {"conditions": conditions}}, subresource="status")
        name = f"{applied_work.hub_hash(self.hub.url)}-{work['metadata']['name']}"
        if not await self._remove(name):
            return DELETION_SECONDS
        rest = [one for one in finalizers if one != FINALIZER]
        await self._patch(work, {"metadata": {"finalizers": rest}})
        return None

    async def _remove(self, name: str) -> bool:
        """Delete an AppliedManifestWork with its objects. Returns whether it is gone."""
        try:
            applied = await self.spoke.get(APPLIED_WORKS, name)
            if not applied["metadata"].get("deletionTimestamp"):
                await self.spoke.delete(APPLIED_WORKS, name, uid=applied["metadata"]["uid"])
                applied = await self.spoke.get(APPLIED_WORKS, name)
        except NotFound:
            return True
        return await applied_work.finish(self.spoke, applied)

    async def _clean(self) -> None:
        """Evict what belongs to works that left the hub without this agent, or to another hub."""
        while True:
            await asyncio.sleep(min(1.0, self.timing.status_interval))
            try:
                works = await self.spoke.list_all(APPLIED_WORKS)
                present = {
                    work["metadata"]["name"]
                    for work in await self.hub.list_all(MANIFEST_WORKS, namespace=self.cluster)
                }
                for applied in works:
                    if applied["spec"].get("agentID") == self.agent_id:
                        await self._clean_one(applied, present)
            except HubError as error:
                log.info("agent.not_cleaned", error=str(error))

    async def _clean_one(self, applied: Mapping[str, Any], present: set[str]) -> None:
        name = applied["metadata"]["name"]
        if applied["metadata"].get("deletionTimestamp"):
            await applied_work.finish(self.spoke, applied)
            return
        is_ours = name.startswith(applied_work.hub_hash(self.hub.url))
        started = (applied.get("status") or {}).get("evictionStartTime")
        if is_ours and applied["spec"]["manifestWorkName"] in present:
            if started:
                await self._patch_eviction(name, None)
        elif started is None:
            await self._patch_eviction(name, _timestamp())
        elif now() >= dt.datetime.fromisoformat(started) + dt.timedelta(seconds=self.timing.eviction_grace):
            await self._remove(name)

    async def _patch_eviction(self, name: str, started: str | None) -> None:
        await self.spoke.merge_patch(
            APPLIED_WORKS, name, {"status": {"evictionStartTime": started}}, subresource="status"
        )

    async def _write_status(
        self, work: dict[str, Any], conditions: list[dict[str, Any]], manifests: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Write what differs, and nothing if nothing does. Returns the work as stored."""
        status = {"conditions": conditions, "resourceStatus": {"manifests": manifests}}
        stored = work.get("status") or {}
        if all(stored.get(key) == value for key, value in status.items()):
            return work
        return await self._patch(work, {"status": status}, subresource="status")

    async def _patch(
        self, work: Mapping[str, Any], patch: Mapping[str, Any], *, subresource: str | None = None
    ) -> dict[str, Any]:
        """Patch a work as it was read. Raises Conflict if it was written since."""
        metadata = {key: work["metadata"][key] for key in ("uid", "resourceVersion")}
        body = {**patch, "metadata": {**metadata, **patch.get("metadata", {})}}
        return await self.hub.merge_patch(
            MANIFEST_WORKS, work["metadata"]["name"], body, namespace=self.cluster, subresource=subresource
        )

    def _until_resync(self) -> float:
        return self.timing.resync * random.uniform(1.0, 1.0 + RESYNC_JITTER)


def _backoff(failures: int) -> float:
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(failures, 20), LONGEST_RETRY_SECONDS)


def _timestamp() -> str:
    return now().strftime("%Y-%m-%dT%H:%M:%SZ")

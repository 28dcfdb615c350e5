"""Writes decisions to the hub's API, and what it answered to Postgres."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import structlog
from prometheus_client import Counter

from services.dispatcher.assemble import patch_of
from services.dispatcher.decide import Create, Decision, Delete, Leave, Patch
from services.dispatcher.module_events import event_body, events_between
from services.dispatcher.stored import StoredModule
from shared.domain.errors import HubError
from shared.domain.work import MODULE_LABEL, ObservedWork, observe_work
from shared.kube.client import EVENTS, MANIFEST_WORKS, MODULES
from shared.kube.errors import ApiUnavailable, Conflict, NotFound
from shared.kube.port import HubApi
from shared.runtime.fail_point import FailPoint, fail_point
from shared.store.port import Store

log = structlog.get_logger()

FINALIZER = "hub.kmm.sigs.x-k8s.io/manifestworks"
"""Keeps a deleted module until all of its works are gone."""


class _ListMeta(msgspec.Struct):
    continue_: str | None = msgspec.field(default=None, name="continue")


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)


WRITES = Counter("kmmhub_manifestwork_writes_total", "ManifestWorks written, by what was done.", ["verb"])


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Around the reading of an answer: a proxy may answer itself, with success and something else."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ApiUnavailable(
            f"the API server's answer about {what} cannot be read: {type(error).__name__}: {error}"
        ) from error


async def apply_decision(
    kube: HubApi, store: Store, *, module: str, cluster: str, decision: Decision
) -> ObservedWork | None:
    """Carry out one decision.

    Returns:
        The work as the API server answered, None if nothing was written or it was deleted.

    Raises:
        HubError: the API server refused or could not be reached; decide again later.
    """
    match decision:
        case Leave():
            return None
        case Create(work=body):
            answer = await _create(kube, cluster, body)
        case Patch(uid=uid, work=body):
            answer = await kube.merge_patch(
                MANIFEST_WORKS, module, patch_of(body, uid=uid), namespace=cluster
            )
            WRITES.labels("patch").inc()
        case Delete(uid=uid):
            await _delete(kube, module, cluster, uid)
            return None
    log.info("work.written", module=module, cluster=cluster, verb=type(decision).__name__.lower())
    fail_point(FailPoint.WORK_WRITTEN)
    with _reading(f"ManifestWork {cluster}/{module}"):
        work = observe_work(answer)
    async with store.begin() as transaction:
        await transaction.record_works([work], is_own_write=True)
    fail_point(FailPoint.WORK_STORED)
    return work


async def _create(kube: HubApi, cluster: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer = await kube.create(MANIFEST_WORKS, body, namespace=cluster)
    WRITES.labels("create").inc()
    return answer


async def _delete(kube: HubApi, module: str, cluster: str, uid: str) -> None:
    """Ask for the deletion; that the work is gone, or waits for its agent, comes back through the watch."""
    with contextlib.suppress(NotFound):
        await kube.delete(MANIFEST_WORKS, module, namespace=cluster, uid=uid)
        WRITES.labels("delete").inc()
        log.info("work.deleted", module=module, cluster=cluster)
        fail_point(FailPoint.WORK_DELETED)


async def ensure_finalizer(kube: HubApi, module: StoredModule) -> None:
    """Put our finalizer on a module before its first work is posted. Raises HubError."""
    if FINALIZER in module.finalizers:
        return
    await _change_finalizers(kube, module, lambda names: names if FINALIZER in names else [*names, FINALIZER])
    fail_point(FailPoint.FINALIZER_SET)


async def has_works(kube: HubApi, module: str) -> bool:
    """Whether the API server still stores a work of this module, as of now.

    A page that is not the last is a yes, even an empty one, which servers may answer (Kubernetes API,
    `ListOptions.limit`).

    Raises:
        HubError: it cannot be told.
    """
    answer = await kube.list_page(MANIFEST_WORKS, limit=1, labels={MODULE_LABEL: module})
    with _reading(f"the ManifestWorks of {module}"):
        page = msgspec.json.decode(answer, type=_Page)
    return bool(page.items or page.metadata.continue_)


async def release_module(kube: HubApi, module: StoredModule) -> None:
    """Take our finalizer off a module whose works are gone; one that is gone itself is no error."""
    with contextlib.suppress(NotFound):
        await _change_finalizers(kube, module, lambda names: [name for name in names if name != FINALIZER])
        log.info("module.released", module=module.name)
        fail_point(FailPoint.MODULE_RELEASED)


async def _change_finalizers(
    kube: HubApi, module: StoredModule, change: Callable[[Sequence[str]], Sequence[str]]
) -> None:
    """Apply `change` to the finalizers as stored, and if the module was written since, as they are now."""
    try:
        await _write_finalizers(kube, module, change(module.finalizers))
    except Conflict:
        answer = await kube.get(MODULES, module.name)
        with _reading(f"ManagedClusterModule {module.name}"):
            now = answer["metadata"]
            module = replace(
                module,
                resource_version=int(now["resourceVersion"]),
                finalizers=tuple(now.get("finalizers") or ()),
            )
        await _write_finalizers(kube, module, change(module.finalizers))


async def _write_finalizers(kube: HubApi, module: StoredModule, finalizers: Sequence[str]) -> None:
    """Raises Conflict if the module is no longer at its resourceVersion."""
    if list(finalizers) != list(module.finalizers):
        metadata = {
            "uid": module.uid,
            "resourceVersion": str(module.resource_version),
            "finalizers": list(finalizers),
        }
        await kube.merge_patch(MODULES, module.name, {"metadata": metadata})


async def write_status(
    kube: HubApi, module: StoredModule, status: Mapping[str, Any], *, now: str
) -> StoredModule | None:
    """Write a module's status and tell what changed, unless it is stored like this already or the module is gone.

    Returns:
        The module as the API server answered, None if nothing was written.
    """
    if all(module.status.get(key) == value for key, value in status.items()):
        return None
    what = f"ManagedClusterModule {module.name}"
    try:
        try:
            answer = await _write_status(kube, module, status, version=str(module.resource_version))
        except Conflict:  # it was written since: by us, by a person, or it was deleted and made again
            found = await kube.get(MODULES, module.name)
            with _reading(what):
                uid, version = found["metadata"]["uid"], str(found["metadata"]["resourceVersion"])
            if uid != module.uid:
                return None
            answer = await _write_status(kube, module, status, version=version)
    except (NotFound, Conflict):  # the next look sees it
        return None
    fail_point(FailPoint.STATUS_WRITTEN)
    with _reading(what):
        written = replace(
            module,
            status=dict(answer["status"]),
            resource_version=int(answer["metadata"]["resourceVersion"]),
        )
    for event in events_between(module.status, status):
        await _tell(kube, event_body(module, event, now=now))
        fail_point(FailPoint.EVENT_TOLD)
    return written


async def _write_status(
    kube: HubApi, module: StoredModule, status: Mapping[str, Any], *, version: str
) -> dict[str, Any]:
    """The version is the only precondition that the API server knows for a status: it ignores a uid there."""
    body = {"metadata": {"resourceVersion": version}, "status": dict(status)}
    return await kube.merge_patch(MODULES, module.name, body, subresource="status")


async def _tell(kube: HubApi, body: Mapping[str, Any]) -> None:
    """Create an Event, or count it up where it was told before. One that cannot be written is no failure."""
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    try:
        try:
            await kube.create(EVENTS, body, namespace=namespace)
        except Conflict:
            told = await kube.get(EVENTS, name, namespace=namespace)
            again = {key: body[key] for key in ("type", "message", "lastTimestamp")}
            with _reading(f"Event {name}"):
                counted = again | {"count": told.get("count", 1) + 1}
            await kube.merge_patch(EVENTS, name, counted, namespace=namespace)
    except HubError as error:
        log.warning("event.not_written", event_name=name, error=str(error))

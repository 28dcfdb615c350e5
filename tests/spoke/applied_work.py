"""AppliedManifestWorks: what a work agent notes on the spoke about each work, and removes objects by."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from shared.kube.client import Resource
from shared.kube.errors import NotFound
from spoke.client import APPLIED_WORKS, ApiClient

FINALIZER = "cluster.open-cluster-management.io/applied-manifest-work-cleanup"

_NAMING = ("group", "version", "resource", "namespace", "name")

Entry = dict[str, Any]


def hub_hash(url: str) -> str:
    """What names a hub on its spokes: SHA-256 of the address in the agent's kubeconfig, in hex."""
    return hashlib.sha256(url.encode()).hexdigest()


def owner_reference(applied: Mapping[str, Any]) -> dict[str, str]:
    """What marks an object as delivered by this AppliedManifestWork."""
    return {
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "AppliedManifestWork",
        "name": applied["metadata"]["name"],
        "uid": applied["metadata"]["uid"],
    }


async def ensure_applied_work(kube: ApiClient, *, url: str, work: str, agent_id: str) -> dict[str, Any]:
    """The AppliedManifestWork of a work, made unless it is there."""
    name = f"{hub_hash(url)}-{work}"
    try:
        return await kube.get(APPLIED_WORKS, name)
    except NotFound:
        body = {
            "apiVersion": "work.open-cluster-management.io/v1",
            "kind": "AppliedManifestWork",
            "metadata": {"name": name, "finalizers": [FINALIZER]},
            "spec": {"hubHash": hub_hash(url), "manifestWorkName": work, "agentID": agent_id},
        }
        return await kube.create(APPLIED_WORKS, body)


async def track(kube: ApiClient, applied: Mapping[str, Any], metas: Sequence[Mapping[str, Any]]) -> bool:
    """Note which objects exist now, and delete those that the work no longer has.

    Args:
        kube: the spoke.
        applied: the AppliedManifestWork as stored.
        metas: resourceMeta of every manifest of the work.

    Returns:
        Whether nothing is left to be deleted.
    """
    present = [
        entry for meta in metas if meta["resource"] and (entry := await _entry(kube, meta)) is not None
    ]
    known = (applied.get("status") or {}).get("appliedResources") or []
    kept = [_key(entry) for entry in present]
    dropped = [entry for entry in known if _key(entry) not in kept]
    pending = await delete_resources(kube, dropped, owner_reference(applied))
    entries = sorted([*present, *pending], key=_key)
    if entries != known:
        await kube.merge_patch(
            APPLIED_WORKS,
            applied["metadata"]["name"],
            {"status": {"appliedResources": entries}},
            subresource="status",
        )
    return not pending


async def finish(kube: ApiClient, applied: Mapping[str, Any]) -> bool:
    """Delete the objects of an AppliedManifestWork that is being deleted, and let it go with the last of them."""
    known = (applied.get("status") or {}).get("appliedResources") or []
    if await delete_resources(kube, known, owner_reference(applied)):
        return False
    kept = [name for name in applied["metadata"].get("finalizers") or [] if name != FINALIZER]
    metadata = {"finalizers": kept, "resourceVersion": applied["metadata"]["resourceVersion"]}
    with contextlib.suppress(NotFound):
        await kube.merge_patch(APPLIED_WORKS, applied["metadata"]["name"], {"metadata": metadata})
    return True


async def delete_resources(
    kube: ApiClient, entries: Sequence[Entry], owner: Mapping[str, str]
) -> list[Entry]:
    """Delete what `owner` alone owns, and take its reference off what others own, too.

    Returns:
        What is still there because something holds it.
    """
    return [entry for entry in entries if await _delete_one(kube, entry, owner)]


async def _delete_one(kube: ApiClient, entry: Entry, owner: Mapping[str, str]) -> bool:
    """Whether the object has still to go; one made anew under the name, or never ours, stays and is forgotten."""
    resource, name, namespace = _place(entry)
    try:
        item = await kube.get(resource, name, namespace=namespace)
    except NotFound:
        return False
    owners = item["metadata"].get("ownerReferences") or []
    if item["metadata"]["uid"] != entry["uid"] or owner["uid"] not in [one["uid"] for one in owners]:
        return False
    if item["metadata"].get("deletionTimestamp"):
        return True
    others = [one for one in owners if one["uid"] != owner["uid"]]
    if any(one["kind"] == "AppliedManifestWork" for one in others):
        metadata = {"ownerReferences": others, "resourceVersion": item["metadata"]["resourceVersion"]}
        await kube.merge_patch(resource, name, {"metadata": metadata}, namespace=namespace)
        return False
    with contextlib.suppress(NotFound):
        await kube.delete_in_background(resource, name, namespace=namespace, uid=entry["uid"])
    return True


async def _entry(kube: ApiClient, meta: Mapping[str, Any]) -> Entry | None:
    resource, name, namespace = _place(meta)
    try:
        item = await kube.get(resource, name, namespace=namespace)
    except NotFound:
        return None
    return {key: meta.get(key, "") for key in _NAMING} | {"uid": item["metadata"]["uid"]}


def _place(entry: Mapping[str, Any]) -> tuple[Resource, str, str | None]:
    resource = Resource(group=entry.get("group", ""), version=entry["version"], plural=entry["resource"])
    return resource, entry["name"], entry.get("namespace") or None


def _key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get(key) or "") for key in (*_NAMING, "uid"))

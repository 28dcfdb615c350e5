"""Applies manifests of a work to the spoke, under the agent's own rights, by the work's update strategies."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.domain.errors import HubError
from shared.kube.client import Resource
from shared.kube.errors import Conflict, NotFound
from spoke.client import ApiClient, NoSuchKind, server_message
from spoke.feedback import configuration

ATTEMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it went with one manifest: its resourceMeta, and what the API server said if it failed."""

    meta: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an object is."""

    resource: Resource
    name: str
    namespace: str | None


async def apply_manifest(
    kube: ApiClient, ordinal: int, work: Mapping[str, Any], owner: Mapping[str, Any]
) -> Outcome:
    """Apply the manifest at `ordinal`, owned by the AppliedManifestWork `owner` unless the work orphans it.

    Raises:
        ApiUnavailable: the spoke's API server is away.
    """
    required = copy.deepcopy(work["spec"]["workload"]["manifests"][ordinal])
    required["metadata"].pop("uid", None)
    group, _, version = required["apiVersion"].rpartition("/")
    meta = {
        "ordinal": ordinal,
        "group": group,
        "version": version,
        "kind": required["kind"],
        "resource": "",
        "name": required["metadata"]["name"],
        "namespace": required["metadata"].get("namespace", ""),
    }
    try:
        resource, is_namespaced = await kube.mapping(required["apiVersion"], required["kind"])
        meta["resource"] = resource.plural
        namespace = meta["namespace"] if is_namespaced else None
        target = Target(resource=resource, name=meta["name"], namespace=namespace)
        await _apply(kube, target, required, configuration(work, meta), _owners(work, meta, owner))
    except (NoSuchKind, HubError) as error:
        return Outcome(meta=meta, error=server_message(error))
    return Outcome(meta=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owners:
    """The owner reference of the work, and whether the object shall bear it."""

    reference: Mapping[str, Any]
    is_owned: bool

    def of(self, present: list[dict[str, Any]]) -> list[dict[str, Any]]:
        others = [one for one in present if one["uid"] != self.reference["uid"]]
        return [*others, dict(self.reference)] if self.is_owned else others


def _owners(work: Mapping[str, Any], meta: Mapping[str, Any], owner: Mapping[str, Any]) -> _Owners:
    option = work["spec"].get("deleteOption") or {}
    policy = option.get("propagationPolicy", "Foreground")
    rules = (option.get("selectivelyOrphans") or {}).get("orphaningRules") or []
    keys = ("group", "resource", "namespace", "name")
    is_listed = any(all((rule.get(key) or "") == meta[key] for key in keys) for rule in rules)
    is_orphan = policy == "Orphan" or (policy == "SelectivelyOrphan" and is_listed)
    return _Owners(reference=owner, is_owned=not is_orphan)


async def _apply(
    kube: ApiClient,
    target: Target,
    required: dict[str, Any],
    config: Mapping[str, Any],
    owners: _Owners,
) -> None:
    strategy = config.get("updateStrategy") or {"type": "Update"}
    place = {"namespace": target.namespace}
    match strategy["type"]:
        case "ReadOnly":
            return
        case "ServerSideApply":
            options = strategy.get("serverSideApply") or {}
            required["metadata"]["ownerReferences"] = owners.of([])
            manager, force = options.get("fieldManager", "work-agent"), bool(options.get("force"))
            await kube.apply_unforced(
                target.resource, target.name, required, manager=manager, force=force, **place
            )
            return
    for attempt in range(ATTEMPTS):
        try:
            await _create_or_update(
                kube, target, required, owners, only_create=strategy["type"] == "CreateOnly"
            )
        except Conflict:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            return


async def _create_or_update(
    kube: ApiClient, target: Target, required: dict[str, Any], owners: _Owners, *, only_create: bool
) -> None:
    place = {"namespace": target.namespace}
    try:
        present = await kube.get(target.resource, target.name, **place)
    except NotFound:
        metadata = {**required["metadata"], "ownerReferences": owners.of([])}
        await kube.create(target.resource, {**required, "metadata": metadata}, **place)
        return
    wanted = present if only_create else updated(present, required)
    metadata = {
        **wanted["metadata"],
        "ownerReferences": owners.of(present["metadata"].get("ownerReferences") or []),
    }
    if (
        metadata["ownerReferences"] == (present["metadata"].get("ownerReferences") or [])
        and wanted == present
    ):
        return
    await kube.replace(target.resource, target.name, {**wanted, "metadata": metadata}, **place)


def updated(present: Mapping[str, Any], required: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be stored: the manifest, with everything that others put into the metadata, and the status.

    Defaults that the manifest does not spell out differ from what is stored, at every resync anew: so does OCM.
    """
    metadata = dict(present["metadata"])
    for key in ("labels", "annotations"):
        merged = {**(metadata.get(key) or {}), **(required["metadata"].get(key) or {})}
        if merged:
            metadata[key] = merged
    result = {**required, "metadata": metadata}
    if "status" in present:
        result["status"] = present["status"]
    else:
        result.pop("status", None)
    return result

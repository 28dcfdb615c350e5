"""Looks at one object of a work: whether it is there, and what its status has for the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.domain.errors import HubError
from shared.kube.client import Resource
from shared.kube.errors import NotFound
from spoke.client import ApiClient, server_message
from spoke.conditions import AVAILABLE, Condition, condition, with_condition
from spoke.feedback import configuration, feedback


async def observe(
    spoke: ApiClient, work: Mapping[str, Any], manifest: Mapping[str, Any], *, now: str
) -> dict[str, Any]:
    """One entry of `status.resourceStatus.manifests` as it is to be now.

    Args:
        spoke: under the agent's rights.
        work: the ManifestWork, for its feedback rules.
        manifest: the entry as stored. Feedback of an object that is gone stays as it was: so does OCM.
        now: RFC 3339.
    """
    meta = manifest["resourceMeta"]
    state, item = await _look_for(spoke, meta)
    conditions = with_condition(manifest["conditions"], state, now=now)
    if item is None:
        return {**manifest, "conditions": conditions}
    values, synced = feedback(configuration(work, meta).get("feedbackRules") or [], item)
    if values != ((manifest.get("statusFeedback") or {}).get("values") or []):
        conditions = [one for one in conditions if one["type"] != synced["type"]]
    conditions = with_condition(conditions, synced, now=now)
    sent = {"statusFeedback": {"values": values}} if values or manifest.get("statusFeedback") else {}
    return {**manifest, **sent, "conditions": conditions}


async def _look_for(spoke: ApiClient, meta: Mapping[str, Any]) -> tuple[Condition, dict[str, Any] | None]:
    if not (meta.get("resource") and meta.get("version") and meta.get("name")):
        text = "Resource meta is incompleted"
        return condition(AVAILABLE, "Unknown", "IncompletedResourceMeta", text), None
    resource = Resource(group=meta.get("group", ""), version=meta["version"], plural=meta["resource"])
    try:
        item = await spoke.get(resource, meta["name"], namespace=meta.get("namespace") or None)
    except NotFound:
        return condition(AVAILABLE, "False", "ResourceNotAvailable", "Resource is not available"), None
    except HubError as error:
        text = f"Failed to fetch resource: {server_message(error)}"
        return condition(AVAILABLE, "Unknown", "FetchingResourceFailed", text), None
    return condition(AVAILABLE, "True", "ResourceAvailable", "Resource is available"), item

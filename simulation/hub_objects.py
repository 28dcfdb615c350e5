"""How an API server changes single objects: creation, merge patches, deletion. Pure functions.

Sources: Kubernetes API conventions ("Metadata", "Spec and Status"), apiextensions' strategies for custom resources,
RFC 7386; tests/contract/test_hub_api.py holds them against a real API server. Schemas are not applied: there are no
defaults, no pruning and no validation of specs.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.kube.client import (
    CONFIG_MAPS,
    EVENTS,
    LEASES,
    MANAGED_CLUSTERS,
    MANIFEST_WORKS,
    MODULES,
    NAMESPACES,
    SECRETS,
    Resource,
)
from shared.kube.errors import ApiUnavailable, Conflict, Refused

Json = dict[str, Any]

SYSTEM_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
"""Metadata that only the API server writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the API server knows of a resource.

    Attributes:
        name: such as ManifestWork.
        is_namespaced: whether its objects live in namespaces.
        is_custom: a custom resource: with a generation, and a status that only its subresource writes.
    """

    resource: Resource
    name: str
    is_namespaced: bool
    is_custom: bool

    @property
    def api_version(self) -> str:
        """`group/version`, or the version alone for the core group."""
        return (
            f"{self.resource.group}/{self.resource.version}" if self.resource.group else self.resource.version
        )

    @property
    def plural(self) -> str:
        """The resource with its group, as messages name it."""
        return f"{self.resource.plural}.{self.resource.group}".removesuffix(".")


KINDS = {
    resource: Kind(
        resource=resource,
        name=name,
        is_namespaced=is_namespaced,
        is_custom=resource.group not in {"", LEASES.group},
    )
    for resource, name, is_namespaced in (
        (MANAGED_CLUSTERS, "ManagedCluster", False),
        (MANIFEST_WORKS, "ManifestWork", True),
        (MODULES, "ManagedClusterModule", False),
        (CONFIG_MAPS, "ConfigMap", True),
        (SECRETS, "Secret", True),
        (EVENTS, "Event", True),
        (NAMESPACES, "Namespace", False),
        (LEASES, "Lease", True),
    )
}
"""The resources that the simulated hub serves."""


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch applied to a value (RFC 7386, section 2). Neither is changed."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def created(kind: Kind, body: Mapping[str, Any], *, namespace: str | None, uid: str, now: str) -> Json:
    """The object that a create request makes, without its resourceVersion.

    Raises:
        Refused: it has no name, or another namespace than its path.
        ApiUnavailable: it has a resourceVersion; API servers answer with 500.
    """
    given = body.get("metadata") or {}
    if not given.get("name"):
        raise Refused(f"{kind.plural}: name or generateName is required")
    if given.get("namespace", namespace) != namespace:
        raise Refused("the namespace of the provided object does not match the namespace sent on the request")
    if given.get("resourceVersion"):
        raise ApiUnavailable("resourceVersion should not be set on objects to be created")
    metadata = {key: value for key, value in given.items() if key not in SYSTEM_METADATA and value}
    metadata |= {"name": given["name"], "uid": uid, "creationTimestamp": now}
    metadata |= {"namespace": namespace} if namespace else {}
    metadata |= {"generation": 1} if kind.is_custom else {}
    made = {"apiVersion": kind.api_version, "kind": kind.name} | dict(body) | {"metadata": metadata}
    if kind.is_custom:
        made.pop("status", None)
    return _completed(kind, made)


def patched(kind: Kind, old: Json, patch: Mapping[str, Any], *, subresource: str | None) -> Json:
    """The object after a merge patch, without a new resourceVersion; equal to `old` if nothing changes.

    Raises:
        Refused: it would change the name or the uid, or add finalizers to an object that is being deleted.
        Conflict: the patch names another resourceVersion.
    """
    new: Json = merged(old, patch)
    label = f'{kind.plural} "{old["metadata"]["name"]}"'
    before, after = old["metadata"], new["metadata"]
    for key in ("name", "namespace"):
        if after.get(key) != before.get(key):
            raise Refused(
                f"the {key} of the object ({after.get(key)}) does not match the {key} on the URL ({before.get(key)})"
            )
    if after.get("resourceVersion", before["resourceVersion"]) != before["resourceVersion"]:
        raise Conflict(f"Operation cannot be fulfilled on {label}: the object has been modified")
    if subresource == "status":
        kept = {key: value for key, value in old.items() if key != "status"}
        return kept | ({"status": new["status"]} if "status" in new else {})
    if after.get("uid", before["uid"]) != before["uid"]:
        raise Refused(f"{label} is invalid: metadata.uid: {after['uid']}: field is immutable")
    if "deletionTimestamp" in before and set(after.get("finalizers") or ()) - set(
        before.get("finalizers") or ()
    ):
        raise Refused(f"{label} is invalid: metadata.finalizers: no new finalizers can be added")
    metadata = {key: value for key, value in after.items() if key not in SYSTEM_METADATA and value}
    new["metadata"] = metadata | {key: before[key] for key in SYSTEM_METADATA if key in before}
    if kind.is_custom:
        new.pop("status", None)
        new |= {"status": old["status"]} if "status" in old else {}
        if _content(new) != _content(old):
            new["metadata"]["generation"] += 1
    return _completed(kind, new)


def doomed(old: Json, *, now: str) -> Json:
    """An object with finalizers after a request to delete it; the same if it waits for its end already."""
    if "deletionTimestamp" in old["metadata"]:
        return old
    metadata = old["metadata"] | {"deletionTimestamp": now, "deletionGracePeriodSeconds": 0}
    if "generation" in metadata:
        metadata["generation"] += 1
    return old | {"metadata": metadata}


def _content(item: Mapping[str, Any]) -> Json:
    return {key: value for key, value in item.items() if key not in ("metadata", "status")}


def _completed(kind: Kind, item: Json) -> Json:
    """What the server fills in for kinds of the core group."""
    if kind.resource == SECRETS:
        texts = item.pop("stringData", None) or {}
        encoded = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
        return item | {"data": (item.get("data") or {}) | encoded, "type": item.get("type", "Opaque")}
    if kind.resource == NAMESPACES:
        name = item["metadata"]["name"]
        labels = (item["metadata"].get("labels") or {}) | {"kubernetes.io/metadata.name": name}
        return (
            {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
            | item
            | {"metadata": item["metadata"] | {"labels": labels}}
        )
    return item

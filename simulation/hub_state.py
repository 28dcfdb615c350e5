"""The memory of a simulated API server: objects, versions, watches. Nothing here waits."""

from __future__ import annotations

import asyncio
import bisect
import datetime as dt
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from shared.kube.client import NAMESPACES, Resource
from shared.kube.errors import Conflict, Forbidden, Gone, NotFound, Refused
from simulation.hub_objects import KINDS, Json, Kind, created, doomed, patched
from simulation.hub_wire import bookmark_line, event_line, expired_line, list_item, list_page

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
"""The time of day at virtual second 0."""

MAX_SNAPSHOTS = 64
"""Lists that can be continued at the same time; older ones are gone."""

Key = tuple[str, str]
"""Namespace, empty for objects without one, and name: in the order of lists."""


@dataclass(slots=True, kw_only=True, eq=False)
class Feed:
    """The server's end of one watch.

    Attributes:
        namespace: None for all.
        lines: events that were not sent yet.
        wake: set when there is something to do.
        is_silent: it is never heard of again.
        cut: how the connection ended, if it did.
    """

    namespace: str | None
    lines: list[bytes] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    is_silent: bool = False
    cut: str | None = None


@dataclass(slots=True, kw_only=True)
class _Stored:
    item: Json
    encoded: bytes


@dataclass(slots=True, kw_only=True)
class _Collection:
    """One resource's objects, what happened to them, and who watches."""

    resource: Resource
    kind: Kind
    objects: dict[Key, _Stored] = field(default_factory=dict)
    versions: list[int] = field(default_factory=list)
    events: list[tuple[str, bytes]] = field(default_factory=list)  # namespace and line, as many as versions
    oldest: int = 0
    feeds: dict[Feed, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    version: int
    items: list[bytes]
    is_counted: bool


class HubState:
    """The hub that all simulated processes share.

    Attributes:
        version: the resourceVersion of the last write.
        watch_delay: seconds that events may be late on watches; each batch draws its own delay.
        observe: told of each write: the resource, the object before and after; None where there is none.
    """

    def __init__(self, chance: random.Random, clock: Callable[[], float]) -> None:
        """A hub with the namespaces `default` and `kube-system`.

        Args:
            chance: draws uids, and how watches end that are cut.
            clock: virtual seconds, such as the loop's `time`.
        """
        self.version = 100
        self.watch_delay = 0.0
        self.observe: Callable[[Resource, Json | None, Json | None], None] = lambda *_: None
        self.chance = chance
        self._clock = clock
        self._collections = {
            resource: _Collection(resource=resource, kind=kind) for resource, kind in KINDS.items()
        }
        self._snapshots: dict[str, _Snapshot] = {}
        self._tokens = 0
        for name in ("default", "kube-system"):
            self.create(NAMESPACES, {"metadata": {"name": name}})

    def objects(self, resource: Resource) -> list[Json]:
        """All objects of a resource as they are now, for whoever checks invariants. Do not change them."""
        return [stored.item for stored in self._collections[resource].objects.values()]

    # Requests: they answer with encoded objects, as the wire has them

    def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> bytes:
        """Read an object. Raises NotFound."""
        return self._find(resource, name, namespace)[1].encoded

    def list_page(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        limit: int = 500,
        token: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> bytes:
        """One page. Raises Gone for a token that is too old, Refused for one that never was."""
        kind = self._collection(resource).kind
        snapshot = self._continued(token) if token else self._taken(resource, namespace, labels or {})
        page, rest = snapshot.items[:limit], snapshot.items[limit:]
        next_token = None
        if rest:
            self._tokens += 1
            next_token = f"v1:{self._tokens}"
            self._snapshots[next_token] = replace(snapshot, items=rest)
            if len(self._snapshots) > MAX_SNAPSHOTS:
                del self._snapshots[next(iter(self._snapshots))]
        left = len(rest) if snapshot.is_counted else None
        return list_page(kind, page, version=snapshot.version, token=next_token, left=left)

    def create(self, resource: Resource, body: Mapping[str, Any], *, namespace: str | None = None) -> bytes:
        """Create an object. Raises Conflict, NotFound, Forbidden, Refused."""
        collection = self._collection(resource)
        kind = collection.kind
        uid = str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
        item = created(kind, body, namespace=namespace, uid=uid, now=self._now())
        name = item["metadata"]["name"]
        if kind.is_namespaced:
            self._check_namespace(kind, name, namespace or "")
        if (namespace or "", name) in collection.objects:
            raise Conflict(f'{kind.plural} "{name}" already exists')
        return self._write(collection, item, "ADDED")

    def merge_patch(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> bytes:
        """Patch an object; one without finalizers whose deletion was asked for ends. Raises as `HubApi`."""
        collection, stored = self._find(resource, name, namespace)
        if subresource not in (None, "status") or (subresource and not collection.kind.is_custom):
            raise NotFound("the server could not find the requested resource")
        item = patched(collection.kind, stored.item, body, subresource=subresource)
        if item == stored.item:
            return stored.encoded
        if "deletionTimestamp" in item["metadata"] and _is_free(item):
            self._remove(collection, stored.item)
            return orjson.dumps(item)
        return self._write(collection, item, "MODIFIED")

    def delete(
        self, resource: Resource, name: str, *, namespace: str | None = None, uid: str | None = None
    ) -> None:
        """Delete an object, or mark it if finalizers hold it. Raises NotFound, Conflict."""
        collection, stored = self._find(resource, name, namespace)
        if uid is not None and uid != stored.item["metadata"]["uid"]:
            raise Conflict(
                f'{collection.kind.plural} "{name}": the UID in the precondition ({uid}) does not match'
            )
        if _is_free(stored.item):
            self._remove(collection, stored.item)
            return
        item = doomed(stored.item, now=self._now())
        if item is not stored.item:
            if resource == NAMESPACES:
                item = item | {"status": {"phase": "Terminating"}}
            self._write(collection, item, "MODIFIED")

    def open_watch(self, resource: Resource, version: str, feed: Feed) -> None:
        """Feed everything after `version`; if that was compacted, one error. Raises NotFound."""
        collection = self._collection(resource)
        if int(version) < collection.oldest:
            feed.lines.append(expired_line(version, oldest=collection.oldest))
            feed.cut = "end"
        else:
            first = bisect.bisect_right(collection.versions, int(version))
            feed.lines += [
                line for place, line in collection.events[first:] if feed.namespace in (None, place)
            ]
            collection.feeds[feed] = None
        if feed.lines:
            feed.wake.set()

    def send(self, resource: Resource, feed: Feed, *, is_due: bool) -> list[bytes]:
        """What goes over the watch now; a bookmark if there is nothing and `is_due`. A cut loses some of it."""
        lines, feed.lines = feed.lines, []
        if feed.cut in ("break", "torn"):
            kept = self.chance.randint(0, len(lines))
            halves = [line[: len(line) // 2] for line in lines[kept : kept + 1] if feed.cut == "torn"]
            return lines[:kept] + halves
        return lines or (
            [bookmark_line(self._collections[resource].kind, version=self.version)] if is_due else []
        )

    def close_watch(self, resource: Resource, feed: Feed) -> None:
        """Forget a feed, whether or not it is still open."""
        if resource in self._collections:
            self._collections[resource].feeds.pop(feed, None)

    # Weather and controllers

    def compact(self) -> None:
        """Forget the past: older versions and lists that were begun cannot be continued. Open watches go on."""
        self._snapshots.clear()
        for collection in self._collections.values():
            collection.oldest = self.version
            collection.versions.clear()
            collection.events.clear()

    def cut_watches(self) -> None:
        """End all open watches: in order, without a word, or in the middle of a line."""
        for feed in self._feeds():
            feed.cut = self.chance.choice(("end", "break", "torn"))
            feed.wake.set()

    def silence_watches(self) -> None:
        """Send nothing more on the watches that are open now, not even their end."""
        for feed in self._feeds():
            feed.is_silent = True
            feed.wake.set()

    def finish_namespaces(self) -> None:
        """What the namespace controller does now and then: empty namespaces that are being deleted, then end them."""
        namespaces = self._collections[NAMESPACES]
        for (_, name), stored in list(namespaces.objects.items()):
            if "deletionTimestamp" not in stored.item["metadata"]:
                continue
            inside = [
                (resource, key)
                for resource, collection in self._collections.items()
                for key in collection.objects
                if key[0] == name
            ]
            for resource, key in inside:
                self.delete(resource, key[1], namespace=name)
            if not any(key[0] == name for one in self._collections.values() for key in one.objects):
                self._remove(namespaces, stored.item)

    # Inside

    def _collection(self, resource: Resource) -> _Collection:
        if resource not in self._collections:
            raise NotFound("404 page not found")
        return self._collections[resource]

    def _find(self, resource: Resource, name: str, namespace: str | None) -> tuple[_Collection, _Stored]:
        collection = self._collection(resource)
        stored = collection.objects.get((namespace or "", name))
        if stored is None:
            raise NotFound(f'{collection.kind.plural} "{name}" not found')
        return collection, stored

    def _check_namespace(self, kind: Kind, name: str, namespace: str) -> None:
        place = self._collections[NAMESPACES].objects.get(("", namespace))
        if place is None:
            raise NotFound(f'namespaces "{namespace}" not found')
        if "deletionTimestamp" in place.item["metadata"]:
            raise Forbidden(
                f'{kind.plural} "{name}" is forbidden: unable to create new content in namespace {namespace} '
                "because it is being terminated"
            )

    def _taken(self, resource: Resource, namespace: str | None, labels: Mapping[str, str]) -> _Snapshot:
        collection = self._collections[resource]
        wanted = labels.items()
        items = [
            list_item(collection.kind, stored.item, stored.encoded)
            for key, stored in sorted(collection.objects.items(), key=lambda entry: entry[0])
            if namespace in (None, key[0]) and wanted <= (stored.item["metadata"].get("labels") or {}).items()
        ]
        return _Snapshot(version=self.version, items=items, is_counted=not labels)

    def _continued(self, token: str) -> _Snapshot:
        if token in self._snapshots:
            return self._snapshots[token]
        if token.startswith("v1:"):
            raise Gone("The provided continue parameter is too old to display a consistent list result.")
        raise Refused("invalid continue token: continue key is not valid")

    def _write(self, collection: _Collection, item: Json, event: str) -> bytes:
        self.version += 1
        encoded = orjson.dumps(item | {"metadata": item["metadata"] | {"resourceVersion": str(self.version)}})
        # Decoded again: nothing that a caller holds is part of what is stored.
        before = collection.objects.get(_key(item))
        stored = collection.objects[_key(item)] = _Stored(item=orjson.loads(encoded), encoded=encoded)
        self._tell(collection, item, event, encoded)
        self.observe(collection.resource, before.item if before else None, stored.item)
        return encoded

    def _remove(self, collection: _Collection, item: Json) -> None:
        """End an object. Its last event shows it as it was stored, at the version of its end."""
        self.version += 1
        del collection.objects[_key(item)]
        last = item | {"metadata": item["metadata"] | {"resourceVersion": str(self.version)}}
        self._tell(collection, item, "DELETED", orjson.dumps(last))
        self.observe(collection.resource, item, None)

    def _tell(self, collection: _Collection, item: Json, event: str, encoded: bytes) -> None:
        place, line = item["metadata"].get("namespace", ""), event_line(event, encoded)
        collection.versions.append(self.version)
        collection.events.append((place, line))
        for feed in collection.feeds:
            if feed.namespace in (None, place):
                feed.lines.append(line)
                feed.wake.set()

    def _feeds(self) -> list[Feed]:
        return [feed for collection in self._collections.values() for feed in collection.feeds]

    def _now(self) -> str:
        return (EPOCH + dt.timedelta(seconds=self._clock())).strftime("%Y-%m-%dT%H:%M:%SZ")


def _key(item: Json) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _is_free(item: Json) -> bool:
    """Whether nothing holds an object back from its end. Namespaces are held by their spec."""
    return not item["metadata"].get("finalizers") and not (
        item["kind"] == "Namespace" and item["spec"].get("finalizers")
    )

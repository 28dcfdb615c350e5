"""List, then watch, for ever: turns one resource of the API server into a stream of batches.

Level-triggered: a batch says what objects are like now. After every list comes one `Listed`, which names all
objects that exist, so that whoever keeps them can forget the others. The model is kopf's nesting of three
concerns: one request, list-and-resume, retry for ever.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec
import structlog

from shared.domain.errors import HubError
from shared.kube.client import KubeClient, Resource
from shared.kube.errors import ApiUnavailable, Gone
from shared.runtime.pause import pause

log = structlog.get_logger()

MAX_BACKOFF_SECONDS = 30.0


class OwnerReference(msgspec.Struct, rename="camel"):
    """The part of an owner reference that we read."""

    kind: str
    name: str
    uid: str
    controller: bool | None = None


class Metadata(msgspec.Struct, rename="camel"):
    """The part of an object's metadata that we read; everything else is never decoded."""

    name: str
    resource_version: str = "0"
    uid: str = ""
    namespace: str = ""
    generation: int = 0
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    finalizers: list[str] | None = None
    owner_references: list[OwnerReference] | None = None
    deletion_timestamp: str | None = None


class HasMetadata(Protocol):
    """Any partial type of an API object."""

    metadata: Metadata


T = TypeVar("T", bound=HasMetadata)


class _ListMetadata(msgspec.Struct, rename="camel"):
    resource_version: str = "0"
    continue_: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _ListMetadata
    items: list[msgspec.Raw]


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct):
    metadata: _ListMetadata


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen(Generic[T]):
    """An object exists like this now."""

    object: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed(Generic[T]):
    """An object is gone; `object` is its last state, with the resourceVersion of its deletion."""

    object: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A complete list ended: exactly these (namespace, name) exist at `resource_version`."""

    keys: frozenset[tuple[str, str]]
    resource_version: int


class Reflector(Generic[T]):
    """Reflects one resource, decoding only the fields of `kind`."""

    def __init__(
        self, kube: KubeClient, resource: Resource, kind: type[T], *, namespace: str | None = None
    ) -> None:
        self._kube = kube
        self._resource = resource
        self._namespace = namespace
        self._decoder = msgspec.json.Decoder(kind)

    async def run(self, stop: asyncio.Event) -> AsyncIterator[Seen[T] | Removed[T] | Listed]:
        """Yield until `stop` is set. Every failure is logged and tried again with growing pauses."""
        backoff = 0.5
        while not stop.is_set():
            try:
                async for happening in self._list_and_watch(stop):
                    backoff = 0.5
                    yield happening
            except Gone:
                continue
            except HubError as error:
                log.warning("watch.failed", resource=self._resource.plural, error=str(error))
                delay = (
                    error.retry_after if isinstance(error, ApiUnavailable) and error.retry_after else backoff
                )
                await pause(stop, delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)

    async def _list_and_watch(self, stop: asyncio.Event) -> AsyncIterator[Seen[T] | Removed[T] | Listed]:
        version = "0"
        keys: set[tuple[str, str]] = set()
        token: str | None = None
        while token != "":
            page = msgspec.json.decode(
                await self._kube.list_page(self._resource, namespace=self._namespace, token=token), type=_Page
            )
            for raw in page.items:
                item = self._decode(raw)
                if item is not None:
                    keys.add(object_key(item))
                    yield Seen(object=item)
                else:
                    keys.add(_raw_key(raw))
            version, token = page.metadata.resource_version, page.metadata.continue_
        yield Listed(keys=frozenset(keys), resource_version=int(version))
        while not stop.is_set():
            async for line in self._kube.watch(
                self._resource, resource_version=version, namespace=self._namespace
            ):
                event = _read_event(line, self._resource)
                if event.type == "ERROR":
                    raise _watch_error(event.object, self._resource)
                version = msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
                if event.type == "BOOKMARK":
                    continue
                item = self._decode(event.object)
                if item is not None:
                    yield Removed(object=item) if event.type == "DELETED" else Seen(object=item)
                elif event.type == "DELETED":
                    raise Gone(f"one of the {self._resource.plural} that was removed cannot be read")

    def _decode(self, raw: msgspec.Raw) -> T | None:
        """Decode the fields we know. An object that does not fit is logged and left as it was last known."""
        try:
            return self._decoder.decode(raw)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            log.warning(
                "watch.undecodable", resource=self._resource.plural, key=_raw_key(raw), error=str(error)
            )
            return None


class _OnlyMetadata(msgspec.Struct):
    metadata: Metadata


def object_key(item: HasMetadata) -> tuple[str, str]:
    """(namespace, name); the namespace of a cluster-scoped object is empty."""
    return (item.metadata.namespace, item.metadata.name)


def _raw_key(raw: msgspec.Raw) -> tuple[str, str]:
    return object_key(msgspec.json.decode(raw, type=_OnlyMetadata))


def _read_event(line: bytes, resource: Resource) -> _Event:
    """One line of a watch. A proxy may end it in the middle."""
    try:
        return msgspec.json.decode(line, type=_Event)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ApiUnavailable(f"the watch of {resource.plural} sent {line[:80]!r}: {error}") from error


def _watch_error(raw: msgspec.Raw, resource: Resource) -> HubError:
    """Errors inside of a watch arrive as events of a successful answer."""
    status = msgspec.json.decode(raw, type=_Status)
    if status.code == 410:
        return Gone(status.message)
    return ApiUnavailable(f"the watch of {resource.plural} ended with {status.code}: {status.message}")

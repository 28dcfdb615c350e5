"""List, then watch, for ever: turns one resource of the API server into a stream of batches.

Level-triggered: a batch says what objects are like now. After every list comes one `Listed`, which names all
objects that exist, so that whoever keeps them can forget the others. As client-go's reflector: a watch that broke is
resumed from the last version, with growing pauses. It lists again if that version is gone, if the watch goes on
failing, and now and then, because whoever keeps the objects may have lost some.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, Literal, Protocol, TypeVar

import msgspec
import structlog

from shared.domain.canonical import MAX_DEPTH, is_deeper_than, shallow_json
from shared.domain.errors import HubError
from shared.kube.client import Resource, WatchBroken
from shared.kube.errors import ApiUnavailable, Gone
from shared.kube.port import HubApi
from shared.runtime.clock import elapsed
from shared.runtime.pause import pause

log = structlog.get_logger()

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
MAX_PAGES = 10_000
"""Of one list; a server that always names another page is not followed for ever."""

MAX_FAILURES = 5
"""So many watches in a row that brought nothing, and everything is listed again: their version may be the reason."""

LIVED_SECONDS = 5.0
"""A watch that was open for so long was of use, though it said nothing."""

RELIST_SECONDS = 1800.0
"""About how often everything is listed again although the watch is well, as soon as a watch ends."""

ASKED_LIST_SECONDS = 10.0
"""At most so long after `list_again`, and as soon as a watch ends."""

FAILED_LIST_SECONDS = 120.0
"""After a list that failed, how long to go on with the watch before the next, if there is a version to go on from."""

Version = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,18}\Z")]
"""A resourceVersion: opaque to clients once, a decimal number by now (Kubernetes API concepts), as etcd's revisions."""

Name = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00/]{1,253}\Z")]
Uid = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00]{0,253}\Z")]
Generation = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class OwnerReference(msgspec.Struct, rename="camel"):
    """The part of an owner reference that we read."""

    kind: str
    name: str
    uid: str
    controller: bool | None = None


class Metadata(msgspec.Struct, rename="camel"):
    """The part of an object's metadata that we read; everything else is never decoded."""

    name: Name
    resource_version: Version = "0"
    uid: Uid = ""
    namespace: Name | Literal[""] = ""
    generation: Generation = 0
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    finalizers: list[str] | None = None
    owner_references: list[OwnerReference] | None = None
    deletion_timestamp: str | None = None


class HasMetadata(Protocol):
    """Any partial type of an API object, a `msgspec.Struct`."""

    metadata: Metadata
    __struct_fields__: ClassVar[tuple[str, ...]]


T = TypeVar("T", bound=HasMetadata)


class _ListMetadata(msgspec.Struct, rename="camel"):
    resource_version: Version
    continue_: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _ListMetadata
    items: list[msgspec.Raw]


class _Event(msgspec.Struct):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _Bookmark(msgspec.Struct):
    metadata: _ListMetadata


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Names(msgspec.Struct):
    name: Name
    namespace: Name | Literal[""] = ""


class _OnlyNames(msgspec.Struct):
    metadata: _Names


_A = TypeVar("_A", _Page, _Event, _Bookmark, _Status, _OnlyNames)


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
        self, kube: HubApi, resource: Resource, kind: type[T], *, namespace: str | None = None
    ) -> None:
        self._kube = kube
        self._resource = resource
        self._namespace = namespace
        self._decoder = msgspec.json.Decoder(kind)
        self._version = ""
        self._list_at = math.inf
        self._failures = 0
        self._backoff = FIRST_BACKOFF_SECONDS
        self._heard_at = -math.inf

    @property
    def silent_seconds(self) -> float:
        """How long no list and no watch has succeeded; infinite before the first, 0 while others take what came."""
        return max(0.0, elapsed() - self._heard_at)

    def list_again(self) -> None:
        """Ask for another list soon: something that was yielded may have been lost."""
        self._list_by(_jittered(ASKED_LIST_SECONDS))

    async def run(self, stop: asyncio.Event) -> AsyncIterator[Seen[T] | Removed[T] | Listed]:
        """Yield until `stop` is set. Every failure is logged and tried again with growing pauses."""
        while not stop.is_set():
            is_list = not self._version or elapsed() >= self._list_at
            try:
                async for happening in self._list() if is_list else self._watch():
                    self._heard_at = math.inf  # while it waits to be taken, silence is not the server's
                    yield happening
                    self._heard_at = elapsed()
            except HubError as error:
                await pause(stop, _jittered(self._failed(error, is_list=is_list)))
                self._backoff = min(self._backoff * 2, MAX_BACKOFF_SECONDS)

    def _failed(self, error: HubError, *, is_list: bool) -> float:
        """Decide what is tried next. Returns after how many seconds."""
        if not isinstance(error, Gone):
            log.warning("watch.failed", resource=self._resource.plural, error=str(error))
        asked = (error.retry_after if isinstance(error, ApiUnavailable) else None) or 0.0
        if is_list and self._version:  # the watch does not wait for it
            self._list_by(max(FAILED_LIST_SECONDS, asked))
            return self._backoff
        if isinstance(error, Gone):
            self._version = ""
        elif not is_list:
            self._failures += 1
            if self._failures % MAX_FAILURES == 0:
                self._list_by(0.0)
        return asked or self._backoff

    def _list_by(self, seconds: float) -> None:
        self._list_at = min(self._list_at, elapsed() + seconds)

    def _has_progressed(self) -> None:
        self._failures, self._backoff, self._heard_at = 0, FIRST_BACKOFF_SECONDS, elapsed()

    async def _list(self) -> AsyncIterator[Seen[T] | Listed]:
        self._list_at = elapsed() + _jittered(RELIST_SECONDS)
        keys: set[tuple[str, str]] = set()
        token: str | None = None
        for _ in range(MAX_PAGES):
            page = self._read(
                await self._kube.list_page(self._resource, namespace=self._namespace, token=token), _Page
            )
            self._heard_at = elapsed()
            for raw in page.items:
                item = self._decode(raw)
                if item is not None:
                    keys.add(object_key(item))
                    yield Seen(object=item)
                else:
                    keys.add(self._key(raw))
            version, token = page.metadata.resource_version, page.metadata.continue_
            if not token:
                break
        else:
            raise ApiUnavailable(f"the list of {self._resource.plural} has more than {MAX_PAGES} pages")
        self._version, self._failures = version, 0
        yield Listed(keys=frozenset(keys), resource_version=int(version))

    async def _watch(self) -> AsyncIterator[Seen[T] | Removed[T]]:
        """One watch, from the last version on, which it moves."""
        began = elapsed()
        try:
            async for line in self._kube.watch(
                self._resource, resource_version=self._version, namespace=self._namespace
            ):
                event = self._read(line, _Event)
                if event.type == "ERROR":
                    raise self._watch_error(event.object)
                self._version = self._read(event.object, _Bookmark).metadata.resource_version
                self._has_progressed()
                if event.type == "BOOKMARK":
                    continue
                item = self._decode(event.object)
                if item is not None:
                    yield Removed(object=item) if event.type == "DELETED" else Seen(object=item)
                elif event.type == "DELETED":
                    raise Gone(f"one of the {self._resource.plural} that was removed cannot be read")
        except WatchBroken:
            if elapsed() - began >= LIVED_SECONDS:
                self._backoff = FIRST_BACKOFF_SECONDS  # some proxies end whatever is idle
            raise
        if elapsed() - began < LIVED_SECONDS:
            raise ApiUnavailable(f"the watch of {self._resource.plural} ended as soon as it had begun")
        self._has_progressed()

    def _decode(self, raw: msgspec.Raw) -> T | None:
        """Decode the fields we know. An object that does not fit is logged and left as it was last known."""
        try:
            item = self._decoder.decode(raw)
        except (ValueError, RecursionError) as error:
            problem = str(error)
        else:
            problem = _problem(item)
            if not problem:
                return item
        log.warning("watch.undecodable", resource=self._resource.plural, key=self._key(raw), error=problem)
        return None

    def _key(self, raw: msgspec.Raw) -> tuple[str, str]:
        """The name of an object that cannot be read; without one, the whole answer is nonsense."""
        names = self._read(raw, _OnlyNames).metadata
        return (names.namespace, names.name)

    def _read(self, content: bytes | msgspec.Raw, kind: type[_A]) -> _A:
        """A part of an answer. A proxy may end it in the middle, or answer itself."""
        try:
            try:
                return msgspec.json.decode(content, type=kind)
            except RecursionError:  # one object of others, such as a ManifestWork, must not hide all the rest
                return msgspec.json.decode(shallow_json(bytes(content), 2 * MAX_DEPTH), type=kind)
        except (ValueError, RecursionError) as error:
            raise ApiUnavailable(
                f"the answer about {self._resource.plural} cannot be read: {bytes(content)[:80]!r}: {error}"
            ) from error

    def _watch_error(self, raw: msgspec.Raw) -> HubError:
        """Errors inside of a watch arrive as events of a successful answer."""
        status = self._read(raw, _Status)
        if status.code == 410:
            return Gone(status.message)
        return ApiUnavailable(
            f"the watch of {self._resource.plural} ended with {status.code}: {status.message}"
        )


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - no secret


def object_key(item: HasMetadata) -> tuple[str, str]:
    """(namespace, name); the namespace of a cluster-scoped object is empty."""
    return (item.metadata.namespace, item.metadata.name)


def _problem(item: HasMetadata) -> str:
    """Why an object that was decoded cannot be used all the same; empty if it can."""
    if not item.metadata.uid:
        return "it has no metadata.uid"
    fields = [getattr(item, name) for name in item.__struct_fields__]
    return f"it is nested more than {MAX_DEPTH} levels deep" if is_deeper_than(MAX_DEPTH, fields) else ""

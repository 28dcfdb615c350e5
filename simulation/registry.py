"""A container registry as a value in memory, and a client of it with the methods and errors of `RegistryClient`.

Source of the rules: OCI distribution specification 1.1, and what docker-registry does beyond it; the contract tests
hold both against the real ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from shared.domain.image import ImageReference
from shared.registry.access import ANONYMOUS, Credentials, RegistryAccess
from shared.registry.auth import denied
from shared.registry.client import MANIFEST_BYTES, at_digest
from shared.registry.content import digest_of
from shared.registry.errors import (
    DigestMismatch,
    ImageMissing,
    ImageUnreadable,
    RegistryRejected,
    RegistryUnavailable,
)
from shared.registry.manifest import (
    Descriptor,
    Image,
    Manifest,
    choose_platform,
    is_index,
    media_type_of,
    read_image,
)
from simulation.line import Line, LineBroken
from simulation.module_image import ImageFiles

T = TypeVar("T")

CHUNK_BYTES = 256 * 1024


@dataclass(slots=True, kw_only=True)
class RegistryWeather:
    """How a registry behaves now; the nemesis changes it. All are probabilities of one request.

    Attributes:
        refusals: answered with one of `statuses` instead of being done.
        statuses: 401 and 403 refuse credentials, 404 says that nothing is there, 408, 429 and 5xx that it is busy.
            By default only what says that it passes: services may believe the others, and give up.
        short_answers: a blob or manifest comes with other bytes than it has.
    """

    refusals: float = 0.0
    statuses: tuple[int, ...] = (429, 500, 503)
    short_answers: float = 0.0


@dataclass(slots=True)
class Repository:
    """One repository. Blobs are those that were pushed or mounted here; a registry shows no others."""

    blobs: set[str] = field(default_factory=set)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class RegistryState:
    """All registries of the simulated world. A repository's key is its name with the registry, as in references.

    Attributes:
        weather: how it behaves.
        is_down: nobody can connect.
        required: who alone may do anything; None lets everybody in.
        observe: told of each tag that was set: repository, tag, digest.
    """

    def __init__(self, *, chance: random.Random) -> None:
        self.weather = RegistryWeather()
        self.is_down = False
        self.required: Credentials | None = None
        self.observe: Callable[[str, str, str], None] = lambda *_: None
        self._chance = chance
        self._contents: dict[str, bytes] = {}
        self._repositories: dict[str, Repository] = {}

    # What others do to it

    def push(self, image: str, files: ImageFiles) -> str:
        """Somebody pushes an image by tag. Returns its digest."""
        reference = ImageReference.parse(image)
        for blob in files.blobs:
            self.add_blob(reference, blob)
        return self.put(reference, files.manifest, files.media_type)

    def move_tag(self, image: str, digest: str) -> None:
        """Somebody lets a tag stand for another image of the repository."""
        reference = ImageReference.parse(image)
        self._set_tag(reference, digest)

    def delete_tag(self, image: str) -> None:
        """Somebody deletes a tag; the image stays until garbage is collected."""
        reference = ImageReference.parse(image)
        self.repository(reference).tags.pop(reference.manifest, None)

    def collect_garbage(self) -> None:
        """Drop manifests that no tag leads to, and then blobs that no manifest names."""
        for repository in self._repositories.values():
            kept = set(repository.tags.values())
            for digest in list(kept):
                kept |= set(_named(repository.manifests[digest].content))
            repository.manifests = {
                digest: repository.manifests[digest] for digest in repository.manifests if digest in kept
            }
            named = {name for manifest in repository.manifests.values() for name in _named(manifest.content)}
            repository.blobs &= named
        used = {digest for repository in self._repositories.values() for digest in repository.blobs}
        self._contents = {digest: content for digest, content in self._contents.items() if digest in used}

    def damage(self, digest: str) -> None:
        """A bit of a blob flips on disk."""
        content = self._contents[digest]
        self._contents[digest] = content[:-1] + bytes([content[-1] ^ 1])

    def lose(self, digest: str) -> None:
        """A blob is gone from the disk, though repositories still link to it."""
        del self._contents[digest]

    # What can be seen

    def has_image(self, image: str) -> bool:
        """Whether an image can be pulled: its manifest and all that it names."""
        reference = ImageReference.parse(image)
        manifest = self.find(reference)
        repository = self.repository(reference)
        return manifest is not None and all(
            self.blob(reference, name) is not None or name in repository.manifests
            for name in _named(manifest.content)
        )

    def names(self, registry: str) -> list[str]:
        """Repositories of a registry (host and port)."""
        return [name for name in self._repositories if name.startswith(f"{registry}/")]

    def tags(self, image: str) -> Mapping[str, str]:
        """Digests by tag, of an image's repository."""
        return self.repository(ImageReference.parse(image)).tags

    # Effects of requests, without any weather

    def repository(self, reference: ImageReference) -> Repository:
        """The reference's repository, made if it was never used."""
        return self._repositories.setdefault(reference.name, Repository())

    def find(self, reference: ImageReference) -> Manifest | None:
        """What the reference's digest or tag stands for."""
        repository = self.repository(reference)
        digest = reference.digest or repository.tags.get(reference.manifest, "")
        return repository.manifests.get(digest)

    def blob(self, reference: ImageReference, digest: str) -> bytes | None:
        """A blob of the reference's repository."""
        return self._contents.get(digest) if digest in self.repository(reference).blobs else None

    def add_blob(self, reference: ImageReference, content: bytes) -> str:
        """Store a blob. Returns its digest."""
        digest = digest_of(content)
        self._contents[digest] = content
        self.repository(reference).blobs.add(digest)
        return digest

    def mount(self, digest: str, source: ImageReference, target: ImageReference) -> bool:
        """Take a blob of another repository. Returns whether that had it."""
        if self.blob(source, digest) is None:
            return False
        self.repository(target).blobs.add(digest)
        return True

    def put(self, reference: ImageReference, content: bytes, media_type: str) -> str:
        """Store a manifest, under the reference's tag if it has one. Returns its digest.

        Raises:
            RegistryRejected: it is no JSON, or names what the repository does not have.
        """
        digest, repository = digest_of(content), self.repository(reference)
        try:
            names = list(_named(content))
        except ValueError as error:
            raise RegistryRejected(f"PUT {reference} was answered with 400 (MANIFEST_INVALID).") from error
        for name in names:
            if self.blob(reference, name) is None and name not in repository.manifests:
                raise RegistryRejected(
                    f"PUT {reference} was answered with 400 (MANIFEST_BLOB_UNKNOWN: {name})."
                )
        descriptor = Descriptor(
            media_type=media_type_of(content, media_type), digest=digest, size=len(content)
        )
        repository.manifests[digest] = Manifest(descriptor=descriptor, content=content)
        if reference.tag is not None:
            self._set_tag(reference, digest)
        return digest

    def refuse(self, what: str, access: RegistryAccess) -> bool:
        """Let the weather answer in place of the registry. Returns whether it says 404.

        Raises:
            LineBroken: it is down.
            RegistryDenied, RegistryUnavailable: as `RegistryClient`.
        """
        if self.is_down:
            raise LineBroken("the registry is away")
        status = 0
        if self.required is not None and access.credentials != self.required:
            status = 401
        elif self.weather.refusals and self._chance.random() < self.weather.refusals:
            status = self._chance.choice(self.weather.statuses)
        if status in {401, 403}:
            raise denied(what)
        if status not in {0, 404}:
            raise RegistryUnavailable(f"{what} was answered with {status}.")
        return status == 404

    def shorten(self, content: bytes) -> bytes:
        """What arrives of content, as the weather wants it."""
        short = self.weather.short_answers
        return content[:-1] if short and self._chance.random() < short else content

    def _set_tag(self, reference: ImageReference, digest: str) -> None:
        repository = self.repository(reference)
        assert digest in repository.manifests, f"{reference.name} has no {digest}"
        repository.tags[reference.manifest] = digest
        self.observe(reference.name, reference.manifest, digest)


class SimulatedRegistry:
    """One process's client: `shared.registry.port.ImageRegistry`. Each request that it would make crosses the line."""

    def __init__(self, state: RegistryState, line: Line) -> None:
        self._state = state
        self._line = line

    async def head(self, image: ImageReference, *, access: RegistryAccess = ANONYMOUS) -> Descriptor | None:
        """As `ImageRegistry.head`."""
        found = await self._get(f"HEAD {image}", access, lambda: self._state.find(image))
        return None if found is None else found.descriptor

    async def manifest(self, image: ImageReference, *, access: RegistryAccess = ANONYMOUS) -> Manifest:
        """As `ImageRegistry.manifest`."""
        found = await self._get(f"GET {image}", access, lambda: self._state.find(image))
        if found is None:
            raise ImageMissing(f"The registry has no image {image}. Push it, or correct the name.")
        digest = digest_of(self._state.shorten(found.content))
        if digest != found.descriptor.digest:
            raise DigestMismatch(
                f"The manifest of {image} has the digest {digest} instead of {found.descriptor.digest}."
            )
        return found

    async def image(
        self, image: ImageReference, *, architecture: str = "amd64", access: RegistryAccess = ANONYMOUS
    ) -> Image:
        """As `ImageRegistry.image`."""
        found = await self.manifest(image, access=access)
        if is_index(found):
            chosen = at_digest(image, choose_platform(found, architecture, image))
            found = await self.manifest(chosen, access=access)
        return read_image(found, image)

    async def config(
        self, image: ImageReference, descriptor: Descriptor, *, access: RegistryAccess = ANONYMOUS
    ) -> bytes:
        """As `ImageRegistry.config`."""
        if descriptor.size > MANIFEST_BYTES:
            raise ImageUnreadable(
                f"The configuration of {image} has {descriptor.size} bytes; 4 MiB are read."
            )
        return await self._read(image, descriptor, access)

    async def blob(
        self, image: ImageReference, descriptor: Descriptor, *, access: RegistryAccess = ANONYMOUS
    ) -> AsyncGenerator[bytes]:
        """As `ImageRegistry.blob`."""
        content = await self._read(image, descriptor, access)
        for start in range(0, len(content), CHUNK_BYTES):
            yield content[start : start + CHUNK_BYTES]

    async def blob_exists(
        self, image: ImageReference, digest: str, *, access: RegistryAccess = ANONYMOUS
    ) -> bool:
        """As `ImageRegistry.blob_exists`."""
        return await self._get(f"HEAD {digest}", access, lambda: self._state.blob(image, digest)) is not None

    async def upload_blob(
        self, image: ImageReference, content: bytes | Path, *, access: RegistryAccess = ANONYMOUS
    ) -> str:
        """As `ImageRegistry.upload_blob`."""
        data = content if isinstance(content, bytes) else content.read_bytes()  # noqa: ASYNC240 - small, and no time passes
        digest = digest_of(data)
        if not await self.blob_exists(image, digest, access=access):
            await self._upload(image, data, access)
        return digest

    async def copy_blob(
        self,
        descriptor: Descriptor,
        *,
        source: ImageReference,
        target: ImageReference,
        source_access: RegistryAccess = ANONYMOUS,
        target_access: RegistryAccess = ANONYMOUS,
    ) -> None:
        """As `ImageRegistry.copy_blob`."""
        if await self.blob_exists(target, descriptor.digest, access=target_access):
            return
        if source.registry == target.registry:
            mounted = await self._change(
                f"POST {target}", target_access, lambda: self._state.mount(descriptor.digest, source, target)
            )
            if mounted:
                return
        content = await self._read(source, descriptor, source_access)
        await self._upload(target, content, target_access)

    async def put_manifest(
        self, image: ImageReference, content: bytes, media_type: str, *, access: RegistryAccess = ANONYMOUS
    ) -> str:
        """As `ImageRegistry.put_manifest`."""
        digest = digest_of(content)
        if len(content) > MANIFEST_BYTES:
            raise ImageUnreadable(f"The manifest for {image} has {len(content)} bytes; 4 MiB are allowed.")
        if image.digest not in {None, digest}:
            raise DigestMismatch(f"The manifest for {image} has the digest {digest}.")
        return await self._change(f"PUT {image}", access, lambda: self._state.put(image, content, media_type))

    async def tag(self, image: ImageReference, digest: str, *, access: RegistryAccess = ANONYMOUS) -> None:
        """As `ImageRegistry.tag`."""
        assert image.tag is not None, "only a reference with a tag can be moved"
        found = await self.manifest(at_digest(image, digest), access=access)
        await self.put_manifest(
            image.with_tag(image.tag), found.content, found.descriptor.media_type, access=access
        )

    async def _read(self, image: ImageReference, descriptor: Descriptor, access: RegistryAccess) -> bytes:
        digest = descriptor.digest
        content = await self._get(f"GET {digest}", access, lambda: self._state.blob(image, digest))
        if content is None:
            raise ImageMissing(f"The registry lost {digest}, a part of {image}. Push it again.")
        content = self._state.shorten(content)
        if len(content) != descriptor.size or digest_of(content) != digest:
            raise DigestMismatch(f"{digest} of {image} came with other content or size.")
        return content

    async def _upload(self, image: ImageReference, content: bytes, access: RegistryAccess) -> None:
        """POST, then PUT."""
        await self._change(f"POST {image}", access, lambda: None)
        await self._change(f"PUT {image}", access, lambda: self._state.add_blob(image, content))

    async def _get(self, what: str, access: RegistryAccess, look: Callable[[], T | None]) -> T | None:
        """What `look` sees, None if the registry says 404."""
        async with self._request(what):
            found = None if self._state.refuse(what, access) else look()
        return found  # noqa: RET504 - the answer may get lost while the line is left

    async def _change(self, what: str, access: RegistryAccess, effect: Callable[[], T]) -> T:
        """What `effect` returns. The client does not expect a 404 here."""
        async with self._request(what):
            if self._state.refuse(what, access):
                raise RegistryRejected(f"{what} was answered with 404.")
            result = effect()
        return result  # noqa: RET504 - as above

    @asynccontextmanager
    async def _request(self, what: str) -> AsyncGenerator[None]:
        try:
            async with self._line.crossing(what):
                yield
        except LineBroken as error:
            raise RegistryUnavailable(f"The registry cannot be reached: {error}.") from error


def _named(manifest: bytes) -> Iterator[str]:
    """Digests that a manifest or index names."""
    document: dict[str, Any] = json.loads(manifest)
    parts: Iterable[dict[str, Any]] = [
        *document.get("layers", ()),
        *document.get("manifests", ()),
        *([document["config"]] if "config" in document else ()),
    ]
    return (part["digest"] for part in parts)

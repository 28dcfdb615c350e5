"""A client of the simulated registries, with the methods and errors of `shared.registry.client.RegistryClient`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from shared.domain.image import DEFAULT_TAG, ImageReference
from shared.registry.access import ANONYMOUS, RegistryAccess
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
    read_image,
)
from simulation.line import Line, LineBroken
from simulation.registry_state import RegistryState, RegistryWeather

__all__ = ["RegistryState", "RegistryWeather", "SimulatedRegistry"]

T = TypeVar("T")

CHUNK_BYTES = 256 * 1024


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
        found = await self.manifest(at_digest(image, digest), access=access)
        await self.put_manifest(
            image.with_tag(image.tag or DEFAULT_TAG),
            found.content,
            found.descriptor.media_type,
            access=access,
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

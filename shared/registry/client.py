"""A client of the OCI distribution protocol for any number of registries.

Source of the rules: OCI distribution specification 1.1. All digests are verified here.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Final, Self

from aiohttp import ClientResponse
from yarl import URL

from shared.domain.image import DEFAULT_TAG, ImageReference, InvalidImageReference, parse_digest
from shared.registry.access import ANONYMOUS, RegistryAccess, read_url, registry_url
from shared.registry.auth import read_at_most
from shared.registry.content import digest_of, measure, stream
from shared.registry.errors import (
    DigestMismatch,
    ImageMissing,
    ImageUnreadable,
    RegistryRejected,
    RegistryUnavailable,
)
from shared.registry.manifest import (
    MANIFEST_TYPES,
    Descriptor,
    Image,
    Manifest,
    choose_platform,
    is_index,
    media_type_of,
    read_image,
)
from shared.registry.transport import Body, Transport

MANIFEST_BYTES: Final = 4 * 1024 * 1024
"""Largest manifest or configuration that is read; the specification asks registries to take this much."""

_CHUNK: Final = 256 * 1024  # bytes
_MANIFEST_SECONDS: Final = 60
_PATIENCE_SECONDS: Final = 60
_SLOWEST: Final = (
    16 * 1024
)  # bytes per second; a registry that dribbles would hold a builder or signer for ever
_ACCEPT: Final = {"Accept": ", ".join(MANIFEST_TYPES)}
_MISSING: Final = frozenset({404})


class RegistryClient:
    """Reads, copies and pushes images. An async context manager; one instance per service.

    Every method may raise RegistryUnavailable, RegistryDenied, RegistryRejected and UnsafeAddress
    (`shared.registry.errors`); its own text names the others.
    """

    def __init__(self, *, connections: int = 32) -> None:
        self._transport = Transport(connections=connections)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._transport.__aexit__(*details)

    async def head(self, image: ImageReference, *, access: RegistryAccess = ANONYMOUS) -> Descriptor | None:
        """What the image's tag or digest stands for now, None if the registry does not have it.

        The manifest is fetched only where the registry leaves out its digest.

        Raises:
            DigestMismatch: the registry answers with another digest than the one asked for.
        """
        async with self._read("HEAD", f"manifests/{image.manifest}", image, access) as response:
            if response.status == 404:
                return None
            digest, media_type = _named_digest(response), response.content_type
            size = response.content_length
        if digest is None or size is None or media_type not in MANIFEST_TYPES:
            return (await self.manifest(image, access=access)).descriptor
        if image.digest not in {None, digest}:
            raise DigestMismatch(f"{image}: the registry answers with {digest}.")
        return Descriptor(media_type=media_type, digest=digest, size=size)

    async def manifest(self, image: ImageReference, *, access: RegistryAccess = ANONYMOUS) -> Manifest:
        """The manifest or index that a tag or digest stands for.

        Raises:
            ImageMissing: the registry does not have it.
            ImageUnreadable: it is no manifest, or larger than 4 MiB.
            DigestMismatch: its bytes do not have the digest asked for or the one the registry names.
        """
        async with self._read("GET", f"manifests/{image.manifest}", image, access) as response:
            if response.status == 404:
                raise ImageMissing(f"The registry has no image {image}. Push it, or correct the name.")
            async with asyncio.timeout(_MANIFEST_SECONDS):
                content = await _read_manifest(response, image)
            named, header = _named_digest(response), response.headers.get("Content-Type", "")
        digest = digest_of(content)
        wanted = image.digest or named or digest
        if digest != wanted:
            raise DigestMismatch(f"The manifest of {image} has the digest {digest} instead of {wanted}.")
        descriptor = Descriptor(media_type=media_type_of(content, header), digest=digest, size=len(content))
        return Manifest(descriptor=descriptor, content=content)

    async def image(
        self, image: ImageReference, *, architecture: str = "amd64", access: RegistryAccess = ANONYMOUS
    ) -> Image:
        """The image behind a tag or digest; of an index, the one for Linux on this architecture (GOARCH).

        Raises:
            ImageMissing, DigestMismatch: as `manifest`.
            ImageUnreadable: as `manifest`, or the index has no such platform.
        """
        found = await self.manifest(image, access=access)
        if is_index(found):
            chosen = at_digest(image, choose_platform(found, architecture, image))
            found = await self.manifest(chosen, access=access)
        return read_image(found, image)

    async def config(
        self, image: ImageReference, descriptor: Descriptor, *, access: RegistryAccess = ANONYMOUS
    ) -> bytes:
        """The image's configuration, JSON as it is stored.

        Raises:
            ImageMissing, DigestMismatch: as `blob`.
            ImageUnreadable: it is larger than 4 MiB.
        """
        if descriptor.size > MANIFEST_BYTES:
            raise ImageUnreadable(
                f"The configuration of {image} has {descriptor.size} bytes; 4 MiB are read."
            )
        async with aclosing(self.blob(image, descriptor, access=access)) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def blob(
        self, image: ImageReference, descriptor: Descriptor, *, access: RegistryAccess = ANONYMOUS
    ) -> AsyncGenerator[bytes]:
        """A layer or configuration in chunks; wrap it in `contextlib.aclosing` to close it for certain.

        The chunks may be trusted once the iteration has ended: only then the digest is known.

        Raises:
            ImageMissing: the registry does not have it.
            DigestMismatch: it has another size or digest than the descriptor says.
        """
        digest, size = hashlib.sha256(), 0
        async with self._read("GET", f"blobs/{descriptor.digest}", image, access) as response:
            if response.status == 404:
                raise ImageMissing(
                    f"The registry lost {descriptor.digest}, a part of {image}. Push it again."
                )
            clock = asyncio.get_running_loop()
            deadline = clock.time() + _PATIENCE_SECONDS + descriptor.size / _SLOWEST
            async for chunk in response.content.iter_chunked(_CHUNK):
                if clock.time() > deadline:
                    raise RegistryUnavailable(
                        f"{image.registry} sends {descriptor.digest} slower than {_SLOWEST} bytes per second."
                    )
                size += len(chunk)
                if size > descriptor.size:
                    break
                digest.update(chunk)
                yield chunk
        if size != descriptor.size or f"sha256:{digest.hexdigest()}" != descriptor.digest:
            raise DigestMismatch(f"{descriptor.digest} of {image} came with other content or size.")

    async def blob_exists(
        self, image: ImageReference, digest: str, *, access: RegistryAccess = ANONYMOUS
    ) -> bool:
        """Whether the image's repository has a blob."""
        async with self._read("HEAD", f"blobs/{digest}", image, access) as response:
            return response.status != 404

    async def upload_blob(
        self, image: ImageReference, content: bytes | Path, *, access: RegistryAccess = ANONYMOUS
    ) -> str:
        """The digest of bytes or of a file, which the image's repository has afterwards."""
        measured = await measure(content)
        if not await self.blob_exists(image, measured.digest, access=access):
            blob = Descriptor(media_type="", digest=measured.digest, size=measured.size)
            await self._upload(image, blob, lambda: stream(content), access=access)
        return measured.digest

    async def copy_blob(
        self,
        descriptor: Descriptor,
        *,
        source: ImageReference,
        target: ImageReference,
        source_access: RegistryAccess = ANONYMOUS,
        target_access: RegistryAccess = ANONYMOUS,
    ) -> None:
        """See that the target's repository has a blob of the source's; a registry is asked to mount its own.

        Raises:
            ImageMissing, DigestMismatch: as `blob`, of the source.
        """
        if await self.blob_exists(target, descriptor.digest, access=target_access):
            return
        same = registry_url(source, source_access) == registry_url(target, target_access)
        await self._upload(
            target,
            descriptor,
            lambda: self.blob(source, descriptor, access=source_access),
            access=target_access,
            mount_from=source if same else None,
        )

    async def put_manifest(
        self,
        image: ImageReference,
        content: bytes,
        media_type: str,
        *,
        access: RegistryAccess = ANONYMOUS,
    ) -> str:
        """Store a manifest under the reference's tag, or by its digest if the reference has no tag.

        Returns:
            The digest of the content.

        Raises:
            ImageUnreadable: it is larger than 4 MiB.
            DigestMismatch: the reference or the registry names another digest.
        """
        digest = digest_of(content)
        if len(content) > MANIFEST_BYTES:
            raise ImageUnreadable(f"The manifest for {image} has {len(content)} bytes; 4 MiB are allowed.")
        if image.digest not in {None, digest}:
            raise DigestMismatch(f"The manifest for {image} has the digest {digest}.")
        async with self._transport.request(
            "PUT",
            f"{image.repository}/manifests/{image.tag or digest}",
            image=image,
            access=access,
            scope=_push(image),
            headers={"Content-Type": media_type, "Content-Length": str(len(content))},
            body=lambda: stream(content),
        ) as response:
            if _named_digest(response) not in {None, digest}:
                raise DigestMismatch(f"The registry stored another manifest for {image} than {digest}.")
        return digest

    async def tag(self, image: ImageReference, digest: str, *, access: RegistryAccess = ANONYMOUS) -> None:
        """Let the reference's tag (`latest` if it has none) stand for a manifest that the same repository has.

        Raises:
            ImageMissing: the repository has no manifest of this digest.
        """
        found = await self.manifest(at_digest(image, digest), access=access)
        tagged = image.with_tag(image.tag or DEFAULT_TAG)
        await self.put_manifest(tagged, found.content, found.descriptor.media_type, access=access)

    def _read(
        self, method: str, path: str, image: ImageReference, access: RegistryAccess
    ) -> AbstractAsyncContextManager[ClientResponse]:
        """GET or HEAD below the image's repository, with 404 left to the caller."""
        return self._transport.request(
            method,
            f"{image.repository}/{path}",
            image=image,
            access=access,
            scope=_pull(image),
            headers=_ACCEPT if path.startswith("manifests/") else None,
            allowed=_MISSING,
        )

    async def _upload(
        self,
        image: ImageReference,
        blob: Descriptor,
        body: Body,
        *,
        access: RegistryAccess,
        mount_from: ImageReference | None = None,
    ) -> None:
        """POST, then PUT in one piece; the registry may take the blob from `mount_from` instead."""
        path, scope = f"{image.repository}/blobs/uploads/", _push(image)
        if mount_from is not None:
            path += f"?mount={blob.digest}&from={mount_from.repository}"
            scope += f" {_pull(mount_from)}" if mount_from.repository != image.repository else ""
        async with self._transport.request(
            "POST", path, image=image, access=access, scope=scope, headers={"Content-Length": "0"}
        ) as response:
            if response.status == 201 and mount_from is not None:
                return
            location = response.headers.get("Location", "")
            if response.status != 202 or not location:
                message = (
                    f"{image.registry} answers {response.status} to the start of an upload to {image.name}."
                )
                raise RegistryRejected(message)
            upload = str(response.url.join(read_url(location, response.url, encoded=True)))
        # Appended as text: a registry may sign the query, which must come back byte for byte.
        url = URL(f"{upload}{'&' if '?' in upload else '?'}digest={blob.digest}", encoded=True)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        async with self._transport.request(
            "PUT", url, image=image, access=access, scope=_push(image), headers=headers, body=body
        ) as response:
            if response.status != 201:
                message = f"{image.registry} answers {response.status} to the upload of {blob.digest}."
                raise RegistryRejected(message)


def at_digest(image: ImageReference, digest: str) -> ImageReference:
    """The reference to a manifest of the same repository by its digest alone."""
    return ImageReference.parse(f"{image.name}@{digest}")


def _pull(image: ImageReference) -> str:
    return f"repository:{image.repository}:pull"


def _push(image: ImageReference) -> str:
    return f"repository:{image.repository}:pull,push"


def _named_digest(response: ClientResponse) -> str | None:
    """The digest in the registry's header, None if there is none of SHA-256."""
    try:
        return parse_digest(response.headers.get("Docker-Content-Digest", ""))
    except InvalidImageReference:
        return None


async def _read_manifest(response: ClientResponse, image: ImageReference) -> bytes:
    try:
        return await read_at_most(response, MANIFEST_BYTES)
    except RegistryRejected as error:
        raise ImageUnreadable(f"The manifest of {image} is larger than 4 MiB.") from error

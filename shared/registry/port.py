"""What builder and signer ask of a registry: images are looked up, read, copied, pushed, and tags moved.

`shared.registry.client` is the client of real registries; the simulation has another one, which passes the same
contract tests.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Protocol

from shared.domain.image import ImageReference
from shared.registry.access import ANONYMOUS, RegistryAccess
from shared.registry.manifest import Descriptor, Image, Manifest


class ImageRegistry(Protocol):
    """Any number of registries.

    Every method may raise RegistryUnavailable, RegistryDenied, RegistryRejected and UnsafeAddress
    (`shared.registry.errors`); its own text names the others.
    """

    async def head(self, image: ImageReference, *, access: RegistryAccess = ANONYMOUS) -> Descriptor | None:
        """What the image's tag or digest stands for now, None if the registry does not have it.

        Raises:
            DigestMismatch: the registry answers with another digest than the one asked for.
        """

    async def manifest(self, image: ImageReference, *, access: RegistryAccess = ANONYMOUS) -> Manifest:
        """The manifest or index that a tag or digest stands for.

        Raises:
            ImageMissing: the registry does not have it.
            ImageUnreadable: it is no manifest, or larger than 4 MiB.
            DigestMismatch: its bytes do not have the digest asked for or the one the registry names.
        """

    async def image(
        self, image: ImageReference, *, architecture: str = "amd64", access: RegistryAccess = ANONYMOUS
    ) -> Image:
        """The image behind a tag or digest; of an index, the one for Linux on this architecture (GOARCH).

        Raises:
            ImageMissing, DigestMismatch: as `manifest`.
            ImageUnreadable: as `manifest`, or the index has no such platform.
        """

    async def config(
        self, image: ImageReference, descriptor: Descriptor, *, access: RegistryAccess = ANONYMOUS
    ) -> bytes:
        """The image's configuration, JSON as it is stored.

        Raises:
            ImageMissing, DigestMismatch: as `blob`.
            ImageUnreadable: it is larger than 4 MiB.
        """

    def blob(
        self, image: ImageReference, descriptor: Descriptor, *, access: RegistryAccess = ANONYMOUS
    ) -> AsyncGenerator[bytes]:
        """A layer or configuration in chunks; wrap it in `contextlib.aclosing` to close it for certain.

        The chunks may be trusted once the iteration has ended: only then the digest is known.

        Raises:
            ImageMissing: the registry does not have it.
            DigestMismatch: it has another size or digest than the descriptor says.
        """

    async def blob_exists(
        self, image: ImageReference, digest: str, *, access: RegistryAccess = ANONYMOUS
    ) -> bool:
        """Whether the image's repository has a blob."""

    async def upload_blob(
        self, image: ImageReference, content: bytes | Path, *, access: RegistryAccess = ANONYMOUS
    ) -> str:
        """The digest of bytes or of a file, which the image's repository has afterwards."""

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

    async def put_manifest(
        self, image: ImageReference, content: bytes, media_type: str, *, access: RegistryAccess = ANONYMOUS
    ) -> str:
        """Store a manifest under the reference's tag, or by its digest if the reference has no tag.

        Returns:
            The digest of the content.

        Raises:
            ImageUnreadable: it is larger than 4 MiB.
            DigestMismatch: the reference or the registry names another digest.
        """

    async def tag(self, image: ImageReference, digest: str, *, access: RegistryAccess = ANONYMOUS) -> None:
        """Let the reference's tag (`latest` if it has none) stand for a manifest that the same repository has.

        Raises:
            ImageMissing: the repository has no manifest of this digest.
        """

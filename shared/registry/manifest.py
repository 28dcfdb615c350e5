"""Descriptors, manifests and indexes of the OCI image specification and of Docker's schema 2. Pure."""

from dataclasses import dataclass
from typing import Final

import msgspec

from shared.domain.image import ImageReference, InvalidImageReference, parse_digest
from shared.registry.errors import ImageUnreadable

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES: Final = (OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_INDEX)
"""Media types the hub asks for, best first."""

_SHOWN: Final = 20  # platforms that a message names


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a piece of content is. `digest` is `sha256:` and 64 hexadecimal digits, `size` is in bytes."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or index as it is stored; its bytes have the descriptor's digest."""

    descriptor: Descriptor
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The manifest of one platform's image with what it names; layers from the lowest to the highest."""

    manifest: Manifest
    config: Descriptor
    layers: tuple[Descriptor, ...]


class _Platform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: str
    size: int
    platform: _Platform = _Platform()


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    media_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] = []
    manifests: list[_Descriptor] = []


def media_type_of(content: bytes, header: str) -> str:
    """Media type of a manifest: the server's header if that is one of the four, else what it says itself.

    Raises:
        ImageUnreadable: the content is no manifest.
    """
    named = header.partition(";")[0].strip().lower()
    return named if named in MANIFEST_TYPES else _decode(content).media_type


def is_index(manifest: Manifest) -> bool:
    """Whether it is an image index or manifest list, which name one manifest for each platform."""
    return manifest.descriptor.media_type in {OCI_INDEX, DOCKER_INDEX}


def choose_platform(index: Manifest, architecture: str, reference: ImageReference) -> str:
    """Digest of the index's first Linux image for an architecture (GOARCH: `amd64`, `arm64`, …).

    Raises:
        ImageUnreadable: it has none; the message lists what it has.
    """
    entries = _decode(index.content).manifests
    for entry in entries:
        if (entry.platform.os, entry.platform.architecture) == ("linux", architecture):
            return _checked(entry).digest
    names = (f"{entry.platform.os}/{entry.platform.architecture}"[:40] for entry in entries)
    platforms = list(dict.fromkeys(names))
    more = f" and {len(platforms) - _SHOWN} more" if len(platforms) > _SHOWN else ""
    offered = (", ".join(platforms[:_SHOWN]) or "nothing") + more
    raise ImageUnreadable(f"{reference} has no image for linux/{architecture}; it offers {offered}.")


def read_image(manifest: Manifest, reference: ImageReference) -> Image:
    """The configuration and layers that an image manifest names.

    Raises:
        ImageUnreadable: it is no image manifest, or a digest or size is impossible.
    """
    document = _decode(manifest.content)
    if manifest.descriptor.media_type not in {OCI_MANIFEST, DOCKER_MANIFEST} or document.config is None:
        raise ImageUnreadable(
            f"{reference} is no container image but {manifest.descriptor.media_type or 'of unknown type'}. "
            "Push it as an OCI image or with Docker's schema 2."
        )
    return Image(
        manifest=manifest,
        config=_checked(document.config),
        layers=tuple(_checked(layer) for layer in document.layers),
    )


def _decode(content: bytes) -> _Document:
    try:
        return msgspec.json.decode(content, type=_Document)
    except (ValueError, RecursionError) as error:
        raise ImageUnreadable(f"The registry's answer is no image manifest: {error}.") from error


def _checked(raw: _Descriptor) -> Descriptor:
    try:
        digest = parse_digest(raw.digest)
    except InvalidImageReference as error:
        raise ImageUnreadable(f"A manifest names content by an unusable digest: {error}.") from error
    if raw.size < 0:
        raise ImageUnreadable(f"A manifest says that {digest} has {raw.size} bytes.")
    return Descriptor(media_type=raw.media_type, digest=digest, size=raw.size)

"""Signing the kernel modules inside an image through the registry alone; nothing of the image is run."""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from services.signer.compression import pack_module, unpack_module
from services.signer.layers import Layer, Limits, UnpackedImage, unpack_image, write_layer
from services.signer.module_signature import ModuleMalformed, is_signed_by, sign_module
from services.signer.tree import Effort, File, find_files, find_modules
from shared.domain.canonical import MAX_DEPTH, is_deeper_than
from shared.domain.errors import PermanentError
from shared.domain.image import ImageReference
from shared.registry.access import ANONYMOUS, RegistryAccess
from shared.registry.errors import ImageUnreadable
from shared.registry.manifest import OCI_MANIFEST, Image
from shared.registry.port import ImageRegistry

DEFAULT_LIMITS: Final = Limits()
"""What an image may take unless the service's settings say otherwise."""

_OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_MODULES_SHOWN: Final = 20


class FileToSignMissing(PermanentError):
    """A path or pattern in `filesToSign` means no file of the image."""

    reason = "FileToSignMissing"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedFile:
    """A file that was to be signed: its real path in the image, and whether it was signed before."""

    path: str
    already_signed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedImage:
    """The result of signing: the digest of the image manifest in the target's repository, and the files."""

    digest: str
    files: tuple[SignedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFile:
    """A file taken out of an image: its real path there, and the path of the copy."""

    path: str
    copy: Path


async def sign_image(
    client: ImageRegistry,
    *,
    source: ImageReference,
    target: ImageReference,
    patterns: Sequence[str],
    key: RSAPrivateKey,
    certificate: x509.Certificate,
    labels: Mapping[str, str],
    architecture: str = "amd64",
    source_access: RegistryAccess = ANONYMOUS,
    target_access: RegistryAccess = ANONYMOUS,
    limits: Limits = DEFAULT_LIMITS,
) -> SignedImage:
    """Sign the listed modules of an image and push the result by digest; no tag is touched.

    Signed files go into one layer on top. Where all are signed already and the labels are there, the image is
    left as it is. Equal input gives an equal digest, so a repetition after a crash changes nothing.

    Args:
        client: for both registries.
        source: the unsigned image; give its digest, or the tag's image of this moment is taken.
        target: whose repository gets the signed image; its tag is ignored.
        patterns: absolute paths or shell patterns (`filesToSign`); each must mean at least one file.
        key: signing key of the certificate.
        certificate: certificate that the kernels trust.
        labels: labels that the signed image has beside its own.
        architecture: which image of an index is signed (GOARCH).
        source_access: how to reach the source's registry.
        target_access: how to reach the target's registry.
        limits: size of the image.

    Raises:
        FileToSignMissing: a pattern means nothing.
        ModuleMalformed: a listed file is no kernel module.
        ImageMissing, ImageUnreadable, DigestMismatch, …: as `RegistryClient` and `unpack_image`.
    """
    route = _Route(
        client=client, source=source, target=target, source_access=source_access, target_access=target_access
    )
    image = await client.image(source, architecture=architecture, access=source_access)
    config = _json_object(await client.config(source, image.config, access=source_access), source)
    with tempfile.TemporaryDirectory(prefix="kmmhub-sign-") as name:
        unpacked = await unpack_image(client, source, image, Path(name), access=source_access, limits=limits)
        _check_config(config, unpacked, source)
        signed, files = await asyncio.to_thread(_sign_files, unpacked, patterns, key, certificate, source)
        layer = await asyncio.to_thread(write_layer, unpacked.root, signed, Path(name)) if signed else None
        added = await route.push_layer(layer, image) if layer else None
    if layer:
        _append_layer(config, layer)
    relabelled = _add_labels(config, labels)
    digest = await route.push_image(image, config if layer or relabelled else None, added)
    return SignedImage(digest=digest, files=files)


async def verify_image(
    client: ImageRegistry,
    reference: ImageReference,
    patterns: Sequence[str],
    certificate: x509.Certificate,
    *,
    architecture: str = "amd64",
    access: RegistryAccess = ANONYMOUS,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[str, ...]:
    """The listed files, by real path, that do not carry a valid signature of the certificate; empty if all do.

    Raises:
        FileToSignMissing, ImageMissing, ImageUnreadable, …: as `sign_image`.
    """
    image = await client.image(reference, architecture=architecture, access=access)
    with tempfile.TemporaryDirectory(prefix="kmmhub-verify-") as name:
        unpacked = await unpack_image(client, reference, image, Path(name), access=access, limits=limits)
        return await asyncio.to_thread(_unsigned_files, unpacked, patterns, certificate, reference)


async def read_files(
    client: ImageRegistry,
    reference: ImageReference,
    patterns: Sequence[str],
    destination: Path,
    *,
    architecture: str = "amd64",
    access: RegistryAccess = ANONYMOUS,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[ReadFile, ...]:
    """Copy the files that the patterns mean out of an image, below `destination` under their real paths.

    Raises:
        FileToSignMissing, ImageMissing, ImageUnreadable, …: as `sign_image`.
    """
    image = await client.image(reference, architecture=architecture, access=access)
    with tempfile.TemporaryDirectory(prefix="kmmhub-read-") as name:
        unpacked = await unpack_image(client, reference, image, Path(name), access=access, limits=limits)
        return await asyncio.to_thread(_copy_files, unpacked, patterns, destination, reference)


class _RootFs(msgspec.Struct):
    diff_ids: list[str]


class _Settings(msgspec.Struct):
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _Config(msgspec.Struct):
    """The parts of an image configuration (OCI image specification) that signing reads or changes."""

    rootfs: _RootFs
    config: _Settings | None = None
    history: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Route:
    """From where to where an image is signed."""

    client: ImageRegistry
    source: ImageReference
    target: ImageReference
    source_access: RegistryAccess
    target_access: RegistryAccess

    async def push_layer(self, layer: Layer, image: Image) -> dict[str, Any]:
        """Push a new layer; its descriptor, of the same family of media types as the image."""
        digest = await self.client.upload_blob(self.target, layer.packed, access=self.target_access)
        media_type = _OCI_LAYER if image.manifest.descriptor.media_type == OCI_MANIFEST else _DOCKER_LAYER
        return {"mediaType": media_type, "size": layer.packed.stat().st_size, "digest": digest}

    async def push_image(
        self, image: Image, config: dict[str, Any] | None, added: dict[str, Any] | None
    ) -> str:
        """Push the manifest by digest, after all that it names; without a new configuration, the source's own."""
        content = image.manifest.content
        for descriptor in (*image.layers, *(() if config else (image.config,))):
            await self.client.copy_blob(
                descriptor,
                source=self.source,
                target=self.target,
                source_access=self.source_access,
                target_access=self.target_access,
            )
        if config:
            document, data = _json_object(content, self.source), msgspec.json.encode(config)
            digest = await self.client.upload_blob(self.target, data, access=self.target_access)
            document["config"] |= {"size": len(data), "digest": digest}
            document["layers"] += [added] if added else []
            content = msgspec.json.encode(document)
        bare = ImageReference.parse(self.target.name)
        media_type = image.manifest.descriptor.media_type
        return await self.client.put_manifest(bare, content, media_type, access=self.target_access)


def _sign_files(
    unpacked: UnpackedImage,
    patterns: Sequence[str],
    key: RSAPrivateKey,
    certificate: x509.Certificate,
    reference: ImageReference,
) -> tuple[dict[str, tuple[File, bytes]], tuple[SignedFile, ...]]:
    """The new content of the files that need a signature, and all listed files."""
    signed: dict[str, tuple[File, bytes]] = {}
    listed = []
    for path, file in _listed_files(unpacked, patterns, reference).items():
        module = _read_module(unpacked, path, file)
        already_signed = is_signed_by(module, certificate)
        listed.append(SignedFile(path=path, already_signed=already_signed))
        if not already_signed:
            try:
                signed[path] = (file, pack_module(path, sign_module(module, key, certificate)))
            except ModuleMalformed as error:
                raise ModuleMalformed(f"{path} in {reference}: {error}") from error
    return signed, tuple(listed)


def _unsigned_files(
    unpacked: UnpackedImage, patterns: Sequence[str], certificate: x509.Certificate, reference: ImageReference
) -> tuple[str, ...]:
    return tuple(
        path
        for path, file in _listed_files(unpacked, patterns, reference).items()
        if not is_signed_by(_read_module(unpacked, path, file), certificate)
    )


def _copy_files(
    unpacked: UnpackedImage, patterns: Sequence[str], destination: Path, reference: ImageReference
) -> tuple[ReadFile, ...]:
    copies = []
    for path, file in _listed_files(unpacked, patterns, reference).items():
        copy = destination / path.removeprefix("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(unpacked.read(path, file))
        copies.append(ReadFile(path=path, copy=copy))
    return tuple(copies)


def _read_module(unpacked: UnpackedImage, path: str, file: File) -> bytes:
    return unpack_module(path, unpacked.read(path, file), limit=unpacked.limits.file_bytes)


def _listed_files(
    unpacked: UnpackedImage, patterns: Sequence[str], reference: ImageReference
) -> dict[str, File]:
    listed: dict[str, File] = {}
    effort = Effort()
    for pattern in patterns:
        found = find_files(unpacked.root, pattern, effort)
        if not found:
            modules = find_modules(unpacked.root)
            shown = ", ".join(modules[:_MODULES_SHOWN]) or "no kernel modules at all"
            more = f" and {len(modules) - _MODULES_SHOWN} more" if len(modules) > _MODULES_SHOWN else ""
            raise FileToSignMissing(
                f"filesToSign: {pattern!r} means no file of {reference}. The image has {shown}{more}."
            )
        listed |= found
    return dict(sorted(listed.items()))


def _json_object(content: bytes, reference: ImageReference) -> dict[str, Any]:
    """A JSON object with everything in it, to be changed in a few places."""
    try:
        document = msgspec.json.decode(content, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise ImageUnreadable(f"The configuration of {reference} is no JSON object: {error}.") from error
    if is_deeper_than(MAX_DEPTH, document):
        raise ImageUnreadable(f"The configuration of {reference} is nested too deep. Build it anew.")
    return document


def _check_config(config: dict[str, Any], unpacked: UnpackedImage, reference: ImageReference) -> None:
    """Nothing, if the configuration has the form that is relied on and names the layers that came."""
    try:
        diff_ids = msgspec.convert(config, _Config).rootfs.diff_ids
    except msgspec.ValidationError as error:
        raise ImageUnreadable(f"{reference} has no configuration of a container image: {error}.") from error
    if diff_ids != list(unpacked.diff_ids):
        raise ImageUnreadable(
            f"The layers of {reference} are not those that its configuration names (rootfs.diff_ids). Push it again."
        )


def _append_layer(config: dict[str, Any], layer: Layer) -> None:
    config["rootfs"]["diff_ids"].append(layer.diff_id)
    if history := config.get("history"):  # where there is none, one entry would not match the layers
        entry = {"created_by": "kmm-hub: kernel modules signed"}
        # The time of the source, not of now: equal input gives an equal digest.
        created = {"created": config["created"]} if "created" in config else {}
        history.append(created | entry)


def _add_labels(config: dict[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether the configuration was changed: it lacked one of the labels."""
    inner = config.get("config") or {}
    old = inner.get("Labels") or {}
    new = {**old, **labels}
    if new == old:
        return False
    config["config"] = {**inner, "Labels": new}
    return True

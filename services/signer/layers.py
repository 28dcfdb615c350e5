"""The layers of an image as files on disk: fetched, listed, read, and one written with what was signed."""

import asyncio
import gzip
import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import zstandard

from services.signer.archive import XATTR, read_entries
from services.signer.tree import Directory, Effort, File, apply_layer, directory_at
from shared.domain.image import ImageReference
from shared.registry.access import RegistryAccess
from shared.registry.errors import ImageUnreadable
from shared.registry.manifest import Image
from shared.registry.port import ImageRegistry

_CHUNK: Final = 1024 * 1024
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")  # a frame, a skippable frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an image may take at most; a larger one is refused before it fills the disk or the memory.

    Attributes:
        packed_bytes: all layers as the registry stores them.
        unpacked_bytes: all layers unpacked; this much disk is needed.
        file_bytes: one file to sign, unpacked; this much memory is needed a few times over.
        entries: files, directories and whiteouts in all layers; each takes some 1.5 kB of memory.
    """

    packed_bytes: int = 4 * 1024**3
    unpacked_bytes: int = 12 * 1024**3
    file_bytes: int = 256 * 1024**2
    entries: int = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedImage:
    """An image's layers as tar archives on disk and the tree of files they make.

    Attributes:
        layers: the archives, lowest first.
        diff_ids: their digests, as the image's configuration must name them.
        root: the tree.
        limits: what was allowed.
    """

    layers: tuple[Path, ...]
    diff_ids: tuple[str, ...]
    root: Directory
    limits: Limits

    def read(self, path: str, file: File) -> bytes:
        """The content of a file of the tree.

        Raises:
            ImageUnreadable: it is larger than the limit, or its layer is damaged.
        """
        if file.info.size > self.limits.file_bytes:
            raise ImageUnreadable(
                f"{path} has {file.info.size} bytes; up to {self.limits.file_bytes} are signed."
            )
        try:
            with tarfile.open(self.layers[file.layer], "r:") as archive:
                content = archive.extractfile(file.info)
                assert content is not None, "a regular file"
                return content.read()
        except tarfile.TarError as error:
            raise ImageUnreadable(
                f"{path} is damaged in its layer: {error}. Build the image anew."
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A new layer: the packed archive, and the digest of the archive before packing."""

    packed: Path
    diff_id: str


async def unpack_image(
    client: ImageRegistry,
    reference: ImageReference,
    image: Image,
    directory: Path,
    *,
    access: RegistryAccess,
    limits: Limits,
) -> UnpackedImage:
    """Fetch and unpack the layers of an image into a directory, and read what files they make.

    Raises:
        ImageUnreadable: a layer is damaged, of an unknown kind, or larger than the limits.
        ImageMissing, DigestMismatch, …: as `RegistryClient.blob`.
    """
    if (packed := sum(layer.size for layer in image.layers)) > limits.packed_bytes:
        raise ImageUnreadable(f"{reference} has {packed} bytes; up to {limits.packed_bytes} are read.")
    room, paths, diff_ids = limits.unpacked_bytes, [], []
    for index, layer in enumerate(image.layers):
        fetched, path = directory / f"{index}.packed", directory / f"{index}.tar"
        with fetched.open("wb") as file:
            async with aclosing(client.blob(reference, layer, access=access)) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
        size, diff_id = await asyncio.to_thread(_unpack, fetched, path, room)
        fetched.unlink()
        room -= size
        paths.append(path)
        diff_ids.append(diff_id)
    root = await asyncio.to_thread(read_tree, paths, limits.entries)
    return UnpackedImage(layers=tuple(paths), diff_ids=tuple(diff_ids), root=root, limits=limits)


def write_layer(root: Directory, files: Mapping[str, tuple[File, bytes]], directory: Path) -> Layer:
    """Write a layer that replaces files of the tree. Equal input gives equal bytes.

    The files and the directories above them keep owner, mode, times and extended attributes.

    Args:
        root: the tree.
        files: by real path, the file in the tree and its new content.
        directory: where the archive is written.
    """
    above = {
        tuple(parts[:depth])
        for path in files
        for parts in [path.split("/")[1:]]
        for depth in range(1, len(parts))
    }
    plain, packed = directory / "signed.tar", directory / "signed.tar.gz"
    with tarfile.open(plain, "w", format=tarfile.PAX_FORMAT) as archive:
        for parts in sorted(above):
            entry = _entry("/".join(parts), tarfile.DIRTYPE, directory_at(root, parts).info)
            archive.addfile(entry)
        for path, (file, content) in sorted(files.items()):
            entry = _entry(path.removeprefix("/"), tarfile.REGTYPE, file.info)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with (
        plain.open("rb") as source,
        packed.open("wb") as target,
        gzip.GzipFile("", "wb", fileobj=target, mtime=0) as file_,
    ):
        diff_id = f"sha256:{hashlib.file_digest(source, 'sha256').hexdigest()}"
        source.seek(0)
        shutil.copyfileobj(source, file_, _CHUNK)
    return Layer(packed=packed, diff_id=diff_id)


def _entry(name: str, kind: bytes, like: tarfile.TarInfo | None) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = kind, 0o755
    if like is not None:
        entry.mode, entry.uid, entry.gid, entry.mtime = like.mode, like.uid, like.gid, like.mtime
        kept = {key: value for key, value in like.pax_headers.items() if key.startswith(XATTR)}
        entry.pax_headers = dict(sorted(kept.items()))
    return entry


def _unpack(packed: Path, path: Path, room: int) -> tuple[int, str]:
    """Write the tar archive in a layer to `path`: its size in bytes and its digest."""
    digest, size = hashlib.sha256(), 0
    try:
        with packed.open("rb") as raw, path.open("wb") as target, _decompressed(raw) as source:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > room:
                    raise ImageUnreadable(
                        "The image's layers unpack to more bytes than the hub reads. Make it smaller."
                    )
                digest.update(chunk)
                target.write(chunk)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's failure, not the layer's
        raise ImageUnreadable(f"A layer of the image cannot be unpacked: {error}. Build it anew.") from error
    return size, f"sha256:{digest.hexdigest()}"


def _decompressed(raw: IO[bytes]) -> IO[bytes] | gzip.GzipFile:
    """The layer's bytes unpacked; the media type is not asked, as engines do not ask it either."""
    start = raw.read(4)
    raw.seek(0)
    if start.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw)
    if start.startswith(_ZSTD):
        return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
    return raw


def read_tree(layers: Sequence[Path], limit: int) -> Directory:
    """The tree that tar archives make, lowest first, of at most `limit` entries together.

    Raises:
        ImageUnreadable: one is no tar archive, is damaged, or made to keep its reader busy.
    """
    root, room, effort = Directory(), limit, Effort(directories=limit)
    for index, path in enumerate(layers):
        entries = read_entries(path, room)
        room -= len(entries)
        apply_layer(root, index, entries, effort)
    return root

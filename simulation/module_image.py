"""Small images with kernel modules in them, good enough for the signer. Equal input gives equal bytes."""

from __future__ import annotations

import functools
import gzip
import io
import json
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.registry.content import digest_of
from shared.registry.manifest import OCI_MANIFEST

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_ELF = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_RELOCATABLE, _X86_64, _PROGBITS, _STRTAB, _ALLOC = 1, 62, 1, 3, 2
_NAMES = b"\0.modinfo\0.shstrtab\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """An image that can be pushed: the bytes of its manifest and of all blobs that it names."""

    manifest: bytes
    media_type: str
    blobs: tuple[bytes, ...]


def kernel_module(name: str, kernel: str) -> bytes:
    """An x86-64 relocatable (ELF-64 object file format) with nothing but the `.modinfo` that `modinfo` reads."""
    facts = ("license=GPL", f"name={name}", f"vermagic={kernel} SMP preempt mod_unload modversions ")
    modinfo = b"".join(fact.encode() + b"\0" for fact in facts)
    modinfo += bytes(-len(modinfo) % 8)
    names = _NAMES + bytes(-len(_NAMES) % 8)
    sections = _ELF.size + len(modinfo) + len(names)
    header = _ELF.pack(
        *(b"\x7fELF", 2, 1, 1, 0, 0, _RELOCATABLE, _X86_64, 1),
        *(0, 0, sections, 0, _ELF.size, 0, 0, _SECTION.size, 3, 2),
    )
    table = [
        bytes(_SECTION.size),
        _section(b".modinfo", _PROGBITS, _ALLOC, _ELF.size, len(modinfo)),
        _section(b".shstrtab", _STRTAB, 0, _ELF.size + len(modinfo), len(_NAMES)),
    ]
    return header + modinfo + names + b"".join(table)


def module_image(
    paths: Sequence[str] = ("/opt/hello.ko",),
    *,
    kernel: str = "6.1.0-13-amd64",
    labels: Mapping[str, str] | None = None,
    created: str = "2026-01-01T00:00:00Z",
) -> ImageFiles:
    """An image of one layer with a kernel module at each path.

    Args:
        paths: absolute paths in the image.
        kernel: the modules' vermagic.
        labels: of the configuration.
        created: when it was built; another text makes another digest, as with real builds.
    """
    layer, diff_id = _layer(tuple(paths), kernel)
    config = _json(
        {
            "created": created,
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": dict(labels or {})},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "created_by": "simulated build"}],
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": _LAYER, "digest": digest_of(layer), "size": len(layer)}],
    }
    return ImageFiles(manifest=_json(manifest), media_type=OCI_MANIFEST, blobs=(layer, config))


def _section(name: bytes, kind: int, flags: int, offset: int, size: int) -> bytes:
    return _SECTION.pack(_NAMES.index(name), kind, flags, 0, offset, size, 0, 0, 1, 0)


@functools.lru_cache(maxsize=1024)
def _layer(paths: tuple[str, ...], kernel: str) -> tuple[bytes, str]:
    """A packed layer with modules, and the digest of the archive in it."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for path in paths:
            content = kernel_module(path.rpartition("/")[2].partition(".")[0], kernel)
            entry = tarfile.TarInfo(path.removeprefix("/"))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0), digest_of(plain.getvalue())


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()

"""Looks into images the way a suspicious person would, without the services' code."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import zstandard

from shared.domain.image import ImageReference
from simulation.registry import RegistryState

SIGNATURE_MAGIC = b"~Module signature appended~\n"
"""Ends every signed module (Linux, Documentation/admin-guide/module-signing.rst)."""


def digest_of(registry: RegistryState, image: str) -> str | None:
    """What a reference stands for now."""
    manifest = registry.find(ImageReference.parse(image))
    return None if manifest is None else manifest.descriptor.digest


def is_signed(registry: RegistryState, image: str) -> bool:
    """Whether an image has a module, and every one of its modules bears a signature. Upper layers hide lower ones."""
    reference = ImageReference.parse(image)
    manifest = registry.find(reference)
    if manifest is None:
        return False
    modules: dict[str, bytes] = {}
    for layer in json.loads(manifest.content)["layers"]:
        content = registry.blob(reference, layer["digest"])
        assert content is not None
        with tarfile.open(fileobj=io.BytesIO(_plain(content))) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                if file is not None and member.name.endswith(".ko"):
                    modules[member.name.lstrip("./")] = file.read()
    return bool(modules) and all(module.endswith(SIGNATURE_MAGIC) for module in modules.values())


def _plain(content: bytes) -> bytes:
    if content.startswith(b"\x1f\x8b"):
        return gzip.decompress(content)
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read()
    return content

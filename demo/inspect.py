"""Looks at what was shipped, with the distribution's own tools."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from services.signer.image import read_files
from shared.domain.errors import PermanentError
from shared.domain.image import ImageReference
from shared.registry.client import RegistryClient

MODULE_PATTERN = "/opt/lib/modules/*/kmm_hello.ko"
"""Where the demo's Dockerfile puts the module, and what its ManagedClusterModule asks to be signed."""

MODINFO_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelModule:
    """A kernel module out of an image.

    Attributes:
        content: the `.ko`.
        signer: the common name that `modinfo` shows as the signer; empty if it is unsigned.
        vermagic: the kernel it was built for, the first word of modinfo's `vermagic`.
    """

    content: bytes
    signer: str
    vermagic: str


async def pull_module(registry: RegistryClient, image: str) -> KernelModule:
    """Take the demo's module out of an image by digest, and ask `modinfo` about it."""
    with tempfile.TemporaryDirectory(prefix="kmmhub-demo-") as name:
        files = await read_files(registry, ImageReference.parse(image), [MODULE_PATTERN], Path(name))
        path = files[0].copy
        return KernelModule(
            content=path.read_bytes(),
            signer=await _modinfo(path, "signer"),
            vermagic=(await _modinfo(path, "vermagic")).split(" ")[0],
        )


async def _modinfo(path: Path, field: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "modinfo", "-F", field, str(path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), MODINFO_TIMEOUT)
    if process.returncode != 0:
        raise PermanentError(f"modinfo {path.name}: {errors.decode(errors='replace').strip()}")
    return output.decode().strip()

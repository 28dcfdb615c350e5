"""Bytes to send: their digest and size, and the stream of them."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CHUNK: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Bytes in memory or in a file, with their digest (`sha256:…`) and size in bytes."""

    source: bytes | Path
    digest: str
    size: int


def digest_of(content: bytes) -> str:
    """`sha256:` and the hexadecimal SHA-256 of the bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def measure(source: bytes | Path) -> Content:
    """The digest and size of bytes or of a file, which must not change until it has been sent."""
    if isinstance(source, bytes):
        return Content(source=source, digest=digest_of(source), size=len(source))
    return await asyncio.to_thread(_measure_file, source)


async def stream(source: bytes | Path) -> AsyncGenerator[bytes]:
    """The bytes or the file's bytes, in chunks."""
    if isinstance(source, bytes):
        yield source
        return
    with await asyncio.to_thread(source.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


def _measure_file(path: Path) -> Content:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Content(source=path, digest=f"sha256:{digest}", size=file.tell())

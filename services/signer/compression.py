"""Compressed kernel modules. The kernel's signature is inside: a module is unpacked, signed and packed again. Pure."""

import gzip
import lzma
import zlib
from typing import Final

import zstandard

from services.signer.module_signature import ModuleMalformed

MODULE_SUFFIXES: Final = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
"""How the names of kernel modules end (Linux `scripts/Makefile.modinst`)."""

# What the kernel's own decompressor takes: CRC32 or no check, and a small dictionary (`scripts/Makefile.modinst`).
_XZ_FILTERS: Final = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1024 * 1024}]
_GZIP_WINDOW: Final = 31  # zlib: a gzip header and the largest window
_XZ_MEMORY: Final = 256 * 1024 * 1024


def unpack_module(path: str, content: bytes, *, limit: int) -> bytes:
    """The module in a file, unpacked as the ending of its name says; other files come back as they are.

    Args:
        path: name of the file in the image.
        content: the file.
        limit: most bytes the module may have.

    Raises:
        ModuleMalformed: the file is not compressed in that way, is cut short, or unpacks to more than `limit`.
    """
    try:
        unpacked, ended = _decompress(path, content, limit)
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise ModuleMalformed(
            f"{path} cannot be unpacked as its name says: {error}. Build it anew."
        ) from error
    if len(unpacked) > limit:
        raise _too_large(path, limit)
    if not ended:
        raise ModuleMalformed(f"{path} is cut short. Build it anew.")
    return unpacked


def pack_module(path: str, module: bytes) -> bytes:
    """The file for a module, packed as the ending of its name says. Equal input gives equal output."""
    if path.endswith(".xz"):
        return lzma.compress(module, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=_XZ_FILTERS)
    if path.endswith(".gz"):
        return gzip.compress(module, mtime=0)
    if path.endswith(".zst"):
        return zstandard.ZstdCompressor(write_checksum=True).compress(module)
    return module


def _decompress(path: str, content: bytes, limit: int) -> tuple[bytes, bool]:
    """At most `limit` + 1 bytes, and whether the compressed stream came to its end."""
    stream: lzma.LZMADecompressor | zlib._Decompress
    if path.endswith(".zst"):
        if (
            zstandard.frame_content_size(content) > limit
        ):  # a frame that names its size ignores the maximum below
            raise _too_large(path, limit)
        return zstandard.ZstdDecompressor().decompress(content, max_output_size=limit + 1), True
    if path.endswith(".xz"):
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
    elif path.endswith(".gz"):
        stream = zlib.decompressobj(_GZIP_WINDOW)
    else:
        return content, True
    return stream.decompress(content, limit + 1), stream.eof


def _too_large(path: str, limit: int) -> ModuleMalformed:
    return ModuleMalformed(f"{path} holds more than {limit} bytes, which no kernel module has.")

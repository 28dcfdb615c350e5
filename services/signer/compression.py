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
        if path.endswith(".xz"):
            unpacked = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY).decompress(
                content, limit + 1
            )
        elif path.endswith(".gz"):
            unpacked = zlib.decompressobj(wbits=31).decompress(content, limit + 1)
        elif path.endswith(".zst"):
            unpacked = zstandard.ZstdDecompressor().stream_reader(content).read(limit + 1)
        else:
            unpacked = content
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise ModuleMalformed(
            f"{path} cannot be unpacked as its name says: {error}. Build it anew."
        ) from error
    if len(unpacked) > limit:
        raise ModuleMalformed(f"{path} holds more than {limit} bytes, which no kernel module has.")
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

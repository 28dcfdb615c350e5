"""Compressed modules, with the system's own programs as the judge."""

import gzip
import lzma
import subprocess

import pytest
import zstandard

from services.signer.compression import pack_module, unpack_module
from services.signer.module_signature import ModuleMalformed

MODULE = b"\x7fELF" + bytes(range(256)) * 4000
PROGRAMS = {"x.ko.xz": ["xz", "-dc"], "x.ko.gz": ["gzip", "-dc"], "x.ko.zst": ["zstd", "-dc", "-q"]}


@pytest.mark.parametrize("name", ["x.ko", *PROGRAMS])
def test_packing_and_unpacking_are_inverse_and_repeatable(name):
    packed = pack_module(name, MODULE)
    assert unpack_module(name, packed, limit=len(MODULE)) == MODULE
    assert pack_module(name, MODULE) == packed


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_systems_program_unpacks_it(name):
    done = subprocess.run(
        PROGRAMS[name], input=pack_module(name, MODULE), capture_output=True, timeout=20, check=True
    )
    assert done.stdout == MODULE


def test_xz_is_packed_as_the_kernel_takes_it():
    packed = pack_module("x.ko.xz", MODULE)
    assert packed[6:8] == b"\x00\x01", "CRC32"
    assert lzma.LZMADecompressor(memlimit=2 * 1024 * 1024).decompress(packed) == MODULE, (
        "a dictionary of 1 MiB"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.ko.xz", b"\x7fELF"),
        ("x.ko.gz", b"\x7fELF"),
        ("x.ko.zst", b"\x7fELF"),
        ("x.ko.xz", lzma.compress(MODULE)[:-50]),
        ("x.ko.gz", gzip.compress(MODULE)[:-50]),
        ("x.ko.zst", zstandard.compress(MODULE)[:-50]),
        ("x.ko.xz", lzma.compress(MODULE + b"1")),
        ("x.ko.gz", gzip.compress(MODULE + b"1")),
        ("x.ko.zst", zstandard.compress(MODULE + b"1")),
        ("x.ko", MODULE + b"1"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_damaged_or_too_large_files_are_refused(name, content):
    with pytest.raises(ModuleMalformed, match=name):
        unpack_module(name, content, limit=len(MODULE))

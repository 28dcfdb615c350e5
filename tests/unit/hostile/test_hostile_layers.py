"""Layers of images from strangers: read in bounded time and memory, or refused with a reason."""

import gzip
import lzma
import resource
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hostile_budget import budget
from hostile_values import assert_reason
from hypothesis import example, given
from hypothesis import strategies as st

from services.signer import archive
from services.signer.archive import read_entries
from services.signer.compression import unpack_module
from services.signer.layers import Limits, UnpackedImage, _unpack, read_tree
from services.signer.module_signature import ModuleMalformed
from services.signer.tree import (
    Directory,
    Effort,
    PatternInvalid,
    apply_layer,
    find_files,
    find_modules,
)
from shared.domain.errors import HubError
from shared.registry.errors import ImageUnreadable

KINDS = [
    tarfile.REGTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CONTTYPE,
    tarfile.GNUTYPE_SPARSE,
    b"?",
]
PARTS = st.sampled_from(
    [
        "a",
        "b",
        "..",
        ".",
        "",
        "opt",
        "x.ko",
        ".wh.a",
        ".wh..wh..opq",
        ".wh..wh.aufs",
        ".wh.",
        "\udcff",
        "é",
        "*",
        "[",
        "\\",
    ]
)
PATHS = st.lists(PARTS, max_size=5).map("/".join) | st.text(max_size=8).filter(
    lambda text: max(text, default="") < "\ud800"
)


@st.composite
def entries(draw: st.DrawFn) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(draw(PATHS))
    entry.type = draw(st.sampled_from(KINDS))
    entry.linkname = draw(PATHS)
    entry.size = draw(st.sampled_from([0, 0, 0, 5, 512, 10**6, 2**33, 2**62, 2**63, -1]))
    entry.mode = draw(st.integers(0, 0o7777))
    return entry


def written(*items: tarfile.TarInfo) -> bytes:
    """Headers one after the other; contents are not there, whatever the headers say."""
    made = b""
    for item in items:
        made += item.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")
        made += b"x" * min(max(item.size, 0), 1024) + b"\0" * (
            -item.size % 512 if 0 < item.size < 1024 else 0
        )
    return made + b"\0" * 1024


def pax(records: bytes, *, kind: bytes = tarfile.XHDTYPE, then: tarfile.TarInfo | None = None) -> bytes:
    """A pax header with these bytes as its records, and an entry behind it."""
    header = tarfile.TarInfo("h")
    header.type, header.size = kind, len(records)
    body = records + b"\0" * (-len(records) % 512)
    return header.tobuf(tarfile.USTAR_FORMAT) + body + written(then or tarfile.TarInfo("f"))


def record(name: bytes, value: bytes) -> bytes:
    length = len(name) + len(value) + 3
    while len(b"%d" % length) + len(name) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(name) + len(value) + 3
    return b"%d %s=%s\n" % (length, name, value)


@pytest.fixture
def layer(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "layer.tar"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def little_memory() -> Iterator[None]:
    """At most 512 MiB more than are in use now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 1024**2, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def everything_read(path: Path) -> None:
    """The tree, and the content of every module in it."""
    root = read_tree([path, path], 1000)
    image = UnpackedImage(layers=(path, path), diff_ids=("", ""), root=root, limits=Limits(file_bytes=2**20))
    find_modules(root)
    for pattern in ("/*", "/opt/*.ko", "/a/b/x.ko", "/*/*/*"):
        for name, file in find_files(root, pattern).items():
            try:
                assert len(image.read(name, file)) == file.info.size
            except HubError as error:
                assert_reason(error)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layers") / "layer.tar"


@budget(200)
@given(content=st.lists(entries(), max_size=6).map(lambda items: written(*items)) | st.binary(max_size=1500))
def test_any_archive_is_read_or_refused(content: bytes, scratch: Path) -> None:
    scratch.write_bytes(content)
    try:
        everything_read(scratch)
    except ImageUnreadable as error:
        assert_reason(error)


@budget(100)
@given(
    items=st.lists(entries(), min_size=1, max_size=4),
    place=st.integers(0, 4000),
    noise=st.binary(min_size=1, max_size=20),
)
def test_a_damaged_archive_is_read_or_refused(
    items: list[tarfile.TarInfo], place: int, noise: bytes, scratch: Path
) -> None:
    content = bytearray(written(*items))
    place %= len(content)
    content[place : place + len(noise)] = noise
    scratch.write_bytes(bytes(content))
    try:
        everything_read(scratch)
    except ImageUnreadable as error:
        assert_reason(error)


PAX_NAMES = st.sampled_from(
    [
        b"path",
        b"linkpath",
        b"size",
        b"uid",
        b"mtime",
        b"hdrcharset",
        b"GNU.sparse.map",
        b"GNU.sparse.size",
        b"GNU.sparse.major",
        b"GNU.sparse.minor",
        b"GNU.sparse.numblocks",
        b"GNU.sparse.offset",
        b"GNU.sparse.realsize",
        b"SCHILY.xattr.user.a",
    ]
)
PAX_VALUES = st.sampled_from(
    [b"1", b"0", b"-1", b"9" * 30, b"0,5,3,-9", b"5,5", b"1,x", b"BINARY", b"\0", b"\xff", b"nan", b""]
)


@budget(200)
@given(
    records=st.lists(st.tuples(PAX_NAMES, PAX_VALUES), max_size=5),
    kind=st.sampled_from([tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE]),
    then=entries(),
)
def test_any_pax_records_are_read_or_refused(
    records: list[tuple[bytes, bytes]], kind: bytes, then: tarfile.TarInfo, scratch: Path
) -> None:
    scratch.write_bytes(pax(b"".join(record(*one) for one in records), kind=kind, then=then))
    try:
        everything_read(scratch)
    except ImageUnreadable as error:
        assert_reason(error)


@pytest.mark.parametrize(
    "records",
    [
        b"1" * 1_000_000,  # the reader looks for digits again from each digit on
        record(b"SCHILY.xattr.user.a", b"1" * 900_000),
        b"5 aa\n" * 200_000 + b"=",  # and for the = of each record up to the last one
        b"0 a=b\n" * 1000,
        b"3 =\n" * 250_000,
    ],
    ids=["digits", "digits-in-value", "far-equals", "no-length", "short"],
)
def test_headers_that_keep_the_reader_busy_are_refused(
    layer: Callable[[bytes], Path], records: bytes, little_memory: None
) -> None:
    started = time.process_time()
    path = layer(pax(records))
    with pytest.raises(ImageUnreadable):
        read_entries(path, 1000)
    assert time.process_time() - started < 3


def test_a_global_header_is_not_copied_into_every_entry(
    layer: Callable[[bytes], Path], little_memory: None
) -> None:
    records = b"".join(record(b"k%d" % number, b"v") for number in range(20_000))
    content = pax(records, kind=tarfile.XGLTYPE).removesuffix(b"\0" * 1024)
    with pytest.raises(ImageUnreadable, match="global header"):
        read_entries(layer(content + written(tarfile.TarInfo("x")) * 500), 1000)


def test_attributes_take_no_more_memory_than_is_allowed(
    layer: Callable[[bytes], Path], little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_KEPT_BYTES", 1024 * 1024)
    one = pax(record(b"SCHILY.xattr.user.a", b"v" * 100_000)).removesuffix(b"\0" * 1024)
    assert len(read_entries(layer(one * 10), 1000)) == 10
    with pytest.raises(ImageUnreadable, match="attributes"):
        read_entries(layer(one * 11), 1000)


def test_parts_of_sparse_files_take_no_more_memory_than_is_allowed(
    layer: Callable[[bytes], Path], little_memory: None
) -> None:
    one = pax(record(b"GNU.sparse.map", b",".join([b"0"] * 400_000))).removesuffix(b"\0" * 1024)
    with pytest.raises(ImageUnreadable, match="attributes"):
        read_entries(layer(one * 10), 1000)


def test_other_records_are_not_kept(layer: Callable[[bytes], Path]) -> None:
    content = pax(record(b"comment", b"x") + record(b"SCHILY.xattr.user.a", b"v"))
    (entry,) = read_entries(layer(content), 10)
    assert entry.pax_headers == {"SCHILY.xattr.user.a": "v"}


def test_an_old_sparse_header_has_an_end(layer: Callable[[bytes], Path], little_memory: None) -> None:
    entry = tarfile.TarInfo("x.ko")
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # more sparse headers follow
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = b"%011o\0" % 1 * 42 + b"\1" * 8
    with pytest.raises(ImageUnreadable, match="too many bytes"):
        read_entries(layer(bytes(header) + more * 50_000), 10)


def entry(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, linkname
    return made


def test_directories_that_no_entry_names_are_counted(little_memory: None) -> None:
    deep = [entry(f"{number}/" + "d/" * 250 + "f") for number in range(100_000 // 250)]
    apply_layer(Directory(), 0, deep, Effort(directories=101_000))
    with pytest.raises(ImageUnreadable, match="too many directories"):
        apply_layer(Directory(), 0, deep, Effort(directories=99_000))


def test_deep_paths_are_refused() -> None:
    with pytest.raises(ImageUnreadable, match="too deep"):
        apply_layer(Directory(), 0, [entry("d/" * 300 + "f")])


def test_links_that_lead_a_long_way_round_cost_no_more_than_is_allowed() -> None:
    """A path of few bytes costs 40 links of 2,000 steps each."""
    links = [entry("l0", tarfile.SYMTYPE, "./" * 2000)]
    links += [
        entry(f"l{number}", tarfile.SYMTYPE, "../" * 1300 + f"l{number - 1}") for number in range(1, 39)
    ]
    files = [entry(f"l38/f{number}") for number in range(10_000)]
    started = time.process_time()
    with pytest.raises(ImageUnreadable, match="too many directories and links"):
        apply_layer(Directory(), 0, [*links, *files], Effort(steps=2_000_000))
    assert time.process_time() - started < 10


def test_patterns_cost_no_more_than_is_allowed() -> None:
    root = Directory()
    apply_layer(root, 0, [entry(f"{number}/{other}/f.ko") for number in range(40) for other in range(40)])
    assert len(find_files(root, "/*/*/*.ko")) == 1600
    with pytest.raises(ImageUnreadable, match="filesToSign"):
        find_files(root, "/*/*/*.ko", Effort(steps=500))


@budget(200)
@given(
    pattern=st.lists(
        st.sampled_from([*"/*?[]!^-\\a.:", "[[:alpha:]]", "[a-", "{2}", "(", "\0", "\udcff", "é", "/opt/"]),
        max_size=12,
    ).map("".join)
    | st.text(max_size=10)
)
@example("/../x.ko")
@example("/" + "*" * 4000)
@example("/" + "[a" * 2000)
def test_any_pattern_is_matched_or_refused(pattern: str) -> None:
    root = Directory()
    apply_layer(
        root, 0, [entry("opt/a.ko"), entry("opt/b.ko.xz"), entry("a" * 200), entry("l", tarfile.SYMTYPE, "l")]
    )
    try:
        found = find_files(root, pattern)
    except PatternInvalid as error:
        assert_reason(error)
    else:
        assert all(path.startswith("/") for path in found)


def test_a_pattern_says_what_is_wrong_with_it() -> None:
    with pytest.raises(PatternInvalid, match=r"must not contain `\.\.`"):
        find_files(Directory(), "/opt/../x.ko")
    with pytest.raises(PatternInvalid, match="no absolute path"):
        find_files(Directory(), "opt/x.ko")


BOMB = b"\0" * (64 * 1024 * 1024)


def zstd(content: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(
        level=19 if len(content) < 10**6 else 1, write_content_size=sized
    ).compress(content)


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        (".gz", gzip.compress(BOMB)),
        (".xz", lzma.compress(BOMB, check=lzma.CHECK_CRC32)),
        (".zst", zstd(BOMB)),
        (".zst", zstd(BOMB, sized=False)),
    ],
    ids=["gz", "xz", "zst", "zst-unsized"],
)
def test_a_module_that_unpacks_to_too_much_is_refused(suffix: str, packed: bytes) -> None:
    with pytest.raises(ModuleMalformed, match=r"more than|unpacked"):
        unpack_module(f"/x.ko{suffix}", packed, limit=1024 * 1024)


@pytest.mark.parametrize(
    "packed", [gzip.compress(BOMB), zstd(BOMB), zstd(BOMB, sized=False)], ids=["gz", "zst", "unsized"]
)
def test_a_layer_that_unpacks_to_too_much_is_refused(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "in").write_bytes(packed)
    with pytest.raises(ImageUnreadable, match="unpack to more bytes"):
        _unpack(tmp_path / "in", tmp_path / "out", 1024 * 1024)
    assert (tmp_path / "out").stat().st_size <= 1024 * 1024


@budget(200)
@given(
    suffix=st.sampled_from([".ko", ".ko.gz", ".ko.xz", ".ko.zst"]),
    content=st.sampled_from([gzip.compress(b"x" * 99), lzma.compress(b"x" * 99), zstd(b"x" * 99)]).flatmap(
        lambda whole: st.tuples(st.integers(0, len(whole)), st.binary(max_size=8)).map(
            lambda cut: whole[: cut[0]] + cut[1] + whole[cut[0] + len(cut[1]) :]
        )
    )
    | st.binary(max_size=64),
)
def test_a_damaged_module_is_unpacked_or_refused(suffix: str, content: bytes) -> None:
    try:
        assert len(unpack_module(f"/m{suffix}", content, limit=1000)) <= 1000
    except ModuleMalformed as error:
        assert_reason(error)


@budget(100)
@given(
    content=st.sampled_from(
        [gzip.compress(b"x" * 999), zstd(b"x" * 999), zstd(b"x" * 999, sized=False)]
    ).flatmap(
        lambda whole: st.tuples(st.integers(0, len(whole)), st.binary(max_size=8)).map(
            lambda cut: whole[: cut[0]] + cut[1] + whole[cut[0] + len(cut[1]) :]
        )
    )
    | st.binary(max_size=64)
)
def test_a_damaged_layer_is_unpacked_or_refused(content: bytes, scratch: Path) -> None:
    scratch.write_bytes(content)
    try:
        size, digest = _unpack(scratch, scratch.with_suffix(".out"), 2000)
        assert size <= 2000
        assert digest.startswith("sha256:")
    except ImageUnreadable as error:
        assert_reason(error)

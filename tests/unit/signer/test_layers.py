"""Layers on disk: hostile archives are refused, written ones are what tar programs expect."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.signer.layers import Limits, UnpackedImage, read_tree, write_layer
from services.signer.tree import Directory, find_files
from shared.registry.errors import ImageUnreadable


def _archive(*entries: tuple[str, bytes, dict]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content, more in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in more.items():
                setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


PLAIN = _archive(("opt/x.ko", b"x" * 700, {}), ("opt/" + "long" * 40 + ".ko", b"y", {}), ("z", b"", {}))


def _read(directory: Path, content: bytes, limit: int = 100) -> Directory:
    path = directory / "layer.tar"
    path.write_bytes(content)
    return read_tree([path], limit)


def _header(*, kind: bytes = b"0", size: bytes = b"0" * 11 + b"\0", name: bytes = b"x") -> bytes:
    """A tar header with a right checksum."""
    fields = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"0" * 11 + b"\0"
    rest = kind + b"\0" * 100 + b"ustar\x0000" + b"\0" * 247
    total = sum(fields) + 8 * 32 + sum(rest)
    return fields + b"%06o\0 " % total + rest


class TestReading:
    def test_files_are_read_as_they_were_written(self, tmp_path: Path):
        root = _read(tmp_path, PLAIN)
        image = UnpackedImage(layers=(tmp_path / "layer.tar",), diff_ids=("",), root=root, limits=Limits())
        files = find_files(root, "/opt/*.ko")
        assert [image.read(path, file) for path, file in files.items()] == [b"y", b"x" * 700]

    def test_sparse_files_are_read_whole(self, tmp_path: Path):
        with (tmp_path / "x.ko").open("wb") as file:
            file.seek(5_000_000)
            file.write(b"end")
        command = ["tar", "-cSf", "layer.tar", "x.ko"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=20)
        assert (tmp_path / "layer.tar").stat().st_size < 100_000
        root = read_tree([tmp_path / "layer.tar"], 10)
        image = UnpackedImage(layers=(tmp_path / "layer.tar",), diff_ids=("",), root=root, limits=Limits())
        ((path, file),) = find_files(root, "/x.ko").items()
        assert image.read(path, file) == b"\0" * 5_000_000 + b"end"
        with pytest.raises(ImageUnreadable, match="5000003"):
            UnpackedImage(layers=image.layers, diff_ids=("",), root=root, limits=Limits(file_bytes=9)).read(
                path, file
            )

    @pytest.mark.parametrize(
        "content",
        [
            b"not a tar archive" * 100,
            PLAIN[:600],
            _header(size=b"\xff" * 12) + bytes(1024),
            _header(size=b"\xff" * 10 + b"\xf0\x00") + bytes(1024),
            _header(size=b"\x80" + b"\xff" * 11) + bytes(1024),
            _header(kind=b"x", size=b"77777777777\0") + bytes(1024),
            _header(kind=b"L", size=b"00010000000\0") + bytes(2_200_000),
            (_header(kind=b"L", size=b"00000000001\0") + b"n".ljust(512, b"\0")) * 3000 + bytes(1024),
            _header(name=b"../x") + bytes(1024),
            _archive(("a/" * 3000 + "x", b"", {})),
        ],
        ids=[
            "text",
            "cut",
            "minus one",
            "negative",
            "huge",
            "huge pax",
            "long name",
            "chain of long names",
            "out",
            "deep",
        ],
    )
    def test_hostile_archives_are_refused(self, tmp_path: Path, content: bytes):
        with pytest.raises(ImageUnreadable):
            _read(tmp_path, content)

    def test_too_many_entries_are_refused(self, tmp_path: Path):
        with pytest.raises(ImageUnreadable, match="more than 2 files"):
            _read(tmp_path, PLAIN, limit=2)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=14)), min_size=1, max_size=3)
    )
    def test_damaged_archives_are_read_or_refused(self, tmp_path: Path, changes: list[tuple[int, bytes]]):
        damaged = bytearray(PLAIN)
        for position, change in changes:
            damaged[position : position + len(change)] = change
        try:
            root = _read(tmp_path, bytes(damaged))
            image = UnpackedImage(
                layers=(tmp_path / "layer.tar",), diff_ids=("",), root=root, limits=Limits()
            )
            for path, file in find_files(root, "/opt/*.ko").items():
                image.read(path, file)
        except ImageUnreadable:
            pass


class TestWriting:
    def test_the_layer_holds_files_and_their_directories_as_they_were(self, tmp_path: Path):
        attributes = {"uid": 7, "gid": 8, "mode": 0o640, "mtime": 1_700_000_000}
        root = _read(
            tmp_path,
            _archive(
                ("opt", b"", {"type": tarfile.DIRTYPE, "mode": 0o711, "uid": 5}),
                (
                    "opt/x.ko",
                    b"old",
                    attributes | {"pax_headers": {"SCHILY.xattr.user.a": "b", "comment": "no"}},
                ),
                ("opt/other.ko", b"other", {}),
            ),
        )
        file = find_files(root, "/opt/x.ko")["/opt/x.ko"]
        layer = write_layer(root, {"/opt/x.ko": (file, b"new")}, tmp_path)
        listed = subprocess.run(
            ["tar", "--numeric-owner", "--utc", "--xattrs", "-tvvzf", str(layer.packed)],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.splitlines()
        assert [line.split() for line in listed] == [
            ["drwx--x--x", "5/0", "0", "1970-01-01", "00:00", "opt/"],
            ["-rw-r-----*", "7/8", "3", "2023-11-14", "22:13", "opt/x.ko"],
        ]

    def test_equal_input_gives_equal_bytes(self, tmp_path: Path):
        root = _read(tmp_path, PLAIN)
        files = {path: (file, b"new") for path, file in find_files(root, "/opt/*.ko").items()}
        written = []
        for name, order in (("a", list(files)), ("b", list(reversed(files)))):
            (tmp_path / name).mkdir()
            layer = write_layer(root, {path: files[path] for path in order}, tmp_path / name)
            written.append((layer.diff_id, layer.packed.read_bytes()))
        assert written[0] == written[1]

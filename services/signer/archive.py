"""The entries of a tar archive from a stranger, read so that no archive can fill the memory or keep its reader busy.

Python's reader of tar archives trusts what it reads: headers may be of any length, their records name their own
lengths, and one global header is copied into every entry. What goes too far is refused here before it is parsed.
"""

import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from services.signer.tree import MAX_PATH
from shared.registry.errors import ImageUnreadable

_BLOCK: Final = 512
_HEADER_BYTES: Final = 1024 * 1024  # longest single header (a path, extended attributes) of a tar entry
_HEADERS_BYTES: Final = 64 * 1024 * 1024  # all headers that are longer than a block, of one layer
_ENTRY_BYTES: Final = 4 * _HEADER_BYTES  # all headers of one entry
_KEPT_BYTES: Final = 64 * 1024 * 1024  # names and extended attributes of all entries of one layer
_RECORD_BYTES: Final = 128  # what a record takes beside its text
_GLOBAL_RECORDS: Final = 64
_PAX_KINDS: Final = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
)  # headers made of records
_RECORD: Final = re.compile(rb"([0-9]{1,7}) ")
_DIGITS: Final = re.compile(rb"[0-9]{257}")
XATTR: Final = "SCHILY.xattr."
"""What records of extended attributes start with."""


def read_entries(path: Path, limit: int) -> list[tarfile.TarInfo]:
    """The entries of a tar archive on disk, without what nobody needs of them: records other than `XATTR`.

    Args:
        path: the archive.
        limit: most entries it may have.

    Raises:
        ImageUnreadable: it is no tar archive, is damaged, has more entries, or is made to harm its reader.
    """
    entries: list[tarfile.TarInfo] = []
    kept = 0
    try:
        with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for entry in archive:
                file.end_entry()
                if entry.size < 0:
                    raise _refused("an entry of impossible size")
                if len(archive.pax_headers) > _GLOBAL_RECORDS:
                    raise _refused("a global header of too many records")
                kept += _trim(entry)
                if kept > _KEPT_BYTES:
                    raise _refused("names and attributes of too many bytes")
                entries.append(entry)
                if len(entries) > limit:
                    raise ImageUnreadable(f"The image has more than {limit} files. Make it smaller.")
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        # tarfile lets the last three escape
        raise ImageUnreadable(f"A layer of the image is no tar archive: {error}. Build it anew.") from error
    return entries


def _trim(entry: tarfile.TarInfo) -> int:
    """Leave an entry what is needed of it. Returns what that takes, in bytes or so."""
    if max(len(entry.name), len(entry.linkname)) > MAX_PATH:
        raise _refused("a path that is too long")
    entry.pax_headers = {name: value for name, value in entry.pax_headers.items() if name.startswith(XATTR)}
    parts: Sequence[tuple[int, int]] = getattr(entry, "sparse", None) or ()
    if not _are_in_order(parts, entry.size):
        raise _refused("a sparse file with impossible holes")
    records = sum(_RECORD_BYTES + len(name) + len(value) for name, value in entry.pax_headers.items())
    return len(entry.name) + len(entry.linkname) + records + _RECORD_BYTES * len(parts)


def _are_in_order(parts: Sequence[tuple[int, int]], size: int) -> bool:
    """Whether the parts of a sparse file, as (offset, bytes), follow each other inside of it."""
    end = 0
    for offset, length in parts:
        if offset < (end if length else 0) or length < 0:
            return False
        end = offset + length if length else end  # unused slots of a header are (0, 0)
    return end <= size


def _refused(what: str) -> ImageUnreadable:
    return ImageUnreadable(f"A layer has {what}. Build the image anew.")


class _Headers(io.FileIO):
    """A tar archive of which only headers are read, none longer than a header may be."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._end = path.stat().st_size
        self._kind = b""
        self._of_entry = self._of_all = 0

    def end_entry(self) -> None:
        """Count the next entry's headers from zero."""
        self._of_entry = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _HEADER_BYTES:
            raise _refused("an entry with a header of more than 1 MiB")
        self._of_entry += size
        self._of_all += size if size > _BLOCK else 0
        if self._of_entry > _ENTRY_BYTES or self._of_all > _HEADERS_BYTES:
            raise _refused("headers of too many bytes")
        content = super().read(size)
        if size > _BLOCK and self._kind in _PAX_KINDS:
            _check_records(content)
        self._kind = content[156:157]  # the type, where this is the block that a header starts with
        return content

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence != 0 or offset < self.tell() - 1:  # an entry of negative size would be read for ever
            raise _refused("an entry of impossible size")
        return super().seek(min(offset, self._end))  # behind the end nothing is read in either case

    def __enter__(self) -> Self:
        return self


def _check_records(content: bytes) -> None:
    """Nothing, if a pax header's records (POSIX pax, "Extended Header") have the lengths that they say.

    The reader looks for `=` beyond a record's end, and for digits again from each digit on.
    """
    position = 0
    while position < len(content) and content[position]:
        length = _RECORD.match(content, position)
        end = position + int(length[1]) if length else position
        if not length or end <= length.end() or content.find(b"=", length.end(), end) < 0:
            raise _refused("a header with a record of impossible length")
        position = end
    if _DIGITS.search(content):
        raise _refused("a header with a number of more than 256 digits")

"""The files of an image as its layers leave them, and the paths in it that a pattern means. Pure.

Source of the rules: OCI image specification, "Image Layer Filesystem Changeset" (whiteouts, hard links); POSIX shell,
"Patterns Used for Filename Expansion". Symbolic links are followed inside the image, as if its root were `/`.
"""

import tarfile
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import re2

from services.signer.compression import MODULE_SUFFIXES
from shared.domain.errors import PermanentError
from shared.registry.errors import ImageUnreadable

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_AUFS: Final = ".wh..wh."  # bookkeeping of an old storage driver: means nothing to others
_MAX_LINKS: Final = 40  # as Linux
_MAX_PATH: Final = 4096  # bytes, as Linux
_WILDCARDS: Final = frozenset("*?[")
_OPTIONS: Final = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.encoding = re2.Options.Encoding.LATIN1  # a name in a tar archive may be any bytes


class PatternInvalid(PermanentError):
    """A `filesToSign` entry is no absolute path or pattern."""

    reason = "PatternInvalid"


@dataclass(slots=True, kw_only=True)
class Directory:
    """A directory; `info` is None if no layer has an entry for it."""

    children: dict[str, "Node"] = field(default_factory=dict)
    info: tarfile.TarInfo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A regular file: entry `info` of the layer with this index. Hard links share one value."""

    layer: int
    info: tarfile.TarInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Symlink:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """A device, pipe or socket."""


Node = Directory | File | Symlink | Special
Path = tuple[str, ...]


def apply_layer(root: Directory, layer: int, entries: Sequence[tarfile.TarInfo]) -> None:
    """Change the tree as a layer says: first what it hides of lower layers, then what it adds.

    Args:
        root: the tree of the layers below; changed in place.
        layer: index of this layer, noted in its files.
        entries: all entries of the layer's tar archive, in their order.

    Raises:
        ImageUnreadable: a path leaves the image, or a hard link leads nowhere.
    """
    split = [(_split(entry.name), entry) for entry in entries]
    for path, _ in split:
        if path and path[-1].startswith(_WHITEOUT):
            _hide(root, path)
    for path, entry in split:
        if not path:
            root.info = entry
        elif not path[-1].startswith(_WHITEOUT):
            _add(root, path, layer, entry)


def find_files(root: Directory, pattern: str) -> dict[str, File]:
    """The regular files that an absolute path or shell pattern means, by their real path, in order.

    A pattern with wildcards in its last part means kernel modules alone; a plain path means any file.

    Raises:
        PatternInvalid: it is not absolute, has `..`, or a malformed bracket expression.
    """
    parts = [part for part in pattern.split("/") if part not in {"", "."}]
    if not pattern.startswith("/") or not parts or ".." in parts:
        raise PatternInvalid(f"filesToSign: {pattern!r} is no absolute path; write it like /opt/…/name.ko.")
    places: dict[Path, Node] = {(): root}
    for part in parts:
        places = dict(
            found
            for path, node in places.items()
            if isinstance(node, Directory)
            for name in _matching(node, part)
            if (found := _walk(root, path, (name,))) is not None
        )
    any_file = _WILDCARDS.isdisjoint(parts[-1])
    return {
        "/" + "/".join(path): node
        for path, node in sorted(places.items(), key=lambda place: place[0])
        if isinstance(node, File) and (any_file or path[-1].endswith(MODULE_SUFFIXES))
    }


def find_modules(root: Directory) -> list[str]:
    """The paths of all kernel modules of the image in order, symbolic links not followed."""
    found, directories = [], [("", root)]
    while directories:
        above, directory = directories.pop()
        for name, node in directory.children.items():
            if isinstance(node, Directory):
                directories.append((f"{above}/{name}", node))
            elif isinstance(node, File) and name.endswith(MODULE_SUFFIXES):
                found.append(f"{above}/{name}")
    return sorted(found)


def directory_at(root: Directory, path: Path) -> Directory:
    """The directory at a real path, which must exist."""
    for name in path:
        child = root.children[name]
        assert isinstance(child, Directory)
        root = child
    return root


def _split(name: str) -> Path:
    path = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in path or len(name) > _MAX_PATH:
        raise ImageUnreadable(
            f"A layer has the path {name[:80]!r}, out of the image or too long. Build it anew."
        )
    return path


def _hide(root: Directory, path: Path) -> None:
    found = _walk(root, (), path[:-1])
    if found is None or not isinstance(found[1], Directory):
        return
    if path[-1] == _OPAQUE:
        found[1].children.clear()
    elif not path[-1].startswith(_AUFS):
        found[1].children.pop(path[-1].removeprefix(_WHITEOUT), None)


def _add(root: Directory, path: Path, layer: int, entry: tarfile.TarInfo) -> None:
    found = _walk(root, (), path[:-1], create=True)
    if found is None or not isinstance(found[1], Directory):
        raise ImageUnreadable(f"A layer has the path {entry.name!r} through a symbolic link without end.")
    children, name = found[1].children, path[-1]
    if entry.isdir():
        old = children.get(name)
        children[name] = directory = old if isinstance(old, Directory) else Directory()
        directory.info = entry
    elif entry.issym():
        children[name] = Symlink(target=entry.linkname[:_MAX_PATH])
    elif entry.islnk():
        target = _split(entry.linkname)
        place = _walk(root, (), target[:-1])
        node = (
            place[1].children.get(target[-1])
            if place and isinstance(place[1], Directory) and target
            else None
        )
        if node is None or isinstance(node, Directory):
            raise ImageUnreadable(f"A layer's hard link {entry.name!r} leads to no file: {entry.linkname!r}.")
        children[name] = node
    else:
        children[name] = File(layer=layer, info=entry) if entry.isreg() else Special()


def _walk(
    root: Directory, start: Path, parts: Iterable[str], *, create: bool = False
) -> tuple[Path, Node] | None:
    """Where a path leads from the directory `start`, symbolic links followed: the real path and what is there.

    None if nothing is there or links go round in a circle. With `create`, what is missing or in the way becomes a
    directory.
    """
    trail = [directory_at(root, start[:depth]) for depth in range(len(start) + 1)]
    names, pending, links = list(start), deque(parts), 0
    while pending:
        name = pending.popleft()
        if name in {"", "."}:
            continue
        if name == "..":
            if names:
                names.pop()
                trail.pop()
            continue
        child = trail[-1].children.get(name)
        if isinstance(child, Symlink):
            links += 1
            if links > _MAX_LINKS:
                return None
            if child.target.startswith("/"):
                names.clear()
                del trail[1:]
            pending.extendleft(reversed(child.target.split("/")))
            continue
        if create and not isinstance(child, Directory):
            child = trail[-1].children[name] = Directory()
        if not isinstance(child, Directory):
            return ((*names, name), child) if child is not None and not pending else None
        names.append(name)
        trail.append(child)
    return tuple(names), trail[-1]


def _matching(directory: Directory, part: str) -> list[str]:
    """Names in a directory that one part of a pattern matches; wildcards do not match a leading dot."""
    if _WILDCARDS.isdisjoint(part) and "\\" not in part:
        return [part] if part in directory.children else []
    try:
        expression = re2.compile(_expression(part), _OPTIONS)
    except re2.error as error:
        raise PatternInvalid(f"filesToSign: {part!r} is no shell pattern; correct its brackets.") from error
    return [
        name
        for name in directory.children
        if (part.startswith(".") or not name.startswith("."))
        and expression.fullmatch(name.encode(errors="surrogateescape"))
    ]


def _expression(part: str) -> bytes:
    """An RE2 expression over bytes for one part of a shell pattern."""
    made, rest = "(?s)", part
    while rest:
        first, rest = rest[0], rest[1:]
        if first == "[" and (end := _bracket_end(rest)):
            inside, rest = rest[:end].replace("\\", "\\\\"), rest[end + 1 :]
            made += f"[^{inside[1:]}]" if inside[0] == "!" else f"[{inside}]"
        elif first in "*?":
            made += {"*": ".*", "?": "."}[first]
        else:
            if first == "\\" and rest:
                first, rest = rest[0], rest[1:]
            made += re2.escape(first)
    return made.encode(errors="surrogateescape")


def _bracket_end(rest: str) -> int:
    """Offset of the `]` that closes a bracket expression opened just before `rest`; 0 if it is not closed."""
    position = 1 if rest[:1] in {"!", "^"} else 0
    first = position
    while position < len(rest):
        if rest.startswith("[:", position) and ":]" in rest[position:]:
            position = rest.index(":]", position) + 2
        elif rest[position] == "]" and position > first:
            return position
        else:
            position += 1
    return 0

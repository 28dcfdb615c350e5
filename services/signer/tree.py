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
from shared.domain.canonical import storable_text
from shared.domain.errors import PermanentError
from shared.registry.errors import ImageUnreadable

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_AUFS: Final = ".wh..wh."  # bookkeeping of an old storage driver: means nothing to others
_MAX_LINKS: Final = 40  # as Linux
MAX_PATH: Final = 4096
"""Bytes of a path, as in Linux."""

_MAX_DEPTH: Final = 256  # parts of a path
_MAX_STEPS: Final = 20_000_000  # some ten seconds of following paths
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


@dataclass(slots=True, kw_only=True)
class Effort:
    """What may still be spent on an image: directories that no entry names, and steps along its paths.

    Long paths through many links cost far more than the bytes they take in an archive.
    """

    directories: int = 200_000
    steps: int = _MAX_STEPS

    def spend(self, *, steps: int = 0, directories: int = 0) -> None:
        """Raise ImageUnreadable if there is not so much left."""
        self.steps -= steps
        self.directories -= directories
        if self.steps < 0 or self.directories < 0:
            raise ImageUnreadable(
                "The image's paths, or the patterns in filesToSign, lead through too many directories and links. "
                "Make the image simpler."
            )


def apply_layer(
    root: Directory, layer: int, entries: Sequence[tarfile.TarInfo], effort: Effort | None = None
) -> None:
    """Change the tree as a layer says: first what it hides of lower layers, then what it adds.

    Args:
        root: the tree of the layers below; changed in place.
        layer: index of this layer, noted in its files.
        entries: all entries of the layer's tar archive, in their order.
        effort: what may be spent on all layers together.

    Raises:
        ImageUnreadable: a path leaves the image, a hard link leads nowhere, or the effort is spent.
    """
    effort = effort or Effort()
    split = [(_split(entry.name), entry) for entry in entries]
    for path, _ in split:
        if path and path[-1].startswith(_WHITEOUT):
            _hide(root, path, effort)
    for path, entry in split:
        if not path:
            root.info = entry
        elif not path[-1].startswith(_WHITEOUT):
            _add(root, path, layer, entry, effort)


def find_files(root: Directory, pattern: str, effort: Effort | None = None) -> dict[str, File]:
    """The regular files that an absolute path or shell pattern means, by their real path, in order.

    A pattern with wildcards in its last part means kernel modules alone; a plain path means any file.

    Raises:
        PatternInvalid: it is not absolute, has `..`, or a malformed bracket expression.
        ImageUnreadable: the effort is spent.
    """
    effort = effort or Effort()
    parts = [part for part in pattern.split("/") if part not in {"", "."}]
    if not pattern.startswith("/") or not parts:
        raise PatternInvalid(
            f"filesToSign: {pattern[:200]!r} is no absolute path; write it like /opt/…/name.ko."
        )
    if storable_text(pattern) != pattern:
        raise PatternInvalid(f"filesToSign: {pattern[:200]!r} is no valid text; write the path in UTF-8.")
    if ".." in parts:
        raise PatternInvalid(
            f"filesToSign: {pattern[:200]!r} must not contain `..`; write the path without it, like /opt/…/name.ko."
        )
    places: dict[Path, Node] = {(): root}
    for part in parts:
        places = dict(
            found
            for path, node in places.items()
            if isinstance(node, Directory)
            for name in _matching(node, part, effort)
            if (found := _walk(root, path, (name,), effort)) is not None
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
    if ".." in path or len(name) > MAX_PATH or len(path) > _MAX_DEPTH:
        raise ImageUnreadable(
            f"A layer has the path {name[:80]!r}, out of the image, too long or too deep. Build it anew."
        )
    return path


def _hide(root: Directory, path: Path, effort: Effort) -> None:
    found = _walk(root, (), path[:-1], effort)
    if found is None or not isinstance(found[1], Directory):
        return
    if path[-1] == _OPAQUE:
        found[1].children.clear()
    elif not path[-1].startswith(_AUFS):
        found[1].children.pop(path[-1].removeprefix(_WHITEOUT), None)


def _add(root: Directory, path: Path, layer: int, entry: tarfile.TarInfo, effort: Effort) -> None:
    found = _walk(root, (), path[:-1], effort, create=True)
    if found is None or not isinstance(found[1], Directory):
        raise ImageUnreadable(f"A layer has the path {entry.name!r} through a symbolic link without end.")
    children, name = found[1].children, path[-1]
    if entry.isdir():
        old = children.get(name)
        children[name] = directory = old if isinstance(old, Directory) else Directory()
        directory.info = entry
    elif entry.issym():
        children[name] = Symlink(target=entry.linkname[:MAX_PATH])
    elif entry.islnk():
        target = _split(entry.linkname)
        place = _walk(root, (), target[:-1], effort)
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
    root: Directory, start: Path, parts: Iterable[str], effort: Effort, *, create: bool = False
) -> tuple[Path, Node] | None:
    """Where a path leads from the directory `start`, symbolic links followed: the real path and what is there.

    None if nothing is there or links go round in a circle. With `create`, what is missing or in the way becomes a
    directory.
    """
    trail = [root]
    for name in start:
        trail.append(directory_at(trail[-1], (name,)))
    names, pending, links = list(start), deque(parts), 0
    effort.spend(steps=len(start))
    while pending:
        name = pending.popleft()
        effort.spend(steps=1)
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
            effort.spend(directories=1)
            child = trail[-1].children[name] = Directory()
        if not isinstance(child, Directory):
            return ((*names, name), child) if child is not None and not pending else None
        names.append(name)
        trail.append(child)
    return tuple(names), trail[-1]


def _matching(directory: Directory, part: str, effort: Effort) -> list[str]:
    """Names in a directory that one part of a pattern matches; wildcards do not match a leading dot."""
    if _WILDCARDS.isdisjoint(part) and "\\" not in part:
        return [part] if part in directory.children else []
    effort.spend(steps=len(directory.children))
    try:
        expression = re2.compile(_expression(part), _OPTIONS)
    except re2.error as error:
        raise PatternInvalid(
            f"filesToSign: {part[:200]!r} is no shell pattern; correct its brackets."
        ) from error
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

"""Kubernetes objects from files, as kubectl would read them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shared.domain.errors import PermanentError

STANDARD_INPUT = "-"
MAX_DEPTH = 100
MAX_NODES = 20_000_000
"""Bounds of one document: a few lines of YAML with aliases can stand for more than a machine's memory."""

_NOT_IN_GO = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})

MODULE_KIND = "ManagedClusterModule"
CLUSTER_KIND = "ManagedCluster"


class UnusableInput(PermanentError):
    """A file that cannot be read, or that is not what the command needs; the message names file and document."""

    reason = "UnusableInput"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One Kubernetes object.

    Attributes:
        where: for messages, such as `fleet.yaml, document 2, item 7`.
        content: the object, with text keys throughout.
    """

    where: str
    content: dict[str, Any]

    @property
    def kind(self) -> str:
        """The object's `kind`."""
        return str(self.content["kind"])

    @property
    def name(self) -> str:
        """The object's name; empty if it has none."""
        metadata = self.content.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        return name if isinstance(name, str) else ""


def read_documents(files: Iterable[str]) -> list[Document]:
    """Read the objects of files, in order. Empty documents are left out, lists taken apart.

    Args:
        files: paths; `-` is standard input.

    Raises:
        UnusableInput: a file cannot be read, is no YAML or JSON, or has something that is no Kubernetes object.
    """
    names = list(files)
    if names.count(STANDARD_INPUT) > 1:
        raise UnusableInput("standard input (-) is named twice, but can be read once; name a file")
    return [
        found
        for name in names
        for number, content in enumerate(_parsed(name), start=1)
        if content is not None
        for found in _objects(content, f"{_shown(name)}, document {number}")
    ]


def modules_in(documents: Sequence[Document], file: str) -> list[Document]:
    """The ManagedClusterModules among documents.

    Raises:
        UnusableInput: there is none, or two have one name.
    """
    modules = [document for document in documents if document.kind == MODULE_KIND]
    if not modules:
        raise UnusableInput(f"{_shown(file)}: has no {MODULE_KIND}; name a file with one")
    seen: dict[str, Document] = {}
    for module in modules:
        if module.name and module.name in seen:
            raise UnusableInput(
                f"{module.where}: module {module.name!r} was in {seen[module.name].where} already"
            )
        seen[module.name] = module
    return modules


def skipped(documents: Sequence[Document], used: Sequence[Document]) -> Iterator[str]:
    """A line for each document that is not looked at."""
    looked_at = {id(document) for document in used}
    for document in documents:
        if id(document) not in looked_at:
            yield f"{document.where}: skipped, it is a {document.kind}"


def read_mapping(file: str) -> dict[str, Any]:
    """Read a file that holds one YAML or JSON object.

    Raises:
        UnusableInput: it holds anything else.
    """
    contents = [content for content in _parsed(file) if content is not None]
    if len(contents) != 1 or not isinstance(contents[0], dict):
        raise UnusableInput(f"{_shown(file)}: expected one object, name to value")
    return contents[0]


def _objects(content: Any, where: str) -> Iterator[Document]:
    if not isinstance(content, dict):
        raise UnusableInput(f"{where}: is no Kubernetes object; write apiVersion, kind, metadata and spec")
    kind = content.get("kind")
    if not isinstance(kind, str) or not kind:
        raise UnusableInput(f"{where}: kind is missing; write one, such as {MODULE_KIND}")
    items = content.get("items")
    if kind.endswith("List") and isinstance(items, list):
        for number, item in enumerate(items, start=1):
            # Lists of one kind come without the kind on each item.
            named = (
                {"kind": kind.removesuffix("List"), **item}
                if isinstance(item, dict) and kind != "List"
                else item
            )
            yield from _objects(named, f"{where}, item {number}")
    else:
        yield Document(where=where, content=content)


def _parsed(file: str) -> Iterator[Any]:
    text = _text(file)
    try:
        documents = _json_documents(text) if text.lstrip().startswith("{") else None
        for document in documents if documents is not None else yaml.load_all(text, _Loader):
            yield _Plain().json(document)
    except yaml.YAMLError as error:
        raise UnusableInput(f"{_shown(file)}: is no valid YAML or JSON: {_one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableInput(f"{_shown(file)}: cannot be read: {error}") from error


def _text(file: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise UnusableInput(
            f"{file}: cannot be read: {error.strerror}; name a file, or - for standard input"
        ) from error
    except UnicodeDecodeError as error:
        raise UnusableInput(f"{_shown(file)}: is not UTF-8 text") from error


def _json_documents(text: str) -> list[Any] | None:
    """JSON documents one after the other; None if it is not all JSON, but perhaps YAML that starts with a brace."""
    decoder = json.JSONDecoder()
    documents, position = [], 0
    while rest := text[position:].lstrip():
        try:
            document, length = decoder.raw_decode(rest)
        except ValueError:
            return None
        documents.append(document)
        position = len(text) - len(rest) + length
    return documents


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Go's readers take it: no dates, no numbers in base 60, no key twice."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called once before a mapping is built, and once for each `<<` that takes it over."""
        if not vars(node).setdefault("keys_are_checked", False):
            vars(node)["keys_are_checked"] = True
            _refuse_doubled_keys(node)
        super().flatten_mapping(node)

    def construct_scalar_number(self, node: yaml.ScalarNode) -> Any:
        """A number; what only YAML 1.1 takes for one (`1:30`) is text."""
        if ":" in node.value:
            return node.value
        is_whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_IN_GO]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_scalar_number)


def _refuse_doubled_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r:.80} is there twice", key.start_mark
                )
            seen.add(key.value)


class _Plain:
    """Turns what YAML gave into JSON's values: keys are text."""

    def __init__(self) -> None:
        self._nodes = 0

    def json(self, value: Any, depth: int = 0) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep, or too large")
        if isinstance(value, dict):
            return {_key(key): self.json(child, depth + 1) for key, child in value.items()}
        if isinstance(value, list):
            return [self.json(child, depth + 1) for child in value]
        if value is None or isinstance(value, str | bool | int | float):
            return value
        raise ValueError(f"{value!r:.80} is neither text nor number, list or object")


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return key if isinstance(key, str) else str(key)


def _shown(file: str) -> str:
    return "standard input" if file == STANDARD_INPUT else file


def _one_line(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"

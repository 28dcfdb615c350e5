"""One byte form for equal values, so that a hash means the same everywhere."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"

MAX_DEPTH = 100
"""Levels that JSON of others may have: far beyond any API object, and far below what recursion can walk."""

_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]|[^"\[\]{}]++', re.DOTALL)
_LARGEST = 10**308  # the largest power of ten that a float can hold


def canonical_json(value: Json) -> bytes:
    """JSON with sorted keys, no blanks and no escapes: byte-for-byte equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_hash(value: Json) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def storable(value: Any) -> Any:
    """`value` as Postgres can store it and JSON can say it, whatever a spoke or a user has sent.

    U+FFFD stands for a NUL character or half a surrogate pair, and a float for a whole number beyond 64 bits, as Go's
    decoder makes it. One such object must not keep everything else of its kind from being stored.
    """
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, Mapping):
        return {storable(key): storable(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [storable(member) for member in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(max(-_LARGEST, min(value, _LARGEST)))
    return value


def storable_text(text: str) -> str:
    """`text` with U+FFFD for each NUL character and each half of a surrogate pair."""
    if not text.isprintable():  # the quick way: neither of them prints
        text = _UNSTORABLE.sub("\ufffd", text)
    return text


def is_deeper_than(levels: int, value: Any) -> bool:
    """Whether lists and objects in `value` are nested more than `levels` deep; never recurses itself."""
    layer = [value]
    for _ in range(levels):
        layer = [child for node in layer for child in _children(node)]
    return any(isinstance(node, Mapping | list | tuple) for node in layer)


def shallow_json(content: bytes, levels: int) -> bytes:
    """JSON text with null for every list and object that is nested more than `levels` deep. In linear time."""
    kept: list[bytes] = []
    depth = 0
    for token in _JSON_TOKEN.findall(content):
        if token in b"[{":
            depth += 1
            if depth == levels + 1:
                kept.append(b"null")
        if depth <= levels:
            kept.append(token)
        if token in b"]}":
            depth -= 1
    return b"".join(kept)


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, Mapping):
        return node.values()
    return node if isinstance(node, list | tuple) else ()

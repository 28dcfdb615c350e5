"""One byte form for equal values, so that a hash means the same everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"


def canonical_json(value: Json) -> bytes:
    """JSON with sorted keys, no blanks and no escapes: byte-for-byte equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_hash(value: Json) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def without_nul(value: Any) -> Any:
    """`value` with each NUL character in its texts replaced by U+FFFD, which Postgres can store.

    A spoke or a user may send one; it must not keep everything else of its kind from being stored.
    """
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, Mapping):
        return {without_nul(key): without_nul(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [without_nul(member) for member in value]
    return value

"""How an API server writes lists and watch events. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from simulation.hub_objects import Json, Kind


def list_item(kind: Kind, item: Json, encoded: bytes) -> bytes:
    """An object as lists hold it: those of the core group leave the kind out."""
    if kind.is_custom:
        return encoded
    return orjson.dumps({key: value for key, value in item.items() if key not in ("apiVersion", "kind")})


def list_page(
    kind: Kind, items: Sequence[bytes], *, version: int, token: str | None, left: int | None
) -> bytes:
    """A page of a list.

    Args:
        kind: of the items.
        items: as `list_item` makes them.
        version: the resourceVersion of the whole list.
        token: leads to the next page, None on the last one.
        left: items on later pages; None if that is not known, as with label selectors.
    """
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if token or kind.is_custom:
        metadata["continue"] = token or ""
    if token and left:
        metadata["remainingItemCount"] = left
    head = {"apiVersion": kind.api_version, "kind": f"{kind.name}List", "metadata": metadata}
    return orjson.dumps(head)[:-1] + b',"items":[' + b",".join(items) + b"]}\n"


def event_line(event: str, encoded: bytes) -> bytes:
    """One event of a watch: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""
    return b'{"type":"%s","object":%s}\n' % (event.encode(), encoded)


def bookmark_line(kind: Kind, *, version: int) -> bytes:
    """Says: whoever has seen everything so far has seen this version."""
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    item = {"kind": kind.name, "apiVersion": kind.api_version, "metadata": metadata}
    return event_line("BOOKMARK", orjson.dumps(item))


def expired_line(version: str, *, oldest: int) -> bytes:
    """Says: there is no going on from this version (410)."""
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"too old resource version: {version} ({oldest})",
        "reason": "Expired",
        "code": 410,
    }
    return event_line("ERROR", orjson.dumps(status))

"""What a run leaves behind: logs, rows, messages, objects. Read in the end, to look for what must not be there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg

from chaos.material import Material
from chaos.world import World
from shared.kube.client import EVENTS, MANIFEST_WORKS, MODULES, KubeClient


async def all_text(world: World, kube: KubeClient) -> list[tuple[str, bytes]]:
    """Logs, tables, what NATS stores and what the API server shows of our objects."""
    found = [(path.name, path.read_bytes()) for path in sorted(world.directory.glob("*.log"))]
    stored = sorted((world.hub.directory / "nats" / "data").rglob("*"))
    found += [(f"NATS file {path.name}", path.read_bytes()) for path in stored if path.is_file()]
    connection = await asyncpg.connect(world.addresses.database_url)
    try:
        for table in await tables_of(connection):
            rows = await connection.fetch(f'SELECT t::text AS row FROM "{table}" t')  # noqa: S608 - our tables
            found.append((f"table {table}", "\n".join(row["row"] for row in rows).encode()))
    finally:
        await connection.close()
    for resource in (MANIFEST_WORKS, MODULES, EVENTS):
        found.append((resource.plural, await kube.list_page(resource, limit=5000)))
    return found


async def tables_of(connection: asyncpg.Connection) -> list[str]:
    """The product's tables."""
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    return [row["tablename"] for row in rows]


def secrets_of(material: Material) -> dict[str, bytes]:
    """What must be found nowhere: canaries, and a line from the middle of the signing key."""
    lines = material.signing.key.splitlines()
    canaries = {name: text.encode() for name, text in material.canaries.items()}
    return canaries | {"signing key": lines[len(lines) // 2]}


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a service's log; what is no JSON is an error by itself."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            yield {"event": line, "level": "error"}

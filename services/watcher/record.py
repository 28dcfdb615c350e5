"""Facts into Postgres, each change with its announcement in the same transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from services.watcher.facts import Row
from shared.domain.work import ObservedWork
from shared.events.messages import Changed, Kind
from shared.store import tables
from shared.store.database import Connection, text_array
from shared.store.outbox import announce
from shared.store.works import mark_gone, record_works


@dataclass(frozen=True, slots=True, kw_only=True)
class FactTable:
    """Where facts of a kind go.

    Attributes:
        table: keyed by `name`.
        kind: announced when a fact changes.
        quiet: columns that are stored but whose change is no news.
        kept_without_claim: columns that keep their value while `claim_is_present` is false.
    """

    table: sa.Table
    kind: Kind
    quiet: frozenset[str] = frozenset({"resource_version"})
    kept_without_claim: frozenset[str] = frozenset()


CLUSTERS = FactTable(
    table=tables.clusters, kind=Kind.CLUSTER, kept_without_claim=frozenset({"kernels", "invalid_kernels"})
)
MODULES = FactTable(table=tables.modules, kind=Kind.MODULE, quiet=frozenset({"resource_version", "status"}))
CONFIG_MAPS = FactTable(table=tables.config_maps, kind=Kind.CONFIG_MAP)
SECRETS = FactTable(table=tables.secrets, kind=Kind.SECRET)


async def record_facts(connection: Connection, facts: FactTable, rows: Sequence[Row]) -> int:
    """Store rows (at most one per name) and announce those that are news. Returns how many were."""
    if not rows:
        return 0
    names = [row["name"] for row in rows]
    table = facts.table
    known: dict[str, dict[str, object]] = {
        row["name"]: dict(row)
        for row in (
            await connection.execute(sa.select(table).where(table.c.name.in_(names)).with_for_update())
        ).mappings()
    }
    new = [keep_last_known(facts, row, known.get(row["name"])) for row in rows]
    changed = [row for row in new if row != {key: known.get(row["name"], {}).get(key) for key in row}]
    if changed:
        statement = insert(table).values(changed)
        await connection.execute(
            statement.on_conflict_do_update(
                index_elements=["name"],
                set_={
                    column.name: statement.excluded[column.name]
                    for column in table.c
                    if column.name != "name"
                },
            )
        )
    news = [row["name"] for row in changed if is_news(facts, row, known.get(row["name"]))]
    await announce(connection, (Changed(kind=facts.kind, name=name) for name in news))
    return len(news)


async def forget_facts(connection: Connection, facts: FactTable, names: Collection[str]) -> None:
    """Remove objects that no longer exist, and announce it."""
    if names:
        table = facts.table
        removed = await connection.execute(
            sa.delete(table).where(table.c.name == sa.any_(text_array(names))).returning(table.c.name)
        )
        await announce(connection, (Changed(kind=facts.kind, name=name) for (name,) in removed))


async def keep_only_facts(connection: Connection, facts: FactTable, names: Collection[str]) -> None:
    """After a complete list: forget everything that was not in it."""
    known = await connection.execute(sa.select(facts.table.c.name))
    await forget_facts(connection, facts, {name for (name,) in known} - set(names))


async def record_observed_works(connection: Connection, observed: Sequence[ObservedWork]) -> None:
    """Store works as seen, deleted ones too, announcing those whose stored state moved."""
    await _announce_works(connection, await record_works(connection, observed, is_own_write=False))


async def keep_only_works(
    connection: Connection, keys: Collection[tuple[str, str]], *, resource_version: int
) -> None:
    """After a complete list: works that it lacks are gone, as of its version."""
    known = await connection.execute(
        sa.select(tables.works.c.cluster, tables.works.c.name).where(~tables.works.c.is_gone)
    )
    missing = {(cluster, name) for cluster, name in known} - set(keys)
    await _announce_works(connection, await mark_gone(connection, missing, resource_version=resource_version))


async def mark_synced(connection: Connection, resource: str, *, resource_version: int) -> None:
    """Note that a resource was listed completely. The first time that all are, everything is announced."""
    statement = insert(tables.syncs).values(resource=resource, resource_version=resource_version)
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["resource"],
            set_={"resource_version": statement.excluded.resource_version, "synced_at": sa.func.now()},
        )
    )
    await announce(connection, [Changed(kind=Kind.EVERYTHING, name=resource)])


def keep_last_known(facts: FactTable, row: Row, known: Mapping[str, object] | None) -> Row:
    """A cluster whose claim is missing still runs the kernels that it last named; another one of its name does not."""
    if known is None or not facts.kept_without_claim or row["claim_is_present"] or known["uid"] != row["uid"]:
        return row
    return row | {column: known[column] for column in facts.kept_without_claim}


def is_news(facts: FactTable, row: Row, known: Mapping[str, object] | None) -> bool:
    """Whether anything but quiet columns differs from what was known."""
    if known is None:
        return True
    return any(value != known[column] for column, value in row.items() if column not in facts.quiet)


async def _announce_works(connection: Connection, keys: Iterable[tuple[str, str]]) -> None:
    await announce(
        connection, (Changed(kind=Kind.WORK, namespace=cluster, name=name) for cluster, name in keys)
    )

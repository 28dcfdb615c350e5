"""Statements on objects as last seen."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from shared.store.database import Connection, chunks, text_array
from shared.store.port import Facts, Row
from shared.store.tables import clusters, config_maps, modules, secrets, syncs

_TABLES = {
    Facts.CLUSTERS: clusters,
    Facts.MODULES: modules,
    Facts.CONFIG_MAPS: config_maps,
    Facts.SECRETS: secrets,
}


class FactStatements:
    """`shared.store.port.FactRows` on Postgres."""

    _connection: Connection

    async def read_facts(self, table: Facts, names: Collection[str] | None = None) -> dict[str, Row]:
        """Rows by name; all of them if `names` is None."""
        return await self._rows(_select(_TABLES[table], names))

    async def lock_facts(self, table: Facts, names: Collection[str]) -> dict[str, Row]:
        """In the order of their names, so that two transactions never wait for each other."""
        target = _TABLES[table]
        return await self._rows(_select(target, names).order_by(target.c.name).with_for_update())

    async def put_facts(self, table: Facts, rows: Sequence[Row]) -> None:
        """Insert or replace rows."""
        target = _TABLES[table]
        for chunk in chunks([dict(row) for row in rows]):
            statement = insert(target).values(chunk)
            new = {
                column.name: statement.excluded[column.name] for column in target.c if column.name != "name"
            }
            await self._connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=new))

    async def remove_facts(self, table: Facts, names: Collection[str]) -> set[str]:
        """Returns the names of those that were there."""
        if not names:
            return set()
        target = _TABLES[table]
        statement = (
            sa.delete(target).where(target.c.name == sa.any_(text_array(names))).returning(target.c.name)
        )
        return {name for (name,) in await self._connection.execute(statement)}

    async def mark_synced(self, resource: str, *, resource_version: int) -> None:
        """Note that a resource was listed completely."""
        statement = insert(syncs).values(resource=resource, resource_version=resource_version)
        await self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=["resource"],
                set_={"resource_version": statement.excluded.resource_version, "synced_at": sa.func.now()},
            )
        )

    async def synced_resources(self) -> set[str]:
        """Resources that were listed completely at least once."""
        return {resource for (resource,) in await self._connection.execute(sa.select(syncs.c.resource))}

    async def _rows(self, query: sa.Select[tuple[object, ...]]) -> dict[str, Row]:
        rows = (await self._connection.execute(query)).mappings()
        return {row["name"]: {str(key): value for key, value in row.items()} for row in rows}


def _select(table: sa.Table, names: Collection[str] | None) -> sa.Select[tuple[object, ...]]:
    query = sa.select(*table.c)
    return query if names is None else query.where(table.c.name == sa.any_(text_array(names)))

"""Statements on ManifestWorks as last known. Watcher and dispatcher both write: the newest resourceVersion wins.

The dispatcher stores what the API server answered to its own write at once, so that it never decides on a state
from before that write, however far behind the watch is.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from shared.domain.canonical import storable
from shared.domain.module import RESERVED_NAME
from shared.domain.work import ObservedWork, StoredWork, WorkCondition
from shared.store.database import Connection, chunks, pieces, text_array
from shared.store.tables import clusters as known_clusters
from shared.store.tables import modules as known_modules
from shared.store.tables import works

_IS_OF_A_MODULE = sa.or_(
    works.c.module.is_not(None),
    works.c.name == RESERVED_NAME,
    works.c.name.in_(sa.select(known_modules.c.name)),
)
_HAS_NO_CLUSTER = ~sa.exists().where(known_clusters.c.name == works.c.cluster)


class WorkStatements:
    """`shared.store.port.WorkRows` on Postgres."""

    _connection: Connection

    async def record_works(
        self, observed: Sequence[ObservedWork], *, is_own_write: bool
    ) -> set[tuple[str, str]]:
        """Store works unless something newer is known."""
        rows = [_row(work, posted=work.observed_hash if is_own_write else None) for work in observed]
        stored: set[tuple[str, str]] = set()
        for chunk in chunks(rows):
            stored |= await self._record(chunk, is_own_write=is_own_write)
        return stored

    async def _record(self, rows: Sequence[dict[str, Any]], *, is_own_write: bool) -> set[tuple[str, str]]:
        statement = insert(works).values(rows)
        values: dict[str, Any] = {
            column.name: statement.excluded[column.name] for column in works.c if column.name != "seen_at"
        }
        values["posted_hash"] = sa.case(
            # A work that was deleted and made again by somebody has none of our writes in it.
            (
                works.c.uid == statement.excluded.uid,
                sa.func.coalesce(statement.excluded.posted_hash, works.c.posted_hash),
            ),
            else_=statement.excluded.posted_hash,
        )
        stored = await self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=["cluster", "name"],
                set_=values | {"seen_at": sa.func.now()},
                # The watch may be quicker than the answer to our write, which then adds only what it alone knows.
                where=works.c.resource_version <= statement.excluded.resource_version
                if is_own_write
                else works.c.resource_version < statement.excluded.resource_version,
            ).returning(works.c.cluster, works.c.name)
        )
        return {(cluster, name) for cluster, name in stored}

    async def mark_works_gone(
        self, keys: Iterable[tuple[str, str]], *, resource_version: int
    ) -> set[tuple[str, str]]:
        """Returns those for which that was news."""
        gone: set[tuple[str, str]] = set()
        for chunk in chunks(list(keys)):
            gone |= await self._mark_gone(chunk, resource_version)
        return gone

    async def _mark_gone(
        self, wanted: Sequence[tuple[str, str]], resource_version: int
    ) -> set[tuple[str, str]]:
        pairs = sa.func.unnest(
            text_array(cluster for cluster, _ in wanted), text_array(name for _, name in wanted)
        )
        missing = pairs.table_valued("cluster", "name").render_derived(name="missing")
        gone = await self._connection.execute(
            sa.update(works)
            .where(
                works.c.cluster == missing.c.cluster,
                works.c.name == missing.c.name,
                works.c.resource_version <= resource_version,
                ~works.c.is_gone,
            )
            .values(is_gone=True, resource_version=resource_version, seen_at=sa.func.now())
            .returning(works.c.cluster, works.c.name)
        )
        return {(cluster, name) for cluster, name in gone}

    async def read_works(
        self, *, modules: Collection[str] | None, clusters: Collection[str] = ()
    ) -> dict[tuple[str, str], StoredWork]:
        """Works of these modules (None: all), or in these clusters, by (name, cluster)."""
        is_in_clusters = works.c.cluster == sa.any_(text_array(clusters))
        query = sa.select(works).where(
            _IS_OF_A_MODULE, sa.or_(~works.c.is_gone, sa.and_(is_in_clusters, _HAS_NO_CLUSTER))
        )
        if modules is not None:
            names = text_array(modules)
            query = query.where(
                sa.or_(works.c.name == sa.any_(names), works.c.module == sa.any_(names), is_in_clusters)
            )
        found: dict[tuple[str, str], StoredWork] = {}
        async for rows in pieces(self._connection, query):
            for row in rows:
                stored = StoredWork(work=_work(row), posted_hash=row.posted_hash)
                found[row.name, row.cluster] = stored
        return found

    async def forget_gone_works(self, *, older_than_seconds: float, limit: int) -> None:
        """By the database's clock."""
        old = (
            sa.select(works.c.cluster, works.c.name)
            .where(
                works.c.is_gone, works.c.seen_at < sa.func.now() - dt.timedelta(seconds=older_than_seconds)
            )
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        await self._connection.execute(
            sa.delete(works).where(sa.tuple_(works.c.cluster, works.c.name).in_(old))
        )

    async def known_works(self) -> set[tuple[str, str]]:
        """(cluster, name) of those that are not gone."""
        query = sa.select(works.c.cluster, works.c.name).where(~works.c.is_gone)
        return {(row.cluster, row.name) async for rows in pieces(self._connection, query) for row in rows}


def _work(row: Any) -> ObservedWork:
    return ObservedWork(
        cluster=row.cluster,
        name=row.name,
        uid=row.uid,
        resource_version=row.resource_version,
        module=row.module,
        content_hash=row.content_hash,
        observed_hash=row.observed_hash,
        served=row.served,
        conditions={kind: WorkCondition(**condition) for kind, condition in row.conditions.items()},
        feedback=row.feedback,
        problem=row.problem,
        is_deleting=row.is_deleting,
        is_gone=row.is_gone,
    )


def _row(work: ObservedWork, *, posted: str | None) -> dict[str, Any]:
    row = {
        "cluster": work.cluster,
        "name": work.name,
        "uid": work.uid,
        "module": work.module,
        "content_hash": work.content_hash,
        "observed_hash": work.observed_hash,
        "posted_hash": posted,
        "served": dict(work.served),
        "conditions": {kind: dataclasses.asdict(condition) for kind, condition in work.conditions.items()},
        "feedback": dict(work.feedback),
        "problem": work.problem,
        "is_deleting": work.is_deleting,
        "is_gone": work.is_gone,
        "resource_version": work.resource_version,
    }
    return {name: storable(value) for name, value in row.items()}

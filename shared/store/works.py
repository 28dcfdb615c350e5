"""ManifestWorks as last known. Watcher and dispatcher both write: the newest resourceVersion wins.

The dispatcher stores what the API server answered to its own write at once, so that it never decides on a state
from before that write, however far behind the watch is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from shared.domain.canonical import without_nul
from shared.domain.work import ObservedWork, WorkCondition
from shared.store.database import Connection, text_array
from shared.store.tables import works


async def record_works(
    connection: Connection, observed: Sequence[ObservedWork], *, is_own_write: bool
) -> set[tuple[str, str]]:
    """Store works unless something newer is known.

    Args:
        connection: an open transaction.
        observed: at most one entry per work.
        is_own_write: the content is what we just wrote; later observations are compared to it.

    Returns:
        (cluster, name) of those that were stored.
    """
    if not observed:
        return set()
    rows = [_row(work, posted=work.observed_hash if is_own_write else None) for work in observed]
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
    stored = await connection.execute(
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


async def mark_gone(
    connection: Connection, keys: Iterable[tuple[str, str]], *, resource_version: int
) -> set[tuple[str, str]]:
    """Record that works no longer exist as of `resource_version`. Returns those for which that was news."""
    wanted = list(keys)
    if not wanted:
        return set()
    pairs = sa.func.unnest(
        text_array(cluster for cluster, _ in wanted), text_array(name for _, name in wanted)
    )
    missing = pairs.table_valued("cluster", "name").render_derived(name="missing")
    gone = await connection.execute(
        sa.update(works)
        .where(
            works.c.cluster == missing.c.cluster,
            works.c.name == missing.c.name,
            works.c.resource_version <= resource_version,
            ~works.c.is_gone,
        )
        .values(is_gone=True, resource_version=resource_version)
        .returning(works.c.cluster, works.c.name)
    )
    return {(cluster, name) for cluster, name in gone}


def read_work(row: Any) -> ObservedWork:
    """The domain's value of a row of `works`."""
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
    return {name: without_nul(value) for name, value in row.items()}

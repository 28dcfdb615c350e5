"""Stores which artifacts are needed, and by which module for which kernel."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert

from services.dispatcher.catalog import outcome_of
from services.dispatcher.demand import Wanted
from services.dispatcher.picture import Picture
from shared.store import artifacts
from shared.store.database import Engine, chunks
from shared.store.tables import module_kernels

log = structlog.get_logger()

_WAS_THERE: sa.ColumnElement[bool] = sa.literal_column("xmax <> 0")
"""Of a row that an upsert returns: Postgres locked an older version of it."""


async def want_artifacts(engine: Engine, picture: Picture) -> tuple[Picture, bool]:
    """Make every artifact of the picture wanted.

    A module that asks again for what it had before (a rebuild trigger that is lowered or taken away, a Dockerfile
    that is put back) has its image looked at again: since then its tag may have got another one.

    Returns:
        The picture as it is now, and whether something was announced.
    """
    wanted = {
        key: need
        for key, need in picture.needs.items()
        if isinstance(need, Wanted) and not picture.modules[key[0]].stored.is_deleting
    }
    if not wanted:
        return picture, False
    rows = [
        {"module": module, "kernel": kernel, "artifact_key": need.request.key}
        for (module, kernel), need in sorted(wanted.items())
    ]
    others: set[str] = set()
    async with engine.begin() as connection:
        for chunk in chunks(rows):
            statement = insert(module_kernels).values(chunk)
            moved = await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["module", "kernel"],
                    set_={"artifact_key": statement.excluded.artifact_key},
                    where=module_kernels.c.artifact_key != statement.excluded.artifact_key,
                ).returning(module_kernels.c.artifact_key, _WAS_THERE)
            )
            others |= {key for key, was_there in moved if was_there}
        new = await artifacts.want(connection, [need.request for need in wanted.values()])
        again = await artifacts.check_again(connection, others - set(new))
    for key in new:
        log.info("artifact.wanted", artifact=key[:16])
    for key in again:
        log.info("artifact.wanted_again", artifact=key[:16])
    return _without(picture, again), bool(new or again)


def _without(picture: Picture, keys: Collection[str]) -> Picture:
    """The picture in which these artifacts are not ready any more."""
    if not keys:
        return picture
    waiting = {
        place: outcome_of(need, {})
        for place, need in picture.needs.items()
        if isinstance(need, Wanted) and need.request.key in keys
    }
    return replace(picture, outcomes={**picture.outcomes, **waiting})

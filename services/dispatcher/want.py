"""Stores which artifacts are needed, and by which module for which kernel."""

from __future__ import annotations

import structlog
from sqlalchemy.dialects.postgresql import insert

from services.dispatcher.demand import Wanted
from services.dispatcher.picture import Picture
from shared.store import artifacts
from shared.store.database import Engine, chunks
from shared.store.tables import module_kernels

log = structlog.get_logger()


async def want_artifacts(engine: Engine, picture: Picture) -> bool:
    """Make every artifact of the picture wanted. Returns whether some were not before."""
    wanted = {
        key: need
        for key, need in picture.needs.items()
        if isinstance(need, Wanted) and not picture.modules[key[0]].stored.is_deleting
    }
    if not wanted:
        return False
    rows = [
        {"module": module, "kernel": kernel, "artifact_key": need.request.key}
        for (module, kernel), need in sorted(wanted.items())
    ]
    async with engine.begin() as connection:
        for chunk in chunks(rows):
            statement = insert(module_kernels).values(chunk)
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["module", "kernel"],
                    set_={"artifact_key": statement.excluded.artifact_key},
                    where=module_kernels.c.artifact_key != statement.excluded.artifact_key,
                )
            )
        new = await artifacts.want(connection, [need.request for need in wanted.values()])
    for key in new:
        log.info("artifact.wanted", artifact=key[:16])
    return bool(new)

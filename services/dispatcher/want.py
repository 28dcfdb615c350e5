"""Stores which artifacts are needed, and by which module for which kernel."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import structlog

from services.dispatcher.catalog import outcome_of
from services.dispatcher.demand import Wanted
from services.dispatcher.picture import Picture
from shared.runtime.fail_point import FailPoint, fail_point
from shared.store import artifacts
from shared.store.port import Store

log = structlog.get_logger()


async def want_artifacts(store: Store, picture: Picture) -> tuple[Picture, bool]:
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
    async with store.begin() as transaction:
        others = await transaction.put_module_kernels(
            {place: need.request.key for place, need in wanted.items()}
        )
        new = await artifacts.want(transaction, [need.request for need in wanted.values()])
        # A module that is going still needs its artifacts in the picture, but wants none that were given up.
        dropped = picture.dropped & {need.request.key for need in wanted.values()}
        again = await artifacts.check_again(transaction, (others | dropped) - set(new))
    for key in new:
        log.info("artifact.wanted", artifact=key[:16])
        fail_point(FailPoint.ARTIFACTS_WANTED)
    for key in again:
        log.info("artifact.wanted_again", artifact=key[:16])
    return _without(picture, again), bool(new or again)


async def forget_unneeded(store: Store, picture: Picture, modules: Collection[str] | None = None) -> None:
    """Give up artifacts that these modules (None: all) needed, and that nobody needs any more.

    The picture must show these modules on all their clusters.
    """
    places = {
        (module, str(kernel)) for (module, kernel), need in picture.needs.items() if isinstance(need, Wanted)
    }
    unread = {name for name, read in picture.modules.items() if read.module.spec is None}
    async with store.begin() as transaction:
        await transaction.keep_module_kernels(places, of=modules, unread=unread)
        dropped = await artifacts.drop_unneeded(transaction)
    for key in dropped:
        log.info("artifact.dropped", artifact=key[:16])


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

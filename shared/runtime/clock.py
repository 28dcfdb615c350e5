"""The one place where the time of day is read. Leases use the database's clock, never this one."""

from __future__ import annotations

import asyncio
import datetime as dt


def now() -> dt.datetime:
    """The current time, in UTC."""
    return dt.datetime.now(dt.UTC)  # noqa: TID251 - this is the place the ban points to


def elapsed() -> float:
    """Seconds on the running event loop's clock, which no change of the date moves: for waiting and measuring."""
    return asyncio.get_running_loop().time()

"""The one place where the time of day is read. Leases use the database's clock, never this one."""

from __future__ import annotations

import datetime


def now() -> datetime.datetime:
    """The current time, in UTC."""
    return datetime.datetime.now(datetime.UTC)  # noqa: TID251 - this is the place the ban points to

"""Waiting for something, but not for ever.

`asyncio.wait_for` of Python 3.11 may swallow a cancellation that arrives just as what it waits for happens; a task that
was told to end then goes on. `asyncio.timeout` does not.
"""

from __future__ import annotations

import asyncio


async def pause(event: asyncio.Event, seconds: float) -> bool:
    """Wait until `event` is set, at most `seconds`. Returns whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False

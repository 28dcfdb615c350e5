"""Waiting that can be ended from outside, whatever happens at the same moment."""

import asyncio

import pytest

from shared.runtime.pause import pause


async def test_it_ends_with_the_event_or_the_time() -> None:
    event = asyncio.Event()
    assert await pause(event, 0.01) is False
    event.set()
    assert await pause(event, 60) is True


async def test_a_cancellation_that_comes_with_the_event_is_not_swallowed() -> None:
    event = asyncio.Event()
    went_on = False

    async def wait() -> None:
        nonlocal went_on
        await pause(event, 60)
        went_on = True

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    event.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not went_on

"""When things that failed are looked at again."""

import asyncio
import math

import pytest

from services.dispatcher.again import MAX_RETRY_SECONDS, Again
from simulation.loop import SimulationLoop
from simulation.run import simulate


def test_pauses_grow_to_a_limit_and_start_anew_after_a_success() -> None:
    async def scenario(_: SimulationLoop) -> None:
        again: Again[str] = Again()
        pauses = []
        for _failure in range(12):
            again.failed({"m"})
            pauses.append(again.seconds_left())
            await asyncio.sleep(pauses[-1])
            assert again.take() == {"m"}
        assert pauses[0] <= 2 < pauses[3]
        assert pauses[6:] == pytest.approx([MAX_RETRY_SECONDS] * 6)
        again.succeeded({"m"})
        assert len(again) == 0
        again.failed({"m"})
        assert again.seconds_left() <= 2

    simulate(scenario, seed=1)


def test_a_look_that_is_planned_is_not_put_off() -> None:
    async def scenario(_: SimulationLoop) -> None:
        again: Again[str] = Again()
        again.failed({"m"})
        left = again.seconds_left()
        for _ in range(5):
            again.failed({"m"})
            again.plan({"m"}, 60)
        assert again.seconds_left() == left
        assert again.planned.is_set()

    simulate(scenario, seed=1)


def test_each_key_has_its_own_time_and_is_taken_once() -> None:
    async def scenario(_: SimulationLoop) -> None:
        again: Again[str] = Again()
        again.plan({"soon"}, 1)
        again.plan({"late"}, 5)
        assert again.take() == set()
        await asyncio.sleep(1)
        assert again.take() == {"soon"}
        assert again.take() == set()
        assert again.seconds_left() == pytest.approx(4)
        again.succeeded({"late", "unknown"})
        assert again.seconds_left() == math.inf
        assert len(again) == 0

    simulate(scenario, seed=1)

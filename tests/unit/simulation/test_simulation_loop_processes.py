"""Simulated processes live, freeze and die together with everything that they started."""

import asyncio
import contextlib
import random

import pytest

from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.process import SimulatedProcess
from simulation.run import simulate


class Part:
    """Something behind lines that keeps what processes did to it."""

    def __init__(self, loop: SimulationLoop) -> None:
        self.loop = loop
        self.effects: list[tuple[str, float]] = []

    def line(self, process: SimulatedProcess) -> Line:
        line = Line(process.name, Weather(), random.Random(self.loop.seed))
        process.lines.append(line)
        return line

    async def act(self, line: Line, effect: str) -> None:
        async with line.crossing(effect):
            self.effects.append((effect, self.loop.time()))

    async def act_for_ever(self, line: Line, effect: str) -> None:
        while True:
            await self.act(line, effect)
            await asyncio.sleep(0.1)


def test_a_killed_process_has_no_effect_any_more() -> None:
    async def main(loop: SimulationLoop) -> None:
        part, process = Part(loop), SimulatedProcess("worker", loop)
        line = part.line(process)

        async def swallow() -> None:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await part.act_for_ever(line, "swallower")
                await asyncio.sleep(0.1)

        async def clean_up() -> None:
            try:
                await part.act_for_ever(line, "cleaner")
            finally:
                await part.act(line, "farewell")

        async def body() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(swallow())
                group.create_task(clean_up())

        running = process.start(body)
        await asyncio.sleep(1.0)
        assert process.is_alive
        assert {effect for effect, _ in part.effects} == {"swallower", "cleaner"}
        process.kill()
        killed = len(part.effects)
        await asyncio.sleep(10)
        assert not process.is_alive
        assert running.done()
        assert len(part.effects) == killed
        assert [task for task in loop.tasks() if not task.done()] == [asyncio.current_task()]
        with pytest.raises(RuntimeError, match="worker is dead"):
            process.start(body)

    for seed in range(20):
        simulate(main, seed=seed)


def test_what_a_process_does_after_its_death_fails_no_run() -> None:
    async def main(loop: SimulationLoop) -> None:
        process = SimulatedProcess("p", loop)

        async def body() -> None:
            try:
                await asyncio.sleep(100)
            finally:
                raise ValueError("of no interest")

        process.start(body)
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(1)

    simulate(main, seed=1)


def test_a_process_can_kill_itself_and_others_live_on() -> None:
    async def main(loop: SimulationLoop) -> list[tuple[str, float]]:
        part = Part(loop)
        dying, living = SimulatedProcess("dying", loop), SimulatedProcess("living", loop)
        line = part.line(dying)

        async def die() -> None:
            await part.act(line, "before")
            dying.kill()
            await part.act(line, "after")

        dying.start(die)
        living.start(lambda: part.act_for_ever(part.line(living), "alive"))
        await asyncio.sleep(5)
        assert living.is_alive
        return part.effects

    effects = simulate(main, seed=1)
    assert [effect for effect, _ in effects if effect != "alive"] == ["before"]
    assert max(time for effect, time in effects if effect == "alive") > 4.5


def test_the_end_of_the_main_coroutine_ends_the_process() -> None:
    async def main(loop: SimulationLoop) -> list[tuple[str, float]]:
        part, process = Part(loop), SimulatedProcess("p", loop)
        line = part.line(process)

        async def body() -> str:
            background = asyncio.create_task(part.act_for_ever(line, "beside"))
            await asyncio.sleep(1)
            assert not background.done()
            return "done"

        assert await process.start(body) == "done"
        await asyncio.sleep(5)
        assert not process.is_alive
        return part.effects

    effects = simulate(main, seed=1)
    assert len(effects) > 5
    assert max(time for _, time in effects) < 1.1


def test_a_paused_process_stands_still_and_goes_on() -> None:
    async def main(loop: SimulationLoop) -> list[tuple[str, float]]:
        part, process = Part(loop), SimulatedProcess("p", loop)
        process.start(lambda: part.act_for_ever(part.line(process), "tick"))
        await asyncio.sleep(1)
        process.pause()
        assert process.is_paused
        await asyncio.sleep(60)
        process.resume()
        await asyncio.sleep(1)
        return part.effects

    for seed in range(10):
        times = [time for _, time in simulate(main, seed=seed)]
        assert not [time for time in times if 1.0 < time < 61.0]
        assert len([time for time in times if time < 1.0]) > 5
        assert len([time for time in times if time >= 61.0]) > 5


def test_a_deadline_that_passed_during_a_pause_is_met_after_it() -> None:
    async def main(loop: SimulationLoop) -> float:
        process = SimulatedProcess("p", loop)

        async def body() -> float:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await asyncio.Event().wait()
            return loop.time()

        running = process.start(body)
        await asyncio.sleep(1)
        process.pause()
        await asyncio.sleep(59)
        process.resume()
        return await running

    assert simulate(main, seed=1) == 60.0


def test_what_others_tell_a_paused_process_waits() -> None:
    async def main(loop: SimulationLoop) -> list[str]:
        process = SimulatedProcess("p", loop)
        queue, trace = asyncio.Queue[str](), list[str]()

        async def body() -> None:
            while not process.stopping.is_set():
                trace.append(await queue.get())

        running = process.start(body)
        queue.put_nowait("first")
        await asyncio.sleep(1)
        process.pause()
        queue.put_nowait("second")
        process.stop()
        await asyncio.sleep(10)
        assert trace == ["first"]
        process.resume()
        await running
        return trace

    assert simulate(main, seed=1) == ["first", "second"]


def test_a_paused_process_can_be_killed() -> None:
    async def main(loop: SimulationLoop) -> int:
        part, process = Part(loop), SimulatedProcess("p", loop)
        running = process.start(lambda: part.act_for_ever(part.line(process), "tick"))
        await asyncio.sleep(1)
        process.pause()
        before = len(part.effects)
        process.kill()
        await asyncio.sleep(10)
        assert running.cancelled()
        return len(part.effects) - before

    assert simulate(main, seed=1) == 0


def test_a_process_is_asked_to_stop() -> None:
    async def main(loop: SimulationLoop) -> str:
        process = SimulatedProcess("p", loop)

        async def body() -> str:
            await process.stopping.wait()
            await asyncio.sleep(2)
            return f"ended at {loop.time()}"

        running = process.start(body)
        await asyncio.sleep(1)
        process.stop()
        return await running

    assert simulate(main, seed=1) == "ended at 3.0"

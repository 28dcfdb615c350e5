"""Virtual time, seeded order, and errors that cannot hide."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from simulation.loop import Deadlock, Livelock, SimulationLoop
from simulation.process import SimulatedProcess
from simulation.run import simulate


async def talk(trace: list[str], name: str) -> None:
    for number in range(5):
        trace.append(f"{name}{number}")
        await asyncio.sleep(0)


def conversation(seed: int) -> list[str]:
    """Four processes that talk at the same instant, and what chance gives one of them."""
    trace: list[str] = []

    async def main(loop: SimulationLoop) -> None:
        processes = [SimulatedProcess(name, loop) for name in "abcd"]
        mains = [process.start(lambda name=process.name: talk(trace, name)) for process in processes]
        await asyncio.gather(*mains)
        trace.append(f"{loop.chance('x').random()} {loop.steps} {loop.time()}")

    simulate(main, seed=seed)
    return trace


def test_a_seed_repeats_a_run_and_another_one_orders_processes_otherwise() -> None:
    assert conversation(1) == conversation(1)
    assert len({tuple(conversation(seed)) for seed in range(20)}) == 20


def test_what_one_process_does_keeps_asyncios_order() -> None:
    for name in "abcd":
        told = [word for word in conversation(3) if word.startswith(name)]
        assert told == [f"{name}{number}" for number in range(5)]


def test_sets_of_tasks_have_the_same_order_in_every_run() -> None:
    def run() -> list[int]:
        cancelled: list[int] = []

        async def wait(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(number)

        async def fail() -> None:
            await asyncio.sleep(1)
            raise ValueError

        async def main(_: SimulationLoop) -> None:
            with contextlib.suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    for number in range(50):
                        group.create_task(wait(number))
                    group.create_task(fail())

        simulate(main, seed=1)
        return cancelled

    runs = [run() for _ in range(5)]
    assert sorted(runs[0]) == list(range(50))
    assert all(one == runs[0] for one in runs)


def test_time_is_virtual() -> None:
    async def main(loop: SimulationLoop) -> list[float]:
        times = [loop.time()]
        await asyncio.sleep(3600)
        times.append(loop.time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(86400):
                await asyncio.Event().wait()
        times.append(loop.time())
        return times

    started = time.monotonic()
    assert simulate(main, seed=1) == [0.0, 3600.0, 90000.0]
    assert time.monotonic() - started < 5


def test_timers_run_in_the_order_of_their_times_and_without_order_at_the_same_time() -> None:
    def run(seed: int) -> list[str]:
        trace: list[str] = []

        async def wait(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            trace.append(name)

        async def main(_: SimulationLoop) -> None:
            await asyncio.gather(
                wait("late", 2), *(wait(f"same{n}", 1) for n in range(5)), wait("early", 0.5)
            )

        simulate(main, seed=seed)
        return trace

    orders = {tuple(run(seed)) for seed in range(20)}
    assert {(order[0], order[-1]) for order in orders} == {("early", "late")}
    assert len(orders) > 10


def test_a_cancelled_timer_never_runs_and_is_let_go() -> None:
    async def main(loop: SimulationLoop) -> int:
        ran: list[int] = []
        for number in range(10_000):
            loop.call_later(1, ran.append, number).cancel()
        last = loop.call_later(2, ran.append, 1)
        assert len(loop._timers) < 1000
        await asyncio.sleep(3)
        last.cancel()
        return len(ran)

    assert simulate(main, seed=1) == 1


def test_locks_semaphores_queues_and_groups_work() -> None:
    async def main(_: SimulationLoop) -> tuple[int, int, list[int]]:
        lock, seats, queue = asyncio.Lock(), asyncio.Semaphore(3), asyncio.Queue[int](maxsize=2)
        inside = most = shared = 0
        got: list[int] = []

        async def work(number: int) -> None:
            nonlocal inside, most, shared
            async with seats:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.1)
                inside -= 1
            async with lock:
                before = shared
                await asyncio.sleep(0.01)
                shared = before + 1
            await queue.put(number)

        async def take() -> None:
            got.extend([await queue.get() for _ in range(20)])

        async with asyncio.TaskGroup() as group:
            group.create_task(take())
            for number in range(20):
                group.create_task(work(number))
        return most, shared, got

    most, shared, got = simulate(main, seed=1)
    assert (most, shared, sorted(got)) == (3, 20, list(range(20)))


def test_functions_for_threads_run_in_this_one() -> None:
    async def main(_: SimulationLoop) -> tuple[int, str]:
        number = await asyncio.to_thread(lambda value: value + 1, 1)
        with pytest.raises(ValueError, match="broken") as caught:
            await asyncio.to_thread(_break)
        return number, str(caught.value)

    assert simulate(main, seed=1) == (2, "broken")


def _break() -> None:
    raise ValueError("broken")


def test_a_deadlock_names_the_tasks_and_where_they_wait() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def main(loop: SimulationLoop) -> None:
        SimulatedProcess("watcher-1", loop).start(forever)
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock) as caught:
        simulate(main, seed=1)
    lines = str(caught.value).splitlines()
    assert any("watcher-1: " in line and "forever" in line and "locks.py" in line for line in lines), lines
    assert any("world: " in line and "main" in line and "test_simulation_loop.py" in line for line in lines)


def test_everything_paused_is_a_deadlock_too() -> None:
    async def main(loop: SimulationLoop) -> None:
        process = SimulatedProcess("frozen", loop)
        running = process.start(lambda: asyncio.sleep(1))
        process.pause()
        await running

    with pytest.raises(Deadlock, match=r"frozen \(paused\)"):
        simulate(main, seed=1)


def test_a_loop_that_never_waits_is_found() -> None:
    async def main(_: SimulationLoop) -> None:
        while True:  # noqa: ASYNC110 - that is the mistake
            await asyncio.sleep(0)

    with pytest.raises(Livelock, match=r"seed 7.*no time passed"):
        simulate(main, seed=7)


async def fail() -> None:
    raise ValueError("lost")


def test_a_failure_that_nobody_notices_fails_the_run() -> None:
    async def task(_: SimulationLoop) -> None:
        asyncio.create_task(fail())  # noqa: RUF006
        await asyncio.sleep(1)

    async def many_tasks(loop: SimulationLoop) -> None:
        await task(loop)
        for _ in range(1000):
            await asyncio.create_task(asyncio.sleep(0.01))

    async def callback(loop: SimulationLoop) -> None:
        loop.call_soon(_break)
        await asyncio.sleep(1)

    async def process(loop: SimulationLoop) -> None:
        SimulatedProcess("p", loop).start(fail)
        await asyncio.sleep(100)

    for main in (task, many_tasks, callback, process):
        with pytest.raises(ExceptionGroup) as caught:
            simulate(main, seed=1)
        assert [type(error) for error in caught.value.exceptions] == [ValueError], main


def test_a_failure_that_somebody_notices_is_none() -> None:
    async def main(loop: SimulationLoop) -> str:
        task = SimulatedProcess("p", loop).start(fail)
        await asyncio.sleep(1)
        with pytest.raises(ValueError, match="lost"):
            await task
        return "noticed"

    assert simulate(main, seed=1) == "noticed"


def test_a_failed_run_carries_what_nobody_noticed() -> None:
    async def main(_: SimulationLoop) -> None:
        asyncio.create_task(fail())  # noqa: RUF006
        await asyncio.sleep(1)
        raise RuntimeError("the invariant does not hold")

    with pytest.raises(RuntimeError, match="the invariant") as caught:
        simulate(main, seed=1)
    assert "lost" in "".join(caught.value.__notes__)


def test_a_task_that_does_not_end_is_told() -> None:
    async def stubborn() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(10)

    async def main(_: SimulationLoop) -> None:
        asyncio.create_task(stubborn())  # noqa: RUF006
        await asyncio.sleep(1)

    with pytest.raises(ExceptionGroup) as caught:
        simulate(main, seed=1)
    assert "stubborn" in str(caught.value.exceptions[0])


def test_generators_that_were_left_open_are_closed() -> None:
    closed: list[str] = []

    async def count() -> AsyncIterator[int]:
        try:
            for number in range(10):
                await asyncio.sleep(0.1)
                yield number
        finally:
            await asyncio.sleep(0.1)
            closed.append("closed")

    async def main(_: SimulationLoop) -> int:
        async for number in count():
            if number == 3:
                break
        await asyncio.sleep(1)
        return number

    assert simulate(main, seed=1) == 3
    assert closed == ["closed"]


def test_a_simulation_is_fast() -> None:
    async def work() -> None:
        for _ in range(300):
            async with asyncio.timeout(60):
                await asyncio.sleep(0.001)

    async def main(loop: SimulationLoop) -> int:
        await asyncio.gather(*(SimulatedProcess(f"p{n}", loop).start(work) for n in range(50)))
        return loop.steps

    started = time.process_time()
    steps = simulate(main, seed=1)
    assert steps > 30_000
    assert steps / (time.process_time() - started) > 20_000

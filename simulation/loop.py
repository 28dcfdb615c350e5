"""An asyncio event loop in which time is a number, chance has a seed, and nothing outside of the program exists.

Order: within one process the loop keeps asyncio's own promise (callbacks run in the order in which they became
ready), because production code may rest on it and a real loop never breaks it. Between processes there is no order:
each step takes the next callback of a process drawn at random. Timers that fall due at the same instant have no order
either. The order of everything else inside a process comes from the random delays of its lines, as on a real network.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from asyncio.base_events import BaseEventLoop
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, cast

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_STEPS_PER_INSTANT = 100_000
"""More steps than this while the time stands still are a loop that never waits."""

END_SECONDS = 60
"""How long tasks that were cancelled may take to end."""

_MIN_CANCELLED_TIMERS = 100


class SimulationError(Exception):
    """The simulated program cannot go on; the message lists tasks and where each of them waits."""


class Deadlock(SimulationError):
    """Nothing is ready to run and no timer is set."""


class Livelock(SimulationError):
    """Something runs again and again without ever waiting."""


class Group:
    """The callbacks and tasks of one process. Those of no process make a group, too: the world's."""

    __slots__ = ("_most", "is_dead", "is_frozen", "name", "ready", "tasks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: list[SimulatedTask] = []
        self.is_frozen = False
        self.is_dead = False
        self._most = 32

    def keep(self, task: SimulatedTask) -> None:
        """Hold a task that is new: asyncio itself would let a pending one be collected."""
        if len(self.tasks) >= self._most:
            self.tasks = [one for one in self.tasks if not one.done() or _is_unretrieved(one)]
            self._most = 2 * len(self.tasks) + 32
        self.tasks.append(task)

    def pending(self) -> list[SimulatedTask]:
        """Tasks that have not ended, in the order in which they were started."""
        return [task for task in self.tasks if not task.done()]


GROUP: contextvars.ContextVar[Group] = contextvars.ContextVar("simulated_process")
"""Whose code runs now. Unset outside of all simulated processes."""


class SimulatedTask(asyncio.Task[Any]):
    """A task that has a number: sets of tasks iterate in the same order in every run.

    Attributes:
        is_excused: it ended, or will end, after the death of its process; its failure says nothing.
    """

    __slots__ = ("group", "is_excused", "number")

    def __init__(self, coroutine: Any, *, group: Group, number: int, name: str, **rest: Any) -> None:
        self.number = number  # asyncio hashes the task while it is made
        self.group = group
        self.is_excused = group.is_dead
        super().__init__(coroutine, name=name, **rest)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulationLoop(BaseEventLoop):
    """A loop with virtual time. Drive it with `simulation.run.simulate`, or as any loop.

    Attributes:
        seed: repeats a run.
        steps: callbacks that ran so far.
        world: the context of no process: tasks that belong to the simulated world itself start with a copy of it.
        failures: errors that nobody handled; they fail the run.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.set_debug(False)
        self.seed = seed
        self.steps = 0
        self.world = contextvars.Context()
        self.failures: list[BaseException] = []
        self._random = self.chance("loop").random
        self._now = 0.0
        self._steps_before = 0
        self._tasks = 0
        self._timers: list[tuple[float, float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self._timers_cancelled = 0
        self._outside = Group("world")
        self._groups = [self._outside]
        self._active: list[Group] = []
        self.set_exception_handler(lambda _, context: self._collect(context))

    def chance(self, name: str) -> random.Random:
        """A random generator of its own for each name: what one part draws never changes what another does."""
        return random.Random(f"{self.seed}/{name}")

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._now

    # Scheduling

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Run a callback at this instant, after whatever its process has ready already."""
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        if context is None:
            context = contextvars.copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        self._push(context.get(GROUP, self._outside), handle)
        return handle

    call_soon_threadsafe = call_soon  # there is one thread

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback in `delay` seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback at a time of `time()`."""
        if context is None:  # an empty context is false
            context = contextvars.copy_context()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        cast("Any", handle)._scheduled = True  # so that its cancellation is told to the loop
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._random(), self._timers_made, handle))
        return handle

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """Start a task; it belongs to the process that `context`, or else the running code, belongs to."""
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        group = GROUP.get(self._outside) if context is None else context.get(GROUP, self._outside)
        self._tasks += 1
        label = f"{name or getattr(coro, '__qualname__', 'task')}#{self._tasks}"
        task = SimulatedTask(coro, group=group, number=self._tasks, name=label, loop=self, context=context)
        group.keep(task)
        return task

    def run_in_executor(
        self,
        executor: Executor | None,  # noqa: ARG002 - asyncio's name
        func: Callable[[*Ts], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        """Call `func` at once; its result arrives one step later. So does `asyncio.to_thread`."""
        future: asyncio.Future[T] = self.create_future()
        try:
            self.call_soon(_settle, future, future.set_result, func(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits the result
            self.call_soon(_settle, future, future.set_exception, error)
        return future

    # Processes

    def add_group(self, name: str) -> Group:
        """The group of a new process."""
        group = Group(name)
        self._groups.append(group)
        return group

    def freeze(self, group: Group) -> None:
        """Run nothing of a group until it thaws."""
        group.is_frozen = True
        if group in self._active:
            self._active.remove(group)

    def thaw(self, group: Group) -> None:
        """Let a group go on with everything that became ready meanwhile."""
        if group.is_frozen:
            group.is_frozen = False
            if group.ready:
                self._active.append(group)

    def thaw_all(self) -> None:
        """Let everybody go on."""
        for group in self._groups:
            self.thaw(group)

    def forget(self, group: Group) -> None:
        """Let go of a dead group, unless a failure of it may still have to be told."""
        if all(task.is_excused or not _is_unretrieved(task) for task in group.tasks):
            self._groups.remove(group)

    def tasks(self) -> Iterator[SimulatedTask]:
        """All tasks that the loop still holds, those of each process together."""
        for group in self._groups:
            yield from group.tasks

    def unhandled(self) -> list[BaseException]:
        """What went wrong without anybody noticing: failed callbacks and tasks whose exception nobody asked for.

        What a process does after its death does not count.
        """
        found = list(self.failures)
        for task in self.tasks():
            if not task.is_excused and task.done() and _is_unretrieved(task):
                error = task.exception()
                assert error is not None
                error.add_note(f"in task {task.get_name()} of {task.group.name}")
                found.append(error)
        return found

    # Running

    def _push(self, group: Group, handle: asyncio.Handle) -> None:
        if not group.ready and not group.is_frozen:
            self._active.append(group)
        group.ready.append(handle)

    def _run_once(self) -> None:
        """One step; BaseEventLoop calls this for ever."""
        timers = self._timers
        active = self._active
        if not active or (timers and timers[0][0] <= self._now):
            self._take_due_timers()
        index = int(self._random() * len(active)) if len(active) > 1 else 0
        group = active[index]
        handle = group.ready.popleft()
        if not group.ready:
            active[index] = active[-1]
            active.pop()
        if not handle._cancelled:
            self.steps += 1
            if self.steps - self._steps_before > MAX_STEPS_PER_INSTANT:
                self._steps_before = self.steps
                raise Livelock(self._report(f"{MAX_STEPS_PER_INSTANT} steps and no time passed"))
            handle._run()

    def _take_due_timers(self) -> None:
        """Move what is due to its group; with nothing ready, go on to the next instant at which there is."""
        timers = self._timers
        while timers and (not self._active or timers[0][0] <= self._now):
            when, _, _, handle = heapq.heappop(timers)
            cast("Any", handle)._scheduled = False
            if handle._cancelled:
                self._timers_cancelled -= 1
                continue
            if when > self._now:
                self._now = when
                self._steps_before = self.steps
            self._push(cast("Any", handle)._context.get(GROUP, self._outside), handle)
        if not self._active:
            raise Deadlock(self._report("nothing can run any more"))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Told by a timer; many cancelled ones are dropped together."""
        self._timers_cancelled += cast("Any", handle)._scheduled
        if self._timers_cancelled > max(_MIN_CANCELLED_TIMERS, len(self._timers) // 2):
            self._timers = [timer for timer in self._timers if not timer[3]._cancelled]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def _collect(self, context: dict[str, Any]) -> None:
        """Keep what asyncio would only log, unless it is of a process that is dead anyway."""
        task = context.get("task") or context.get("future")
        if isinstance(task, SimulatedTask) and task.is_excused:
            return
        error = context.get("exception") or RuntimeError(context["message"])
        error.add_note(f"at {self._now:.6f} s: {context['message']} {context.get('handle') or task or ''}")
        self.failures.append(error)

    def _report(self, problem: str) -> str:
        lines = [f"at {self._now:.6f} s, step {self.steps}, seed {self.seed}: {problem}"]
        for group in self._groups:
            frozen = " (paused)" if group.is_frozen else ""
            lines += [
                f"  {group.name}{frozen}: {task.get_name()} waits at {where_waits(task)}"
                for task in group.pending()
            ]
        return "\n".join(lines)


def where_waits(task: asyncio.Task[Any]) -> str:
    """The innermost place at which a task is suspended: file, line and function."""
    awaited: Any = task.get_coro()
    frame = None
    while awaited is not None:
        frame = _first(awaited, "cr_frame", "gi_frame", "ag_frame") or frame
        awaited = _first(awaited, "cr_await", "gi_yieldfrom", "ag_await")
    if frame is None:
        return "its start"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}"


def _first(value: object, *names: str) -> Any:
    return next((found for name in names if (found := getattr(value, name, None)) is not None), None)


def _is_unretrieved(task: asyncio.Task[Any]) -> bool:
    """Whether a task failed and nobody asked for its exception."""
    return bool(cast("Any", task)._log_traceback)


def _settle(future: asyncio.Future[T], settle: Callable[[Any], None], outcome: Any) -> None:
    if not future.done():
        settle(outcome)

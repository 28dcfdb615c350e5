"""A simulated operating system process: some services' coroutines that live, freeze and die together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from simulation.line import Line
from simulation.loop import END_SECONDS, GROUP, SimulationLoop

T = TypeVar("T")


class SimulatedProcess:
    """Everything that starts inside of it belongs to it: tasks, their tasks, callbacks and timers.

    A process that died does not come back: make a new one with new lines. When one of the coroutines it was started
    with fails, or all of them returned, it ends as if killed, like a program whose main function is over.

    Attributes:
        name: for reports.
        lines: all its ways out, which die with it.
        stopping: set by `stop`; hand it to the service as its stop event.
    """

    def __init__(self, name: str, loop: SimulationLoop) -> None:
        self.name = name
        self.lines: list[Line] = []
        self.stopping = asyncio.Event()
        self._loop = loop
        self._group = loop.add_group(name)
        self._mains: list[asyncio.Task[Any]] = []

    @property
    def is_alive(self) -> bool:
        """Started and neither killed nor over."""
        return bool(self._mains) and not self._group.is_dead

    @property
    def is_paused(self) -> bool:
        """Between `pause` and `resume`."""
        return self._group.is_frozen

    def start(self, main: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Run a coroutine in the process. An exception that nobody takes from the task fails the run."""
        if self._group.is_dead:
            raise RuntimeError(f"{self.name} is dead: start another process")
        context = self._loop.world.copy()
        context.run(GROUP.set, self._group)
        task = self._loop.create_task(context.run(main), context=context)
        self._mains.append(task)
        task.add_done_callback(self._end, context=self._loop.world.copy())
        return task

    def stop(self) -> None:
        """SIGTERM: ask the services to end. A paused process hears it when it goes on."""
        self.stopping.set()

    def pause(self) -> None:
        """SIGSTOP: none of its code runs until `resume`."""
        if not self._group.is_dead:
            self._loop.freeze(self._group)

    def resume(self) -> None:
        """SIGCONT: it goes on; timers that fell due meanwhile run now."""
        self._loop.thaw(self._group)

    def kill(self) -> None:
        """SIGKILL: from now on it has no effect on anything behind its lines.

        Its tasks are cancelled until they end, so that nothing of them stays in the simulation.
        """
        if self._group.is_dead:
            return
        self._group.is_dead = True
        for task in self._group.pending():
            task.is_excused = True
        for line in self.lines:
            line.is_dead = True
        self._loop.thaw(self._group)
        self._cancel_tasks()
        self._loop.create_task(self._reap(), name=f"reaper of {self.name}", context=self._loop.world.copy())

    def _cancel_tasks(self) -> None:
        for task in self._group.pending():
            task.cancel()

    async def _reap(self) -> None:
        """Cancel again what swallowed its cancellation."""
        for _ in range(END_SECONDS):
            await asyncio.sleep(1.0)
            if not self._group.pending():
                self._loop.forget(self._group)
                return
            self._cancel_tasks()

    def _end(self, ended: asyncio.Task[Any]) -> None:
        """A main coroutine is over, and with it maybe the program."""
        if _has_failed(ended) or all(task.done() for task in self._mains):
            self.kill()


def _has_failed(task: asyncio.Task[Any]) -> bool:
    """Whether a task raised, without counting as having asked for its exception."""
    return cast("Any", task)._exception is not None

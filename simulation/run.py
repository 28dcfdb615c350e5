"""One run of a simulated program, from a seed to its result."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from simulation.loop import END_SECONDS, SimulationLoop, where_waits

T = TypeVar("T")


def simulate(main: Callable[[SimulationLoop], Coroutine[Any, Any, T]], *, seed: int) -> T:
    """Run `main` on a loop of its own, then end all tasks. The global random generator gets the seed, too.

    The same seed repeats the run exactly, as long as the order of string sets is the same (PYTHONHASHSEED=0).

    Returns:
        What `main` returned.

    Raises:
        Deadlock, Livelock: the program cannot go on.
        ExceptionGroup: `main` returned, but failures went unnoticed or tasks do not end.
        Exception: what `main` raised; failures that went unnoticed are in its notes.
    """
    loop = SimulationLoop(seed)
    chance = random.getstate()
    was_enabled = gc.isenabled()
    gc.disable()  # collections would end abandoned generators at moments that no seed repeats
    random.seed(seed)
    try:
        result = loop.run_until_complete(main(loop))
        unhandled = _finish(loop)
    except BaseException as error:
        for other in _finish(loop):
            error.add_note(f"unnoticed before: {other!r} {getattr(other, '__notes__', '')}")
        raise
    finally:
        loop.close()
        random.setstate(chance)
        if was_enabled:
            gc.enable()
    if unhandled:
        raise BaseExceptionGroup(f"seed {seed}: failures that nobody noticed", unhandled)
    return result


def _finish(loop: SimulationLoop) -> list[BaseException]:
    """Cancel everything until it ends. Returns the failures of the whole run."""
    unhandled = loop.unhandled()  # what happens from here on is the end's doing
    loop.thaw_all()
    loop.run_until_complete(_end_tasks(loop))
    return unhandled + _stubborn(loop)


async def _end_tasks(loop: SimulationLoop) -> None:
    for _ in range(END_SECONDS):
        pending = [task for task in loop.tasks() if not task.done() and task is not asyncio.current_task()]
        if not pending:
            break
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=1.0)
    await loop.shutdown_asyncgens()


def _stubborn(loop: SimulationLoop) -> list[BaseException]:
    """Tasks that did not end. Retrieves all exceptions, so that nothing is logged later."""
    found: list[BaseException] = []
    for task in loop.tasks():
        if not task.done():
            cast("Any", task)._log_destroy_pending = False
            found.append(
                RuntimeError(
                    f"{task.get_name()} of {task.group.name} does not end; it waits at {where_waits(task)}"
                )
            )
        elif not task.cancelled():
            task.exception()
    return found

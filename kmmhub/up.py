"""`kmmhub up`: all four services as one process tree, for people who want one command."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import Annotated

import typer

from shared.runtime.pause import pause

SERVICES = ("watcher", "dispatcher", "builder", "signer")
RESTART_SECONDS = 1.0
SHUTDOWN_SECONDS = 30.0


def up(
    builders: Annotated[int, typer.Option(min=1, help="How many builders to run.")] = 1,
    signers: Annotated[int, typer.Option(min=1, help="How many signers to run.")] = 1,
) -> None:
    """Run all services against the addresses in the environment, until interrupted.

    A service that ends is started again: each is safe to kill at any line.
    """
    from services.watcher.main import WatcherSettings
    from shared.runtime.settings import read_settings

    read_settings(WatcherSettings)  # says what the environment lacks before anything is started
    counts = {"builder": builders, "signer": signers}
    raise typer.Exit(asyncio.run(_run([name for name in SERVICES for _ in range(counts.get(name, 1))])))


async def _run(names: list[str]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(_keep_running(name, stop))
    return 0


async def _keep_running(name: str, stop: asyncio.Event) -> None:
    while not stop.is_set():
        # A session of its own, so that an interrupt from the terminal reaches it through us, once and in order.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"services.{name}", start_new_session=True
        )
        typer.echo(f"{name}: started, process {process.pid}", err=True)
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            await _end(process)
            return
        stopping.cancel()
        typer.echo(f"{name}: ended with status {process.returncode}; it is started again", err=True)
        await pause(stop, RESTART_SECONDS)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), SHUTDOWN_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()

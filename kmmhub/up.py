"""`kmmhub up`: all services as one process tree, each with its own credentials, for people who want one command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from shared.runtime.pause import pause

# Streams first: the services wait for them.
SERVICES = ("streams", "watcher", "dispatcher", "builder", "signer")
RESTART_SECONDS = 1.0
SHUTDOWN_SECONDS = 30.0


def up(
    builders: Annotated[int, typer.Option(min=1, help="How many builders to run.")] = 1,
    signers: Annotated[int, typer.Option(min=1, help="How many signers to run.")] = 1,
) -> None:
    """Run all services against the addresses in the environment, until interrupted.

    Each gets its own credentials, such as NATS_URL_BUILDER and DATABASE_URL_BUILDER, where the environment has them. A
    service that ends is started again: each is safe to kill at any line.
    """
    from kmmhub.credentials import service_environment
    from shared.runtime.settings import ProcessSettings, read_settings

    # What the environment lacks is said before anything is started.
    read_settings(ProcessSettings)
    environment = dict(os.environ)  # noqa: TID251 - handed on to the services, which read it
    environments = {name: service_environment(name, environment) for name in SERVICES}
    counts = {"builder": builders, "signer": signers}
    names = [name for name in SERVICES for _ in range(counts.get(name, 1))]
    raise typer.Exit(asyncio.run(_run(names, environments)))


def command(name: str) -> list[str]:
    """How a service is started as a process of its own."""
    if name == "streams":
        return [sys.executable, "-m", "kmmhub.main", "streams", "--watch"]
    return [sys.executable, "-m", f"services.{name}"]


async def _run(names: Sequence[str], environments: Mapping[str, Mapping[str, str]]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(_keep_running(name, environments[name], stop))
    return 0


async def _keep_running(name: str, environment: Mapping[str, str], stop: asyncio.Event) -> None:
    while not stop.is_set():
        # A session of its own, so that an interrupt from the terminal reaches it through us, once and in order.
        process = await asyncio.create_subprocess_exec(
            *command(name), env=environment, start_new_session=True
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

"""`kmmhub streams`: makes the streams of the bus, once or for as long as it runs."""

from __future__ import annotations

import asyncio
import json

import structlog

from shared.bus.connection import BusUnavailable
from shared.bus.streams import Administrator, Result, open_administrator
from shared.runtime.logging import configure_logging
from shared.runtime.pause import pause
from shared.runtime.process import Process, run
from shared.runtime.settings import BusSettings, read_settings

log = structlog.get_logger()

NAME = "streams"
RETRY_SECONDS = 1.0


def run_once(*, as_json: bool) -> str:
    """Make streams and consumers, with the settings of the environment.

    Args:
        as_json: `{"streams": [{"stream", "consumer", "action"}]}`, with consumer null for the stream itself.

    Returns:
        What was done, to be printed.

    Raises:
        InvalidSettings: the environment lacks an address.
        BusUnavailable: NATS does not answer, or refuses.
    """
    settings = read_settings(BusSettings)
    configure_logging(service=NAME, style="console", level="error")
    results = asyncio.run(make_streams(settings))
    if as_json:
        rows = [{"stream": one.stream, "consumer": one.consumer, "action": one.action} for one in results]
        return json.dumps({"streams": rows})
    return "\n".join(_told(one) for one in results)


def run_watch() -> int:
    """Make streams and consumers again whenever they are lost, until the process is stopped. Returns the status."""
    settings = read_settings(BusSettings)

    async def body(process: Process) -> None:
        await _watch(settings, process)

    return run(NAME, settings, body)


async def make_streams(settings: BusSettings) -> list[Result]:
    """Make what is missing and change what differs. Returns what was done.

    Raises:
        BusUnavailable: NATS does not answer, or refuses.
    """
    administrator = await _open(settings)
    try:
        return await administrator.ensure()
    finally:
        await administrator.close()


async def _watch(settings: BusSettings, process: Process) -> None:
    while not process.stop.is_set():
        try:
            administrator = await _open(settings, process)
        except BusUnavailable as error:
            log.warning("bus.unavailable", error=str(error))
            await pause(process.stop, RETRY_SECONDS)
        else:
            await _watch_by(administrator, process)


async def _watch_by(administrator: Administrator, process: Process) -> None:
    process.checks["bus"] = lambda: administrator.is_connected
    process.checks["streams"] = lambda: administrator.is_done
    try:
        await administrator.watch(process.stop)
    finally:
        await administrator.close()


async def _open(settings: BusSettings, process: Process | None = None) -> Administrator:
    return await open_administrator(
        settings.nats_url.get_secret_value(),
        name=NAME,
        nkey_seed=settings.nats_nkey_seed,
        on_closed=(lambda: None) if process is None else process.stop.set,
    )


def _told(one: Result) -> str:
    if one.consumer is None:
        return f"{one.action} stream {one.stream}"
    return f"{one.action} consumer {one.consumer} of {one.stream}"

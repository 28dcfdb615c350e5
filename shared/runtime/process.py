"""A service's process from start to shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from shared.domain.errors import HubError
from shared.runtime.fail_point import FailPointSettings, arm_fail_point
from shared.runtime.health import Check, make_server
from shared.runtime.logging import configure_logging
from shared.runtime.settings import ProcessSettings

log = structlog.get_logger()

SHUTDOWN_SECONDS = 25.0
"""Longer than any drain of ours, shorter than Kubernetes' grace period of 30 seconds."""


@dataclass(slots=True, kw_only=True)
class Process:
    """What a service's body gets: a stop signal to watch and readiness checks to fill."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    checks: dict[str, Check] = field(default_factory=dict)


Body = Callable[[Process], Awaitable[None]]


def run(name: str, settings: ProcessSettings, body: Body) -> int:
    """Run a service until SIGTERM or SIGINT, or until its body fails.

    Returns:
        The exit status: 0 after a clean shutdown, 1 after a failure, whose reason is logged.
    """
    configure_logging(service=name, style=settings.log_format, level=settings.log_level)
    try:
        arm_fail_point(FailPointSettings())
        asyncio.run(_run(name, settings, body))
    except Exception as error:  # noqa: BLE001 - the last resort: say what is wrong, then end
        _report(error)
        return 1
    return 0


async def _run(name: str, settings: ProcessSettings, body: Body) -> None:
    process = Process()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop.set)
    server, listener = make_server(settings.health_bind, process.checks)
    host, port = listener.getsockname()[:2]
    log.info("service.started", health=f"http://{host}:{port}")
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    running = asyncio.ensure_future(body(process))
    try:
        stopping = asyncio.create_task(process.stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            log.info("service.stopping")
            await asyncio.wait({running}, timeout=SHUTDOWN_SECONDS)
        if not running.done():
            log.warning("service.shutdown_timed_out", seconds=SHUTDOWN_SECONDS)
            running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        server.should_exit = True
        await serving
        log.info("service.stopped", name=name)


def _report(error: BaseException) -> None:
    """Log each cause: one line where it is an error of ours, with a traceback where it is a surprise."""
    if isinstance(error, BaseExceptionGroup):
        for cause in error.exceptions:
            _report(cause)
    elif isinstance(error, HubError):
        log.error("service.failed", reason=error.reason, error=str(error))
    else:
        log.error("service.crashed", exc_info=error)

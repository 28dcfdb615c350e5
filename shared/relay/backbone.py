"""What every service stands on: Postgres, the bus, and a relay between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from shared.bus import jetstream
from shared.bus.jetstream import Bus, BusUnavailable
from shared.relay.relay import Relay
from shared.runtime.pause import pause
from shared.runtime.process import Process
from shared.runtime.settings import ServiceSettings
from shared.store.database import Engine, connect

log = structlog.get_logger()

RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """Open connections, and a relay that runs beside the service."""

    engine: Engine
    bus: Bus
    relay: Relay


@contextlib.asynccontextmanager
async def open_backbone(
    settings: ServiceSettings, process: Process, *, service: str, pool_size: int = 5
) -> AsyncIterator[Backbone | None]:
    """Connect, waiting for servers that are not there yet; yields None if the process is stopped first."""
    engine = connect(
        settings.database_url.get_secret_value(), application=f"kmmhub-{service}", pool_size=pool_size
    )
    try:
        bus = await _connect_bus(settings.nats_url.get_secret_value(), service, process.stop)
        if bus is None:
            yield None
            return
        relay = Relay(engine, bus)
        process.checks["bus"] = lambda: bus.is_connected
        process.checks["outbox"] = lambda: relay.is_draining
        stop_relay = asyncio.Event()
        running = asyncio.create_task(relay.run(stop_relay))
        # A service whose relay broke announces nothing: it ends, says why, and is started again.
        running.add_done_callback(lambda _: process.stop.set())
        try:
            yield Backbone(engine=engine, bus=bus, relay=relay)
        finally:
            stop_relay.set()
            relay.wake()
            await running
            await bus.close()
    finally:
        await engine.dispose()


async def _connect_bus(url: str, service: str, stop: asyncio.Event) -> Bus | None:
    while not stop.is_set():
        bus = None
        try:
            bus = await jetstream.connect(url, name=f"kmmhub-{service}")
            await bus.ensure_topology()
        except BusUnavailable as error:
            if bus is not None:
                await bus.close()
            log.warning("bus.unavailable", error=str(error))
            await pause(stop, RETRY_SECONDS)
        else:
            return bus
    return None

"""What every service stands on: Postgres, the bus, and a relay between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from shared.bus import jetstream
from shared.bus.jetstream import Bus, BusUnavailable
from shared.bus.permissions import Identity, announced_prefixes
from shared.bus.port import MessageBus
from shared.relay.relay import Relay
from shared.runtime.pause import pause
from shared.runtime.process import Process
from shared.runtime.settings import ServiceSettings
from shared.store.database import connect
from shared.store.port import Store
from shared.store.postgres import PostgresStore

log = structlog.get_logger()

RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """Open connections, and a relay that runs beside the service."""

    store: Store
    bus: MessageBus
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
        bus = await _connect_bus(settings, service, process.stop)
        if bus is None:
            yield None
            return
        store = PostgresStore(engine)
        relay = Relay(store, bus, subjects=announced_prefixes(Identity(service)))
        process.checks["bus"] = lambda: bus.is_connected
        process.checks["streams"] = lambda: bus.has_streams
        process.checks["bus_permissions"] = lambda: bus.is_allowed
        process.checks["outbox"] = lambda: relay.is_draining
        stop_relay = asyncio.Event()
        running = asyncio.create_task(relay.run(stop_relay))
        # A service whose relay broke announces nothing: it ends, says why, and is started again.
        running.add_done_callback(lambda _: process.stop.set())
        try:
            yield Backbone(store=store, bus=bus, relay=relay)
        finally:
            stop_relay.set()
            relay.wake()
            await running
            await bus.close()
    finally:
        await engine.dispose()


async def _connect_bus(settings: ServiceSettings, service: str, stop: asyncio.Event) -> Bus | None:
    """Connect as soon as the server is there. A connection that ends for good ends the process, too."""
    while not stop.is_set():
        try:
            return await jetstream.connect(
                settings.nats_url.get_secret_value(),
                name=service,
                nkey_seed=settings.nats_nkey_seed,
                on_closed=stop.set,
            )
        except BusUnavailable as error:
            log.warning("bus.unavailable", error=str(error))
            await pause(stop, RETRY_SECONDS)
    return None

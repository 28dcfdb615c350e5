"""A worker on a database that holds a row which this version cannot read."""

import asyncio
import random

import asyncpg
import pytest
from structlog.testing import capture_logs

import shared.leasing.worker
from shared.domain.artifact import ArtifactRequest, ArtifactState, Stage
from shared.domain.kernel import KernelVersion
from shared.domain.lease import Built, Lease
from shared.leasing.worker import Holder, StageWorker
from shared.relay.backbone import Backbone
from shared.relay.relay import Relay
from shared.store import artifacts
from shared.store.database import connect
from shared.store.migrate import upgrade
from shared.store.postgres import PostgresStore
from simulation.broker import Broker, BrokerWeather
from simulation.bus import SimulatedBus
from simulation.line import Line, Weather

pytestmark = pytest.mark.integration

REQUESTS = [
    ArtifactRequest(
        target=f"registry.example/module:{number}",
        kernel=KernelVersion("6.1.0-13-amd64"),
        architecture="amd64",
    )
    for number in range(3)
]


async def build(_: Lease, __: Holder) -> Built:
    """At once."""
    return Built(source=f"registry.example/module@sha256:{'1' * 64}", is_adopted=False)


async def test_a_row_that_cannot_be_read_neither_ends_the_worker_nor_holds_up_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.leasing.worker, "POLL_SECONDS", 0.2)
    await asyncio.to_thread(upgrade, database_url)
    engine = connect(database_url, application="test")
    store = PostgresStore(engine)
    async with store.begin() as transaction:
        unreadable, *others = await artifacts.want(transaction, REQUESTS)
    connection = await asyncpg.connect(database_url)
    oldest = "UPDATE artifacts SET request = '{}', not_before = now() - interval '1 hour' WHERE key = $1"
    await connection.execute(oldest, unreadable)
    await connection.close()
    # The poll needs no bus: nothing goes through this one.
    clock = asyncio.get_running_loop().time
    broker = Broker(clock=clock, chance=random.Random(1), weather=BrokerWeather())
    bus = SimulatedBus(broker, Line("test", Weather(), random.Random(1)))
    stop = asyncio.Event()
    worker = StageWorker(
        Stage.BUILD,
        build,
        backbone=Backbone(store=store, bus=bus, relay=Relay(store, bus)),
        owner="test/1",
        lease_seconds=30,
        concurrency=1,
        stop=stop,
    )
    with capture_logs() as logs:
        polling = asyncio.create_task(worker.poll())
        await asyncio.sleep(3)
        assert not polling.done()
        stop.set()
        await asyncio.wait_for(polling, 5)

    async with store.begin() as transaction:
        read = await transaction.read_artifacts(others)
    await engine.dispose()
    assert [one.state for one in read.values()] == [ArtifactState.READY] * 2
    assert [line["artifact"] for line in logs if line["log_level"] == "error"] == [unreadable]

"""The outbox on real Postgres and NATS: nothing is announced that did not happen, nothing is lost or doubled."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import nats
import pytest
from running_services import eventually
from store_fixtures import engine

from localhub.hub import HubAddresses
from shared.bus import jetstream
from shared.bus.jetstream import Bus, BusUnavailable, Done, Verdict
from shared.bus.topology import CHANGES, SIGNATURES
from shared.domain.artifact import ArtifactKey, Stage
from shared.events.messages import Changed, Kind, Requested, decode_changed
from shared.relay.relay import Relay
from shared.store import outbox
from shared.store.database import Engine

__all__ = ["engine"]  # a fixture

pytestmark = pytest.mark.integration


@pytest.fixture
async def bus(hub: HubAddresses) -> AsyncIterator[Bus]:
    opened = await jetstream.connect(hub.nats_url, name="test")
    await opened.ensure_topology()
    yield opened
    await opened.close()


async def announce(engine: Engine, *names: str) -> None:
    async with engine.begin() as connection:
        await outbox.announce(connection, (Changed(kind=Kind.CLUSTER, name=name) for name in names))


async def count(engine: Engine) -> int:
    async with engine.connect() as connection:
        return await outbox.count_rows(connection)


async def test_a_fact_that_is_rolled_back_announces_nothing(engine: Engine) -> None:
    async with engine.connect() as connection:
        await outbox.announce(connection, [Changed(kind=Kind.CLUSTER, name="a")])
        await connection.rollback()

    assert await count(engine) == 0


async def test_a_row_that_commits_late_is_published_though_later_ones_went_first(engine: Engine) -> None:
    async with engine.connect() as slow:
        await outbox.announce(slow, [Changed(kind=Kind.CLUSTER, name="slow")])
        await announce(engine, "quick")
        async with engine.begin() as connection:
            (quick,) = await outbox.lock_rows(connection, limit=10)
            await outbox.delete_rows(connection, [quick.id])
        await slow.commit()

    async with engine.begin() as connection:
        (row,) = await outbox.lock_rows(connection, limit=10)
    assert decode_changed(row.payload).name == "slow"
    assert row.id < quick.id


async def test_a_relay_that_dies_before_its_commit_leaves_the_rows(engine: Engine) -> None:
    await announce(engine, "a", "b")
    async with engine.connect() as connection:
        rows = await outbox.lock_rows(connection, limit=10)
        async with engine.begin() as other:
            assert await outbox.lock_rows(other, limit=10) == []
        await outbox.delete_rows(connection, [row.id for row in rows])
        await connection.rollback()

    async with engine.begin() as connection:
        assert await outbox.lock_rows(connection, limit=10) == rows


async def test_two_relays_publish_each_announcement_once(engine: Engine, bus: Bus) -> None:
    """Two relays drain while facts commit; whatever is left in the stream by others is passed over."""
    names = [f"once-{number}" for number in range(2000)]
    seen: Counter[str] = Counter()
    stop, stop_relays = asyncio.Event(), asyncio.Event()

    async def note(payloads: list[bytes]) -> Verdict:
        seen.update(
            name for payload in payloads if (name := decode_changed(payload).name).startswith("once-")
        )
        return Done()

    relays = [Relay(engine, bus), Relay(engine, bus)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(bus.consume_batches(CHANGES, note, batch=500, stop=stop))
        for relay in relays:
            group.create_task(relay.run(stop_relays))
        for start in range(0, len(names), 50):
            await announce(engine, *names[start : start + 50])
            relays[start % 2].wake()

        async def is_drained() -> bool:
            return len(seen) == len(names) and await count(engine) == 0

        await eventually(is_drained, what="everything is announced")
        await asyncio.sleep(0.3)
        stop.set()
        stop_relays.set()

    assert seen == Counter(names)


async def test_a_stream_that_is_gone_holds_nothing_back(engine: Engine, bus: Bus, hub: HubAddresses) -> None:
    administrator = await nats.connect(hub.nats_url)
    await administrator.jetstream().delete_stream(SIGNATURES.stream)
    await administrator.close()
    async with engine.begin() as connection:
        signing = Requested(stage=Stage.SIGN, artifact=ArtifactKey("a" * 64), announcement=0)
        await outbox.announce(connection, [signing, Changed(kind=Kind.CLUSTER, name="other")])
    stop = asyncio.Event()
    running = asyncio.create_task(Relay(engine, bus).run(stop))

    async def is_empty() -> bool:
        return await count(engine) == 0

    await eventually(is_empty, what="both are published")
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_a_relay_waits_while_nats_is_away_and_loses_nothing(engine: Engine, hub: HubAddresses) -> None:
    await announce(engine, "kept")
    closed = await jetstream.connect(hub.nats_url, name="test")
    await closed.close()
    stop = asyncio.Event()
    running = asyncio.create_task(Relay(engine, closed).run(stop))
    await asyncio.sleep(1.5)
    assert not running.done()
    stop.set()
    await asyncio.wait_for(running, 10)

    assert await count(engine) == 1
    with pytest.raises(BusUnavailable):
        await closed.publish("kmm.changed.x", b"", message_id="1")

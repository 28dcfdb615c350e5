"""The outbox on real Postgres and NATS: nothing is announced that did not happen, nothing is lost or doubled."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import nats
import pytest
from running_services import eventually
from store_fixtures import engine, store

from localhub.hub import HubAddresses
from shared.bus import jetstream
from shared.bus.jetstream import Bus, BusUnavailable, Done, Verdict
from shared.bus.topology import CHANGES, SIGNATURES
from shared.domain.artifact import ArtifactKey, Stage
from shared.events.messages import Changed, Kind, Requested, decode_changed
from shared.relay.relay import Relay
from shared.store import outbox
from shared.store.postgres import PostgresStore

__all__ = ["engine", "store"]  # fixtures

pytestmark = pytest.mark.integration


@pytest.fixture
async def bus(hub: HubAddresses) -> AsyncIterator[Bus]:
    opened = await jetstream.connect(hub.nats_url, name="test")
    await opened.ensure_topology()
    yield opened
    await opened.close()


async def announce(store: PostgresStore, *names: str) -> None:
    async with store.begin() as transaction:
        await outbox.announce(transaction, (Changed(kind=Kind.CLUSTER, name=name) for name in names))


async def count(store: PostgresStore) -> int:
    async with store.begin() as transaction:
        return await transaction.count_outbox()


async def test_a_fact_that_is_rolled_back_announces_nothing(store: PostgresStore) -> None:
    with contextlib.suppress(KeyError):
        async with store.begin() as transaction:
            await outbox.announce(transaction, [Changed(kind=Kind.CLUSTER, name="a")])
            raise KeyError

    assert await count(store) == 0


async def test_a_row_that_commits_late_is_published_though_later_ones_went_first(
    store: PostgresStore,
) -> None:
    async with store.begin() as slow:
        await outbox.announce(slow, [Changed(kind=Kind.CLUSTER, name="slow")])
        await announce(store, "quick")
        async with store.begin() as transaction:
            (quick,) = await transaction.lock_outbox(limit=10)
            await transaction.delete_from_outbox([quick.id])

    async with store.begin() as transaction:
        (row,) = await transaction.lock_outbox(limit=10)
    assert decode_changed(row.payload).name == "slow"
    assert row.id < quick.id


async def test_a_relay_that_dies_before_its_commit_leaves_the_rows(store: PostgresStore) -> None:
    await announce(store, "a", "b")
    with contextlib.suppress(KeyError):
        async with store.begin() as transaction:
            rows = await transaction.lock_outbox(limit=10)
            async with store.begin() as other:
                assert await other.lock_outbox(limit=10) == []
            await transaction.delete_from_outbox([row.id for row in rows])
            raise KeyError

    async with store.begin() as transaction:
        assert await transaction.lock_outbox(limit=10) == rows


async def test_two_relays_publish_each_announcement_once(store: PostgresStore, bus: Bus) -> None:
    """Two relays drain while facts commit; whatever is left in the stream by others is passed over."""
    names = [f"once-{number}" for number in range(2000)]
    seen: Counter[str] = Counter()
    stop, stop_relays = asyncio.Event(), asyncio.Event()

    async def note(payloads: list[bytes]) -> Verdict:
        seen.update(
            name for payload in payloads if (name := decode_changed(payload).name).startswith("once-")
        )
        return Done()

    relays = [Relay(store, bus), Relay(store, bus)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(bus.consume_batches(CHANGES, note, batch=500, stop=stop))
        for relay in relays:
            group.create_task(relay.run(stop_relays))
        for start in range(0, len(names), 50):
            await announce(store, *names[start : start + 50])
            relays[start % 2].wake()

        async def is_drained() -> bool:
            return len(seen) == len(names) and await count(store) == 0

        await eventually(is_drained, what="everything is announced")
        await asyncio.sleep(0.3)
        stop.set()
        stop_relays.set()

    assert seen == Counter(names)


async def test_a_stream_that_is_gone_holds_nothing_back(
    store: PostgresStore, bus: Bus, hub: HubAddresses
) -> None:
    administrator = await nats.connect(hub.nats_url)
    await administrator.jetstream().delete_stream(SIGNATURES.stream)
    await administrator.close()
    async with store.begin() as transaction:
        signing = Requested(stage=Stage.SIGN, artifact=ArtifactKey("a" * 64), announcement=0)
        await outbox.announce(transaction, [signing, Changed(kind=Kind.CLUSTER, name="other")])
    stop = asyncio.Event()
    running = asyncio.create_task(Relay(store, bus).run(stop))

    async def is_empty() -> bool:
        return await count(store) == 0

    await eventually(is_empty, what="both are published")
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_a_relay_waits_while_nats_is_away_and_loses_nothing(
    store: PostgresStore, hub: HubAddresses
) -> None:
    await announce(store, "kept")
    closed = await jetstream.connect(hub.nats_url, name="test")
    await closed.close()
    stop = asyncio.Event()
    running = asyncio.create_task(Relay(store, closed).run(stop))
    await asyncio.sleep(1.5)
    assert not running.done()
    stop.set()
    await asyncio.wait_for(running, 10)

    assert await count(store) == 1
    with pytest.raises(BusUnavailable):
        await closed.publish("kmm.changed.x", b"", message_id="1")

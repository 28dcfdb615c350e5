"""From the outbox to NATS: nothing is lost or doubled."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import nats
import pytest
from running_services import eventually

from localhub.hub import HubAddresses
from shared.bus import jetstream
from shared.bus.jetstream import Bus, BusUnavailable, Done, Verdict
from shared.bus.permissions import Identity, announced_prefixes
from shared.bus.port import Delivery
from shared.bus.streams import open_administrator
from shared.bus.topology import CHANGES, SIGNATURES
from shared.domain.artifact import ArtifactKey, Stage
from shared.events.messages import Changed, Kind, Requested, decode_changed
from shared.relay.relay import BATCH, Relay
from shared.store import outbox
from shared.store.database import connect
from shared.store.migrate import upgrade
from shared.store.postgres import PostgresStore

pytestmark = pytest.mark.integration


@pytest.fixture
async def bus(hub: HubAddresses) -> AsyncIterator[Bus]:
    await make_streams(hub)
    opened = await jetstream.connect(hub.nats_url, name="test")
    yield opened
    await opened.close()


async def make_streams(hub: HubAddresses) -> None:
    administrator = await open_administrator(hub.environment("streams")["NATS_URL"])
    await administrator.ensure()
    await administrator.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    """An empty store."""
    await asyncio.to_thread(upgrade, database_url)
    opened = connect(database_url, application="test", pool_size=20)
    yield PostgresStore(opened)
    await opened.dispose()


async def announce(store: PostgresStore, *names: str) -> None:
    async with store.begin() as transaction:
        await outbox.announce(transaction, (Changed(kind=Kind.CLUSTER, name=name) for name in names))


async def count(store: PostgresStore) -> int:
    async with store.begin() as transaction:
        return await transaction.count_outbox()


async def test_two_relays_publish_each_announcement_once(store: PostgresStore, bus: Bus) -> None:
    """Two relays drain while facts commit; whatever is left in the stream by others is passed over."""
    names = [f"once-{number}" for number in range(2000)]
    seen: Counter[str] = Counter()
    stop, stop_relays = asyncio.Event(), asyncio.Event()

    async def note(deliveries: Sequence[Delivery]) -> list[Verdict]:
        seen.update(
            name for one in deliveries if (name := decode_changed(one.payload).name).startswith("once-")
        )
        return [Done() for _ in deliveries]

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

    async def is_one() -> bool:
        return await count(store) == 1 and not bus.has_streams

    async def is_empty() -> bool:
        return await count(store) == 0 and bus.has_streams

    await eventually(is_one, what="the other one is published")
    await make_streams(hub)
    await eventually(is_empty, what="both are published")
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_any_number_of_rows_that_a_stream_refuses_hides_no_others(
    store: PostgresStore, bus: Bus, hub: HubAddresses
) -> None:
    """More changes wait than a relay takes at once, and their stream is away; a request comes after them."""
    administrator = await nats.connect(hub.nats_url)
    await administrator.jetstream().delete_stream(CHANGES.stream)
    await administrator.close()
    waiting = BATCH + 50
    await announce(store, *(f"waits-{number}" for number in range(waiting)))
    async with store.begin() as transaction:
        requests = [
            Requested(stage=Stage.SIGN, artifact=ArtifactKey(f"{number:064x}"), announcement=0)
            for number in range(BATCH + 50)
        ]
        await outbox.announce(transaction, requests)
    stop = asyncio.Event()
    relay = Relay(store, bus, subjects=announced_prefixes(Identity.DISPATCHER))
    running = asyncio.create_task(relay.run(stop))

    async def are_published() -> bool:
        return await count(store) == waiting

    async def is_empty() -> bool:
        return await count(store) == 0

    await eventually(are_published, what="the requests are published", seconds=20)
    assert not relay.is_draining
    await make_streams(hub)
    await eventually(is_empty, what="the changes are published, too")
    stop.set()
    await asyncio.wait_for(running, 10)
    assert relay.is_draining


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


async def test_relays_take_what_their_users_may_publish_and_leave_the_rest(
    store: PostgresStore, hub: HubAddresses
) -> None:
    """The signer's relay leaves what only the watcher may say; the dispatcher drains for whoever is away."""
    await make_streams(hub)
    async with store.begin() as transaction:
        signing = Requested(stage=Stage.SIGN, artifact=ArtifactKey("b" * 64), announcement=0)
        building = Requested(stage=Stage.BUILD, artifact=ArtifactKey("b" * 64), announcement=0)
        changes = [Changed(kind=kind, name="taken") for kind in (Kind.CLUSTER, Kind.ARTIFACT)]
        await outbox.announce(transaction, [signing, building, *changes])

    for identity, expected in ((Identity.SIGNER, 2), (Identity.WATCHER, 1), (Identity.DISPATCHER, 0)):
        bus = await jetstream.connect(hub.environment(identity)["NATS_URL"], name=identity)
        stop = asyncio.Event()
        running = asyncio.create_task(Relay(store, bus, subjects=announced_prefixes(identity)).run(stop))

        async def is_drained(left: int = expected) -> bool:
            return await count(store) == left

        await eventually(is_drained, what=f"{identity} leaves {expected} rows")
        stop.set()
        await asyncio.wait_for(running, 10)
        assert bus.is_allowed
        await bus.close()

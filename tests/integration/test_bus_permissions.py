"""Every user of the bus on a real server: what it needs works, everything else is refused and said aloud."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nats
import pytest
from broker import Broker
from nats.aio.client import Client
from prometheus_client import REGISTRY
from running_services import eventually

from shared.bus import jetstream
from shared.bus.connection import BusDenied, BusUnavailable, Denials, open_client
from shared.bus.jetstream import Bus, Done, Verdict
from shared.bus.nkey import InvalidNkey, Nkey
from shared.bus.permissions import CONSUMED, Identity, announced_prefixes
from shared.bus.port import Delivery
from shared.bus.server_configuration import Password, Proof, PublicKey, authorization
from shared.bus.streams import Action, open_administrator
from shared.bus.topology import BUILDS, CHANGES, QUEUES, SIGNATURES, Queue
from shared.domain.artifact import ArtifactKey, Stage
from shared.events.messages import Changed, Kind, Requested

pytestmark = pytest.mark.integration

SERVICES = (Identity.WATCHER, Identity.DISPATCHER, Identity.BUILDER, Identity.SIGNER)
KEYS = {identity: Nkey.generate() for identity in Identity}
WITH_PASSWORD = Identity.SIGNER
"""Proves who it is by a password; all others by their nkeys."""

BUILD = Requested(stage=Stage.BUILD, artifact=ArtifactKey("a" * 64), announcement=0).subject
SIGN = Requested(stage=Stage.SIGN, artifact=ArtifactKey("a" * 64), announcement=0).subject
CHANGED = {kind: Changed(kind=kind, name="x").subject for kind in Kind}
SUBJECTS = (BUILD, SIGN, *CHANGED.values(), "kmm.other.x", "other")

# Written out here and not derived: this is what the product promises.
MAY_ANNOUNCE = {
    Identity.WATCHER: {*CHANGED.values()},
    Identity.DISPATCHER: {*CHANGED.values(), BUILD, SIGN},
    Identity.BUILDER: {CHANGED[Kind.ARTIFACT], BUILD, SIGN},
    Identity.SIGNER: {CHANGED[Kind.ARTIFACT], SIGN},
    Identity.STREAMS: set(),
}
MAY_PULL = {
    Identity.WATCHER: None,
    Identity.DISPATCHER: CHANGES,
    Identity.BUILDER: BUILDS,
    Identity.SIGNER: SIGNATURES,
    Identity.STREAMS: None,
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A server with our users and no other."""
    proofs: dict[Identity, Proof] = {
        identity: PublicKey(nkey=key.public) for identity, key in KEYS.items()
    } | {WITH_PASSWORD: Password(password="secret of the signer")}
    running = Broker(tmp_path_factory.mktemp("nats"), authorization(proofs))
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[Identity, Path]:
    directory = tmp_path_factory.mktemp("seeds")
    for identity, key in KEYS.items():
        (directory / identity).write_text(f"{key.seed}\n")
    return {identity: directory / identity for identity in KEYS}


class Proven:
    """How each user connects."""

    def __init__(self, broker: Broker, seeds: dict[Identity, Path]) -> None:
        self.plain = broker.url
        self._seeds = seeds

    def url(self, identity: Identity) -> str:
        where = urlsplit(self.plain).netloc
        secret = "secret%20of%20the%20signer" if False else "secret of the signer"
        return f"nats://{identity}:{secret}@{where}" if identity is WITH_PASSWORD else self.plain

    def seed(self, identity: Identity) -> Path | None:
        return None if identity is WITH_PASSWORD else self._seeds[identity]

    async def bus(self, identity: Identity) -> Bus:
        return await jetstream.connect(self.url(identity), name=identity, nkey_seed=self.seed(identity))

    async def client(self, identity: Identity, denials: Denials) -> Client:
        return await open_client(
            self.url(identity), name=identity, nkey_seed=self.seed(identity), denials=denials
        )


@pytest.fixture(scope="module")
async def proven(broker: Broker, seeds: dict[Identity, Path]) -> Proven:
    """The streams are made by the one who may."""
    opened = await open_administrator(broker.url, nkey_seed=seeds[Identity.STREAMS])
    assert {result.action for result in await opened.ensure()} == {Action.CREATED}
    assert {result.action for result in await opened.ensure()} == {Action.UNCHANGED}
    await opened.close()
    return Proven(broker, seeds)


def denials_counted(action: str) -> float:
    return REGISTRY.get_sample_value("kmmhub_bus_denied_total", {"action": action}) or 0.0


@pytest.mark.parametrize("identity", Identity)
async def test_each_user_publishes_what_it_announces_and_nothing_else(
    proven: Proven, identity: Identity
) -> None:
    bus = await proven.bus(identity)
    try:
        for number, subject in enumerate(SUBJECTS):
            message = f"{identity}/{number}/{time.monotonic()}"
            if subject in MAY_ANNOUNCE[identity]:
                await bus.publish(subject, b"{}", message_id=message)
                continue
            before, began = denials_counted("publish"), time.monotonic()
            with pytest.raises(BusDenied, match=f"refuses our message on {subject}: .*deploy/nats"):
                await bus.publish(subject, b"{}", message_id=message)
            assert time.monotonic() - began < 2, "the refusal is heard, not waited for"
            assert denials_counted("publish") == before + 1
        assert bus.is_allowed == (MAY_ANNOUNCE[identity] == set(SUBJECTS))
    finally:
        await bus.close()


def test_a_relay_takes_just_the_rows_that_its_user_may_publish() -> None:
    for identity in Identity:
        prefixes = announced_prefixes(identity)
        assert {one for one in SUBJECTS if one.startswith(prefixes)} == MAY_ANNOUNCE[identity]


@pytest.mark.parametrize("identity", Identity)
@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: queue.stream)
async def test_each_user_pulls_from_its_own_queue_alone(
    proven: Proven, identity: Identity, queue: Queue
) -> None:
    assert CONSUMED.get(identity) is MAY_PULL[identity]
    dispatcher = await proven.bus(Identity.DISPATCHER)
    subject = {CHANGES: CHANGED[Kind.MODULE], BUILDS: BUILD, SIGNATURES: SIGN}[queue]
    await dispatcher.publish(subject, b"pull me", message_id=f"{identity}/{time.monotonic()}")
    await dispatcher.close()
    bus = await proven.bus(identity)
    stop, seen = asyncio.Event(), []

    async def note(delivery: Delivery) -> Verdict:
        seen.append(delivery)
        return Done()

    async def is_over() -> bool:
        return bool(seen) if queue is MAY_PULL[identity] else not bus.is_allowed

    pulling = asyncio.create_task(bus.consume(queue, note, concurrency=4, stop=stop))
    try:
        await eventually(is_over, what="a message, or a refusal", seconds=10)
    finally:
        stop.set()
        await asyncio.wait_for(pulling, 10)
        await bus.close()
    assert bool(seen) == (queue is MAY_PULL[identity])
    assert bus.is_allowed == (queue is MAY_PULL[identity])


@pytest.mark.parametrize("identity", [Identity.BUILDER, Identity.SIGNER])
async def test_acknowledgements_count(proven: Proven, identity: Identity) -> None:
    """What was handled leaves the work queue: acknowledgements are not refused unheard."""
    bus = await proven.bus(identity)
    administrator = await proven.client(Identity.STREAMS, Denials())
    queue, stop = CONSUMED[identity], asyncio.Event()

    async def done(_: Delivery) -> Verdict:
        return Done()

    async def is_empty() -> bool:
        return (await administrator.jetstream().stream_info(queue.stream)).state.messages == 0

    await bus.publish(SIGN, b"{}", message_id=f"{identity}/{time.monotonic()}")
    pulling = asyncio.create_task(bus.consume(queue, done, concurrency=10, stop=stop))
    await eventually(is_empty, what=f"{identity} has emptied its queue")
    stop.set()
    await pulling
    assert bus.is_allowed
    await bus.close()
    await administrator.close()


@pytest.mark.parametrize("identity", SERVICES)
async def test_no_service_reads_makes_changes_or_removes_a_stream(proven: Proven, identity: Identity) -> None:
    denials = Denials()
    client = await proven.client(identity, denials)
    context = client.jetstream(timeout=0.3)
    queue = MAY_PULL[identity] or CHANGES
    try:
        for attempt in (
            lambda: context.stream_info(queue.stream),
            lambda: context.add_stream(name="OTHER", subjects=["other.>"]),
            lambda: context.update_stream(queue.stream_config()),
            lambda: context.purge_stream(queue.stream),
            lambda: context.delete_stream(queue.stream),
            lambda: context.get_msg(queue.stream, seq=1),
            lambda: context.get_msg(queue.stream, subject=queue.subjects[0], direct=True),
            lambda: context.delete_msg(queue.stream, 1),
            lambda: context.consumer_info(queue.stream, queue.consumer),
            lambda: context.add_consumer(queue.stream, queue.consumer_config()),
            lambda: context.add_consumer(queue.stream, name="own"),
            lambda: context.delete_consumer(queue.stream, queue.consumer),
            context.account_info,
            lambda: context.subscribe("kmm.>"),
        ):
            before = denials_counted("publish")
            with pytest.raises(Exception, match=r"(?i)timeout|no responders|^$"):
                await attempt()
            assert denials_counted("publish") == before + 1
    finally:
        await client.close()


async def test_the_streams_user_neither_reads_nor_removes(proven: Proven) -> None:
    denials = Denials()
    client = await proven.client(Identity.STREAMS, denials)
    context = client.jetstream(timeout=0.3)
    try:
        for attempt in (
            lambda: context.purge_stream(BUILDS.stream),
            lambda: context.delete_stream(BUILDS.stream),
            lambda: context.get_msg(BUILDS.stream, seq=1),
            lambda: context.delete_msg(BUILDS.stream, 1),
            lambda: context.delete_consumer(BUILDS.stream, BUILDS.consumer),
            lambda: context.add_stream(name="OTHER", subjects=["other.>"]),
            lambda: context.publish(BUILD, b""),
        ):
            before = denials_counted("publish")
            with pytest.raises(TimeoutError):
                await attempt()
            assert denials_counted("publish") == before + 1
    finally:
        await client.close()


@pytest.mark.parametrize("identity", Identity)
async def test_no_user_listens_to_others(proven: Proven, identity: Identity) -> None:
    """Not to their answers, not to announcements past the streams, not to the server's own words."""
    denials = Denials()
    client = await proven.client(identity, denials)
    heard: list[str] = []

    async def hear(message: nats.aio.msg.Msg) -> None:
        heard.append(message.subject)

    others = [f"_INBOX_{other}.>" for other in Identity if other is not identity]
    subjects = [*others, "_INBOX.>", "*.>", ">", "kmm.>", "$JS.>", "$SYS.>"]
    before = denials_counted("subscription")
    try:
        for subject in subjects:
            await client.subscribe(subject, cb=hear)
        await client.flush()
        other = await proven.bus(
            Identity.DISPATCHER if identity is not Identity.DISPATCHER else Identity.WATCHER
        )
        await other.publish(CHANGED[Kind.CLUSTER], b"{}", message_id=f"listen/{time.monotonic()}")
        await other.close()
        await client.flush()
        await asyncio.sleep(0.1)
    finally:
        await client.close()
    assert heard == []
    assert denials_counted("subscription") == before + len(subjects)


async def test_strangers_are_refused(
    proven: Proven, seeds: dict[Identity, Path], tmp_path: Path, broker: Broker
) -> None:
    stranger = tmp_path / "stranger"
    stranger.write_text(Nkey.generate().seed)
    where = urlsplit(broker.url).netloc
    attempts = (
        (broker.url, None),
        (broker.url, stranger),
        (f"nats://signer:wrong@{where}", None),
        (f"nats://builder:secret of the signer@{where}", None),
        (f"nats://{KEYS[Identity.BUILDER].public}@{where}", None),
    )

    async def attempt(url: str, seed: Path | None) -> None:
        with pytest.raises(BusUnavailable, match=r"does not admit us.*NATS_NKEY_SEED"):
            await jetstream.connect(url, name="builder", nkey_seed=seed)

    await asyncio.gather(*(attempt(url, seed) for url, seed in attempts))


async def test_a_user_who_is_taken_away_is_thrown_out_and_told(tmp_path: Path) -> None:
    """The client does not come back by itself then; the process ends, and is started again with what it has now."""
    directory = tmp_path / "own"
    directory.mkdir()
    running = Broker(directory, authorization({Identity.BUILDER: Password(password="p0")}))
    running.start()
    closed = asyncio.Event()
    try:
        url = f"nats://builder:p0@{urlsplit(running.url).netloc}"
        bus = await jetstream.connect(url, name="builder", on_closed=closed.set)
        configuration = directory / "nats.conf"
        configuration.write_text(configuration.read_text().replace("p0", "p1"))
        running.reload()
        await asyncio.wait_for(closed.wait(), 10)
        assert not bus.is_connected
        with pytest.raises(BusUnavailable):
            await bus.publish(BUILD, b"{}", message_id="1")
        await bus.close()
    finally:
        running.kill()


async def test_a_seed_that_is_none_is_said_without_repeating_it(broker: Broker, tmp_path: Path) -> None:
    broken = tmp_path / "seed"
    secret = Nkey.generate().seed
    for content in (
        "",
        secret[:-1],
        secret[:-1] + "A" * (secret[-1] != "A") + "B" * (secret[-1] == "A"),
        "é",
    ):
        broken.write_text(content)
        with pytest.raises(InvalidNkey, match=r"NATS_NKEY_SEED names .*SU") as caught:
            await jetstream.connect(broker.url, name="builder", nkey_seed=broken)
        assert secret[:20] not in str(caught.value)
    with pytest.raises(InvalidNkey, match="cannot be read"):
        await jetstream.connect(broker.url, name="builder", nkey_seed=tmp_path / "none")

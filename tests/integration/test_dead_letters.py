"""Poison on the real queues of the real services: it ends in `dead_letters`, and `kmmhub deadletters` gets it out."""

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest
from fleet import Fleet
from nats.js.errors import NotFoundError
from running_services import ROOT, eventually
from services_fixtures import fleet

from localhub.hub import HubAddresses
from shared.bus import jetstream
from shared.bus.port import Done, Verdict
from shared.bus.topology import BUILDS, CHANGES, SIGNATURES, Queue
from shared.domain.artifact import ArtifactKey, Stage
from shared.events.messages import Changed, Kind, Requested, decode_requested, encode
from shared.relay.dead_letters import MOST_DELIVERIES, DeadLetters
from shared.store.database import connect
from shared.store.port import DeadLetter
from shared.store.postgres import PostgresStore

__all__ = ["fleet"]  # a fixture

pytestmark = pytest.mark.integration

KERNEL = "6.1.0-13-amd64"
SERVICES = {CHANGES: "dispatcher", BUILDS: "builder", SIGNATURES: "signer"}
ESCAPES = b"\x1b[2J\x07garbage"


@pytest.fixture
async def addresses(fleet: Fleet, hub: HubAddresses) -> HubAddresses:
    """The servers, with the database of the running services; all streams are there."""
    client = await nats.connect(hub.nats_url)

    async def are_there() -> bool:
        with contextlib.suppress(NotFoundError):
            for queue in SERVICES:
                await client.jetstream().consumer_info(queue.stream, queue.consumer)
            return True
        return False

    await eventually(are_there, what="streams and consumers")
    await client.close()
    return hub.with_database(await fleet.database.fetchval("SELECT current_database()"))


@pytest.fixture(autouse=True)
async def empty(fleet: Fleet) -> AsyncIterator[None]:
    """Each test leaves no dead letters."""
    yield
    await fleet.database.execute("DELETE FROM dead_letters")


async def publish(hub: HubAddresses, *messages: tuple[str, bytes]) -> None:
    """As somebody who may do everything, without a message id."""
    client = await nats.connect(hub.nats_url)
    try:
        for subject, payload in messages:
            await client.jetstream().publish(subject, payload)
    finally:
        await client.close()


async def letters(fleet: Fleet, count: int, *, seconds: float = 25) -> list[dict[str, Any]]:
    """Wait until so many are in the table."""

    async def look() -> list[dict[str, Any]]:
        rows = [dict(row) for row in await fleet.database.fetch("SELECT * FROM dead_letters ORDER BY id")]
        assert len(rows) == count, [(row["subject"], row["cause"]) for row in rows]
        return rows

    return await eventually(look, what=f"{count} dead letters", seconds=seconds)


async def deadletters(
    addresses: HubAddresses, *arguments: str, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run `kmmhub deadletters` as the role for people."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "kmmhub.main", "deadletters", *arguments],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": addresses.database_urls["operator"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


async def told(addresses: HubAddresses, *arguments: str) -> Any:
    return json.loads((await deadletters(addresses, *arguments, "-o", "json")).stdout)


async def bury(
    addresses: HubAddresses, queue: Queue, message: Changed | Requested, *, cause: str = "KeyError: 'odd'"
) -> None:
    """A dead letter as a service leaves it that could not handle a good message."""
    async with open_store(addresses) as store, store.begin() as transaction:
        await transaction.bury(
            queue=queue.stream, subject=message.subject, payload=encode(message), cause=cause, deliveries=8
        )


@contextlib.asynccontextmanager
async def open_store(addresses: HubAddresses, role: str = "dispatcher") -> AsyncIterator[PostgresStore]:
    engine = connect(addresses.database_urls[role], application="test")
    try:
        yield PostgresStore(engine)
    finally:
        await engine.dispose()


async def test_garbage_is_kept_and_the_services_go_on(
    fleet: Fleet, hub: HubAddresses, addresses: HubAddresses
) -> None:
    good = Requested(stage=Stage.BUILD, artifact=ArtifactKey("a" * 64), announcement=0)
    poison = [
        ("kmm.build.x", b"garbage"),
        ("kmm.build.x", b"\0" * 60 * 1024),
        ("kmm.build.y", encode(good).replace(b".v1", b".v2")),
        ("kmm.build.aaaa", encode(good)),  # no poison: nobody knows the artifact
        ("kmm.sign.x", b""),
        ("kmm.changed.x", b"hunter2"),
        ("kmm.changed.module.x", b'{"kind":"module","name":"a\\u0000b"}'),
        ("kmm.changed.module.y", b"[" * 60_000),
        ("kmm.changed.module.z", encode(Changed(kind=Kind.MODULE, name="nobody"))),  # no poison
    ]
    await publish(hub, *poison)
    name = fleet.new_name()
    await fleet.push(name, KERNEL)
    await fleet.add_cluster(f"{name}-c", label=name, kernels=[KERNEL])
    await fleet.add_module(name)
    await fleet.ready(name)

    rows = await letters(fleet, 7)
    bad = {(subject, payload) for subject, payload in poison if payload not in {poison[3][1], poison[8][1]}}
    assert {(row["subject"], row["payload"]) for row in rows} == bad
    queues = {"build": BUILDS, "sign": SIGNATURES, "changed": CHANGES}
    for row in rows:
        assert row["queue"] == queues[row["subject"].split(".")[1]].stream
        assert row["deliveries"] == 1
        assert row["cause"].startswith("UnreadableMessage: a message ")
        assert "hunter2" not in row["cause"]
    causes = {row["subject"]: row["cause"] for row in rows}
    assert "kmm.requested.v1" in causes["kmm.build.y"]
    assert "NUL" in causes["kmm.changed.module.x"]

    for queue, service in SERVICES.items():
        mine = [row for row in rows if row["queue"] == queue.stream]
        lines = [line for line in fleet.services[service].events() if line["event"] == "letter.buried"]
        assert {(line["id"], line["queue"], line["subject"], line["cause"]) for line in lines} == {
            (row["id"], row["queue"], row["subject"], row["cause"]) for row in mine
        }
        metrics = await asyncio.to_thread(fleet.services[service].metrics)
        assert metrics[f'kmmhub_dead_letters_total{{queue="{queue.stream}"}}'] == len(mine)
    client = await nats.connect(hub.nats_url)
    for queue in (BUILDS, SIGNATURES):
        assert (await client.jetstream().stream_info(queue.stream)).state.messages == 0
    pending = await client.jetstream().consumer_info(CHANGES.stream, CHANGES.consumer)
    assert (pending.num_ack_pending, pending.num_pending) == (0, 0)
    await client.close()


async def test_the_command_lists_and_shows(fleet: Fleet, hub: HubAddresses, addresses: HubAddresses) -> None:
    assert (await deadletters(addresses, "list")).stdout == "no dead letters\n"
    assert await told(addresses, "list") == {"dead_letters": []}
    await publish(hub, ("kmm.build.[red]x", ESCAPES), ("kmm.sign.y", b'{"stage":"sign"}'))
    await publish(hub, ("kmm.sign.z", b"z" * 60_000))
    rows = {row["subject"]: row for row in await letters(fleet, 3)}
    ids = {subject: row["id"] for subject, row in rows.items()}

    listed = await told(addresses, "list")
    assert {one["subject"]: one["id"] for one in listed["dead_letters"]} == ids
    table = (await deadletters(addresses, "list")).stdout
    (line,) = (line for line in table.splitlines() if "kmm.build.[red]x" in line)
    assert line.split()[0] == str(ids["kmm.build.[red]x"])
    assert BUILDS.stream in line
    assert "UnreadableMessage: a message does not follow its schema" in line
    assert "\x1b" not in table

    shown = (await deadletters(addresses, "show", str(ids["kmm.build.[red]x"]))).stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "00000000  1b 5b 32 4a 07 67 61 72 62 61 67 65              .[2J.garbage\n" in shown
    assert "payload     12 bytes" in shown
    assert '\n{"stage":"sign"}\n' in (await deadletters(addresses, "show", str(ids["kmm.sign.y"]))).stdout
    shown = (await deadletters(addresses, "show", str(ids["kmm.sign.z"]))).stdout
    assert "… 55904 more bytes" in shown
    assert len(shown) < 25_000

    described = await told(addresses, "show", str(ids["kmm.sign.z"]))
    assert described["payload"] is None
    assert base64.b64decode(described["payload_base64"]) == b"z" * 60_000
    assert (await told(addresses, "show", str(ids["kmm.sign.y"])))["payload"] == '{"stage":"sign"}'


async def test_kmmhub_status_says_that_some_wait(fleet: Fleet, addresses: HubAddresses) -> None:
    command = [sys.executable, "-m", "kmmhub.main", "status"]
    environment = os.environ | {"DATABASE_URL": addresses.database_urls["operator"]}

    async def status(*arguments: str) -> str:
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout

    assert "dead letter" not in await status()
    assert json.loads(await status("-o", "json"))["dead_letters"] == 0
    await bury(addresses, CHANGES, Changed(kind=Kind.MODULE, name="a"))
    assert (await status()).endswith("1 dead letter waits: kmmhub deadletters list\n")
    await bury(addresses, CHANGES, Changed(kind=Kind.MODULE, name="b"))
    assert (await status()).endswith("2 dead letters wait: kmmhub deadletters list\n")
    assert json.loads(await status("-o", "json"))["dead_letters"] == 2


async def test_poison_that_is_replayed_dies_again(
    fleet: Fleet, hub: HubAddresses, addresses: HubAddresses
) -> None:
    await publish(hub, ("kmm.build.x", b"a"), ("kmm.changed.x", b"b"), ("kmm.sign.x", b"c"))
    first = [row["id"] for row in await letters(fleet, 3)]
    replayed = await told(addresses, "replay", "--all")
    assert replayed == {"replayed": first}

    async def have_come_back() -> list[int]:
        rows = await letters(fleet, 3)
        assert not {row["id"] for row in rows} & set(first)
        return [row["id"] for row in rows]

    second = await eventually(have_come_back, what="all three are buried again")
    one = (await deadletters(addresses, "replay", str(second[0]))).stdout
    assert one.startswith(f"replayed {second[0]} kmm.")
    rows = await letters(fleet, 3)
    assert {row["payload"] for row in rows} == {b"a", b"b", b"c"}


async def test_dropping_removes_those_that_are_named(
    fleet: Fleet, hub: HubAddresses, addresses: HubAddresses
) -> None:
    await publish(hub, *((f"kmm.build.{number}", b"?") for number in range(4)))
    ids = [row["id"] for row in await letters(fleet, 4)]
    assert await told(addresses, "drop", str(ids[0]), str(ids[2])) == {"dropped": [ids[0], ids[2]]}
    assert [row["id"] for row in await letters(fleet, 2)] == [ids[1], ids[3]]
    gone = (await deadletters(addresses, "drop", "--all")).stdout
    assert len(gone.splitlines()) == 2
    assert await fleet.database.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert await fleet.database.fetchval("SELECT count(*) FROM outbox") == 0
    assert (await deadletters(addresses, "drop", "--all")).stdout == "no dead letters\n"


async def test_an_id_that_is_not_there_changes_nothing(fleet: Fleet, addresses: HubAddresses) -> None:
    none = (await deadletters(addresses, "show", "1", status=1)).stderr
    assert "there are: none" in none
    for name in "ab":
        await bury(addresses, CHANGES, Changed(kind=Kind.MODULE, name=name))
    first, second = (row["id"] for row in await letters(fleet, 2))
    missing = 10**30
    for command in ("replay", "drop"):
        said = (await deadletters(addresses, command, str(first), str(missing), status=1)).stderr
        assert f"no dead letter {missing}; there are: {first}, {second}" in said
        await deadletters(addresses, command, status=2)
        await deadletters(addresses, command, str(first), "--all", status=2)
    assert [row["id"] for row in await letters(fleet, 2)] == [first, second]
    assert await fleet.database.fetchval("SELECT count(*) FROM outbox") == 0


async def test_a_good_message_is_handled_once_its_cause_was_removed(
    fleet: Fleet, addresses: HubAddresses
) -> None:
    """A cluster that got a module's label while its announcement died: nothing else tells the dispatcher of it."""
    name = fleet.new_name()
    await fleet.push(name, KERNEL)
    for cluster, label in ((f"{name}-1", name), (f"{name}-2", None)):
        await fleet.add_cluster(cluster, label=label, kernels=[KERNEL])
    await fleet.add_module(name)
    await fleet.ready(name)
    await fleet.database.execute(
        "UPDATE clusters SET labels = $1::jsonb WHERE name = $2", json.dumps({"case": name}), f"{name}-2"
    )
    await bury(addresses, CHANGES, Changed(kind=Kind.CLUSTER, name=f"{name}-2"))
    await asyncio.sleep(2)
    assert await fleet.work(f"{name}-2", name) is None
    await deadletters(addresses, "replay", "--all")
    await fleet.posted(f"{name}-2", name)
    assert await fleet.database.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_a_handler_that_raises_has_eight_tries_on_real_servers(
    fleet: Fleet, hub: HubAddresses, addresses: HubAddresses
) -> None:
    """In the builder's place, as its users of the bus and of the database, a handler that a message breaks."""
    fleet.services["builder"].end()
    tries: list[tuple[str, float]] = []

    async def handle(request: Requested) -> Verdict:
        tries.append((request.artifact[0], time.monotonic()))
        if request.artifact.startswith("f"):
            raise LookupError("no f", "ever")
        return Done()

    stop = asyncio.Event()
    bus = await jetstream.connect(addresses.nats_urls["builder"], name="builder")
    async with open_store(addresses, "builder") as store:
        dead = DeadLetters(store, BUILDS, decode_requested, pause=lambda number: 0.1 * number)
        task = asyncio.create_task(bus.consume(BUILDS, dead.guarded(handle), concurrency=2, stop=stop))
        messages = [
            Requested(stage=Stage.BUILD, artifact=ArtifactKey(digit * 64), announcement=0) for digit in "0f1"
        ]
        await publish(hub, *((message.subject, encode(message)) for message in messages))
        (letter,) = await letters(fleet, 1)
        await asyncio.sleep(1)
        stop.set()
        await asyncio.wait_for(task, 10)
        async with store.begin() as transaction:
            (same,) = await transaction.read_dead_letters()
    await bus.close()
    fleet.services["builder"].start()
    await fleet.services["builder"].started()
    assert sorted(digit for digit, _ in tries) == ["0", "1", *["f"] * MOST_DELIVERIES]
    moments = [moment for digit, moment in tries if digit == "f"]
    assert moments[-1] - moments[-2] > moments[1] - moments[0]
    assert same == DeadLetter(
        id=letter["id"],
        queue=BUILDS.stream,
        subject=messages[1].subject,
        payload=encode(messages[1]),
        cause="LookupError: ('no f', 'ever')",
        deliveries=MOST_DELIVERIES,
        died_at=letter["died_at"],
    )


async def test_bytes_that_are_no_text_stop_nobody(fleet: Fleet, addresses: HubAddresses) -> None:
    """The client's library ends its reading loop at a subject or at headers that it cannot read."""
    url = urlsplit(addresses.nats_url)
    options = {
        "user": url.username,
        "pass": url.password,
        "headers": True,
        "verbose": False,
        "pedantic": False,
    }
    assert url.hostname is not None
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    await reader.readline()
    writer.write(f"CONNECT {json.dumps(options)}\r\n".encode())
    writer.write(b"PUB kmm.changed.\xff\xfe 4\r\njunk\r\n")
    writer.write(b"PUB kmm.build.\xc3( 4\r\njunk\r\n")
    bare = b"NATS/1.0"
    writer.write(b"HPUB kmm.changed.bare %d %d\r\n%sjunk\r\n" % (len(bare), len(bare) + 4, bare))
    writer.write(b"PING\r\n")
    await writer.drain()
    async with asyncio.timeout(10):
        assert await reader.readline() == b"PONG\r\n"
    writer.close()
    await writer.wait_closed()

    await letters(fleet, 3, seconds=40)
    name = fleet.new_name()
    await fleet.add_cluster(f"{name}-c", label=name, kernels=[KERNEL])
    await fleet.push(name, KERNEL)
    await fleet.add_module(name)
    await fleet.ready(name)

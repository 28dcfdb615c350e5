"""Services die and freeze at every fail point: what they leave, they or another of their kind finish."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import nats
import pytest
from cut_line import CutLine
from fail_point_walk import LEASE_SECONDS, Walker, Work, walk
from fleet import Fleet
from kernel_module import SigningPair, module, signer
from running_services import eventually
from services_fixtures import run_fleet
from test_services_recovery import builds_and_signatures

from localhub.hub import HubAddresses
from shared.bus.topology import CHANGES
from shared.registry.client import RegistryClient
from shared.runtime.fail_point import Action, FailPoint

__all__ = ["module", "signer"]  # fixtures

pytestmark = pytest.mark.integration

P = FailPoint
BUS = (P.MESSAGE_FETCHED, P.MESSAGE_HANDLED, P.MESSAGE_SETTLED)
OUTBOX = (P.OUTBOX_LOCKED, P.OUTBOX_PUBLISHED, P.OUTBOX_DELETED, P.OUTBOX_COMMITTED)
LEASE = (P.LEASE_TAKEN, P.LEASE_EXTENDED, P.STAGE_PERFORMED, P.RESULT_RECORDED)
OWN: Mapping[str, tuple[FailPoint, ...]] = {
    "watcher": (P.LEADERSHIP_HELD, P.BATCH_READ, P.BATCH_WRITTEN, P.BATCH_RECORDED),
    "dispatcher": (
        P.LEADERSHIP_HELD,
        P.PICTURE_TAKEN,
        P.ARTIFACTS_WANTED,
        P.FINALIZER_SET,
        P.WORK_WRITTEN,
        P.WORK_STORED,
        P.WORK_DELETED,
        P.STATUS_WRITTEN,
        P.EVENT_TOLD,
        P.MODULE_RELEASED,
    ),
    "builder": (P.BUILD_PLANNED, P.IMAGE_BUILT, P.IMAGE_PROMOTED),
    "signer": (P.SIGNED_IMAGE_PUSHED, P.SIGNATURES_VERIFIED, P.TAG_MOVED),
}
WALKS: Mapping[Action, Mapping[str, tuple[FailPoint, ...]]] = {
    "kill": {
        "watcher": (*OWN["watcher"], *OUTBOX),
        "dispatcher": (*OWN["dispatcher"], *OUTBOX, *BUS),
        "builder": (*OWN["builder"], *LEASE, *OUTBOX, *BUS),
        "signer": (*OWN["signer"], *LEASE, *OUTBOX, *BUS),
    },
    # Each costs the time of a lease, or of a transaction: what several services share is frozen in one of them.
    "stop": {
        "watcher": OWN["watcher"],
        "dispatcher": OWN["dispatcher"],
        "builder": (*OWN["builder"], *LEASE),
        "signer": (*OWN["signer"], *BUS, *OUTBOX),
    },
}
APART = {P.LEASE_RELEASED, P.SWEEP_ANNOUNCED, P.LETTER_BURIED}
"""Places that ordinary work does not reach; each has a test of its own."""
KERNEL = "6.1.0-13-amd64"


def test_every_place_is_walked_through() -> None:
    for services in WALKS.values():
        assert {point for points in services.values() for point in points} | APART == set(FailPoint)


@pytest.fixture(scope="module")
async def fleet(hub: HubAddresses, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    directory = tmp_path_factory.mktemp("services")
    async with run_fleet(hub, directory, KMMHUB_LEASE_SECONDS=str(LEASE_SECONDS)) as running:
        yield running
        assert running.services.surprises() == []


@pytest.fixture(scope="module")
async def work(fleet: Fleet, module: bytes, signer: SigningPair) -> AsyncIterator[Work]:
    _, signed = await builds_and_signatures(fleet, module, signer)
    sign = {key: value for key, value in signed["sign"].items() if not key.startswith("unsigned")}
    base = signed["sign"]["unsignedImage"]
    name = fleet.new_name()
    await fleet.add_config_map(
        name, {"dockerfile": f"ARG KERNEL_VERSION\nFROM {base}\nLABEL kernel=$KERNEL_VERSION\n"}
    )
    build = {"dockerfileConfigMap": {"name": name}, "baseImageRegistryTLS": {"insecure": True}}
    async with RegistryClient() as registry:
        yield Work(fleet, registry, build=build, sign=sign, base=base)


@pytest.mark.parametrize("action", ["kill", "stop"])
async def test_the_walk(fleet: Fleet, work: Work, action: Action) -> None:
    """Two builders and two signers share their places; one more of each never falls."""
    points, directory = WALKS[action], fleet.services["watcher"].log.parent
    walkers = []
    for name in ("watcher", "dispatcher"):
        fleet.services[name].kill()
        walkers.append(Walker(fleet.services[name], points[name], action=action, directory=directory))
    for name in ("builder", "signer"):
        for number in (0, 1):
            service = fleet.services.another(name, number=2 + number)
            walkers.append(Walker(service, points[name][number::2], action=action, directory=directory))
    others = [walker.service for walker in walkers[2:]]
    try:
        await walk(walkers, work)
        for service in others:
            assert await asyncio.to_thread(service.end) == 0
            assert not [line for line in service.events() if line["level"] == "error"]
    finally:
        for service in others:
            if service.is_running:
                service.kill()


async def only_place(fleet: Fleet, name: str, point: FailPoint, action: Action) -> Walker:
    """The fleet's own service, in a life with one place."""
    service = fleet.services[name]
    if service.is_running:
        service.kill()
    walker = Walker(service, [point], action=action, directory=service.log.parent)
    walker.start()
    walker.arm()
    await service.started()
    return walker


@contextlib.asynccontextmanager
async def line_to(fleet: Fleet) -> AsyncIterator[tuple[CutLine, str]]:
    """A line to the fleet's registry, and the address of its near end."""
    host, port = fleet.image("").partition("/")[0].split(":")
    line = CutLine(host, int(port))
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    try:
        yield line, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await line.end()
        await server.wait_closed()


@pytest.mark.parametrize("action", ["kill", "stop"])
@pytest.mark.parametrize("name", ["builder", "signer"])
async def test_a_lease_is_given_back(fleet: Fleet, work: Work, name: str, action: Action) -> None:
    """A worker that was told to end falls when its artifact is another's to take; its registry answers nobody."""
    built, cluster = fleet.new_name(), f"{fleet.new_name()}-c"
    query = "SELECT state, fence, lease_owner FROM artifacts WHERE target = $1"
    async with line_to(fleet) as (line, address):
        fleet.services[name].kill()
        target = f"{address}/{built}:{KERNEL}"
        await fleet.push(built, KERNEL)
        mapping = {"regexp": "^.+$", "containerImage": f"{address}/{built}:${{KERNEL_FULL_VERSION}}"}
        if name == "signer":
            source = {
                "unsignedImage": f"{address}/{work.base.partition('/')[2]}",
                "unsignedImageRegistryTLS": {"insecure": True},
            }
            target = fleet.image(built, "signed")
            mapping = {"regexp": "^.+$", "containerImage": target, "sign": work.sign | source}
        await fleet.add_cluster(cluster, label=built, kernels=[KERNEL])
        await fleet.add_module(built, mappings=[mapping])

        async def is_in(state: str) -> bool:
            row = await fleet.database.fetchrow(query, target)
            return row is not None and row["state"] == state

        waiting, working = ("wanted", "building") if name == "builder" else ("built", "signing")
        await eventually(lambda: is_in(waiting), what=f"{target} is {waiting}", seconds=60)
        line.silence()
        walker = await only_place(fleet, name, FailPoint.LEASE_RELEASED, action)
        await eventually(lambda: is_in(working), what=f"{target} is {working}", seconds=60)
        walker.service.ask_to_end()
        await walker.reach()
        assert await is_in(waiting)
        line.speak()
        other = fleet.services.another(name, number=4)
        other.start()
        try:
            await fleet.ready(built, seconds=90)
            row = await fleet.database.fetchrow(query, target)
            assert row is not None
            assert row["fence"] == {"builder": 2, "signer": 3}[name]
            assert row["lease_owner"].endswith(f"/{other.pid}")
            await walker.recover()
            if action == "stop":
                assert await asyncio.to_thread(walker.service.status) == 0
                walker.service.start()
            await fleet.ready(built)
            assert await fleet.database.fetchrow(query, target) == row
        finally:
            assert await asyncio.to_thread(other.end) == 0


@pytest.mark.parametrize("action", ["kill", "stop"])
async def test_the_sweep_announces(fleet: Fleet, action: Action) -> None:
    """An image that was missing comes while the dispatcher lies where it has just said that it should be looked for."""
    name, cluster = fleet.new_name(), f"{fleet.new_name()}-c"
    walker = await only_place(fleet, "dispatcher", FailPoint.SWEEP_ANNOUNCED, action)
    await fleet.add_cluster(cluster, label=name, kernels=[KERNEL])
    await fleet.add_module(name)
    await walker.reach()
    digest = await fleet.push(name, KERNEL)
    await walker.recover()
    await fleet.ready(name, seconds=90)
    await fleet.serves(cluster, name, {KERNEL: f"{fleet.image(name).partition(':$')[0]}@{digest}"})


@pytest.mark.parametrize("action", ["kill", "stop"])
async def test_a_dead_letter_is_kept_once(fleet: Fleet, hub: HubAddresses, action: Action) -> None:
    """The dispatcher falls when the letter is in the table and the message still in the queue: it comes again."""
    subject = f"kmm.changed.{fleet.new_name()}"
    walker = await only_place(fleet, "dispatcher", FailPoint.LETTER_BURIED, action)
    client = await nats.connect(hub.nats_url)
    try:
        await client.jetstream().publish(subject, b"no message of ours")
        await walker.reach()
        await walker.recover()

        async def is_settled() -> bool:
            consumer = await client.jetstream().consumer_info(CHANGES.stream, CHANGES.consumer)
            return consumer.num_ack_pending == consumer.num_pending == 0

        await eventually(is_settled, what="no message waits", seconds=100)
    finally:
        await client.close()
    letters = await fleet.database.fetch("SELECT cause FROM dead_letters WHERE subject = $1", subject)
    assert len(letters) == 1, letters

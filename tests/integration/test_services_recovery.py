"""Faults: services killed at any moment, servers killed or wiped under them. Everything converges and falls silent."""

import asyncio
import io
import os
import shutil
import signal
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, TypeAlias

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fleet import Fleet, served
from kernel_module import SigningPair, module, signer
from running_services import ALL, NAMES, eventually
from services_fixtures import delete_streams, run_fleet

from localhub import processes
from localhub.addresses import GivenAddresses
from localhub.hub import LocalHub
from shared.domain.work import HASH_ANNOTATION
from shared.kube.client import MANIFEST_WORKS, MODULES

__all__ = ["module", "signer"]  # fixtures

pytestmark = pytest.mark.integration

KERNELS = ("6.1.0-13-amd64", "6.1.0-14-amd64")
Expected: TypeAlias = dict[str, tuple[list[str], set[str]]]
"""Module: its clusters, and the kernels that its works serve there."""

DOCKERFILE = "FROM scratch\nARG KERNEL_VERSION\nLABEL kernel=$KERNEL_VERSION\n"


@pytest.fixture(scope="module")
def own_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A hub whose servers a test may kill."""
    opened = LocalHub(tmp_path_factory.mktemp("hub"), given=GivenAddresses())
    opened.up()
    yield opened
    opened.down(purge=True)


@pytest.fixture(scope="module")
async def fleet(own_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with run_fleet(own_hub.addresses(), tmp_path_factory.mktemp("services")) as running:
        yield running
        assert running.services.surprises() == []


@pytest.fixture(autouse=True)
async def whole(fleet: Fleet, own_hub: LocalHub) -> AsyncIterator[None]:
    """After each test everything runs, whatever the test left."""
    yield
    await asyncio.to_thread(own_hub.up)
    fleet.services.start()


def kill_server(hub: LocalHub, name: str) -> None:
    os.kill(processes.running(hub.directory)[name], signal.SIGKILL)


async def converges(fleet: Fleet, works: Expected, *, seconds: float = 60) -> None:
    """Wait until every module is ready, and has works that serve its kernels on its clusters and on no other."""

    async def look() -> bool:
        for name, (clusters, kernels) in works.items():
            condition = await fleet.condition(name, "Ready")
            assert condition["status"] == "True", f"{name}: {condition}"
            found = {cluster for cluster, work in await fleet.versions() if work == name and cluster}
            assert found == set(clusters), f"{name} has works in {found}"
            for cluster in clusters:
                work = await fleet.posted(cluster, name)
                assert set(served(work)) == kernels, f"{name} in {cluster}: {served(work)}"
        return True

    await eventually(look, what="everything converges", seconds=seconds, every=0.3)
    rows = await fleet.database.fetch("SELECT DISTINCT digest FROM artifacts WHERE state = 'ready'")
    digests = {row["digest"] for row in rows}
    for name, (clusters, _) in works.items():
        for cluster in clusters:
            images = served(await fleet.posted(cluster, name)).values()
            assert {image.partition("@")[2] for image in images} <= digests


async def add_modules(
    fleet: Fleet, *, clusters: int = 3, modules: int = 2, container: Mapping[str, Any] | None = None
) -> Expected:
    """Some modules on some clusters, whose images are there unless the modules say how to make them."""
    label = fleet.new_name()
    names = [f"{label}-{number}" for number in range(clusters)]
    for cluster in names:
        await fleet.add_cluster(cluster, label=label, kernels=KERNELS)
    works: Expected = {}
    for _ in range(modules):
        name = fleet.new_name()
        for kernel in () if container else KERNELS:
            await fleet.push(name, kernel)
        await fleet.add_module(name, select=label, **container or {})
        works[name] = (names, set(KERNELS))
    return works


async def test_what_changed_while_all_services_were_down_is_done_afterwards(fleet: Fleet) -> None:
    works = await add_modules(fleet, modules=3)
    kept, going, edited = works
    clusters, _ = works[kept]
    await converges(fleet, works)
    statuses = fleet.services.end()
    assert set(statuses.values()) == {0}

    await fleet.kube.delete(MODULES, going)
    await fleet.label(clusters[0], "elsewhere")
    await fleet.claim(clusters[1], KERNELS[:1])
    await fleet.claim(clusters[2], KERNELS[:1])
    await fleet.kube.delete(MANIFEST_WORKS, kept, namespace=clusters[1])
    await fleet.kube.merge_patch(
        MANIFEST_WORKS, edited, {"metadata": {"annotations": {HASH_ANNOTATION: "0"}}}, namespace=clusters[2]
    )
    await fleet.add_cluster(f"{kept}-new", label=(await selected_by(fleet, kept)), kernels=KERNELS[:1])
    await fleet.kube.merge_patch(
        MANIFEST_WORKS,
        edited,
        {"spec": {"deleteOption": {"propagationPolicy": "Orphan"}}},
        namespace=clusters[1],
    )
    fleet.services.start()

    await fleet.module_gone(going)
    left = [clusters[1], clusters[2], f"{kept}-new"]
    await converges(fleet, {name: (left, {KERNELS[0]}) for name in (kept, edited)})
    assert not any(name == going for _, name in await fleet.versions())
    assert "deleteOption" not in (await fleet.posted(clusters[1], edited))["spec"]


async def selected_by(fleet: Fleet, name: str) -> str:
    found = await fleet.module(name)
    assert found is not None
    return str(found["spec"]["selector"]["case"])


@pytest.mark.parametrize("name", NAMES)
async def test_a_service_killed_again_and_again_during_work(
    fleet: Fleet, name: str, module: bytes, signer: SigningPair
) -> None:
    built, signed = await builds_and_signatures(fleet, module, signer)
    victim = fleet.services[name]
    works: Expected = {}
    for number in range(4):
        works |= await add_modules(fleet)
        if number == 1:
            works |= await add_modules(fleet, modules=1, container=built)
        if number == 2:
            works |= await add_modules(fleet, modules=1, container=signed)
        await asyncio.sleep(0.15 * number)
        victim.kill()
        victim.start()
    await converges(fleet, works)
    assert await fleet.database.fetchval("SELECT count(*) FROM artifacts WHERE state = 'failed'") == 0


async def builds_and_signatures(
    fleet: Fleet, module: bytes, signer: SigningPair
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Containers of a module that is built and of one that is signed."""
    name = fleet.new_name()
    await fleet.add_config_map(name, {"dockerfile": DOCKERFILE})
    key = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificate = signer.certificate.public_bytes(Encoding.PEM)
    await fleet.add_secret(f"{name}-key", {"key": key.decode()})
    await fleet.add_secret(f"{name}-cert", {"cert": certificate.decode()})
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        entry = tarfile.TarInfo("opt/hello.ko")
        entry.size = len(module)
        layer.addfile(entry, io.BytesIO(module))
    await fleet.push(name, "unsigned", content=content.getvalue())
    built: dict[str, Any] = {"build": {"dockerfileConfigMap": {"name": name}}}
    signed: dict[str, Any] = {
        "sign": {
            "keySecret": {"name": f"{name}-key"},
            "certSecret": {"name": f"{name}-cert"},
            "unsignedImage": fleet.image(name, "unsigned"),
            "unsignedImageRegistryTLS": {"insecure": True},
            "filesToSign": ["/opt/hello.ko"],
        }
    }
    return built, signed


async def test_a_builder_that_slept_through_its_lease_changes_nothing(fleet: Fleet) -> None:
    """The zombie wakes up after another builder has finished its artifact."""
    name, cluster = fleet.new_name(), f"{fleet.new_name()}-c"
    await fleet.add_config_map(name, {"dockerfile": DOCKERFILE})
    await fleet.add_cluster(cluster, label=name, kernels=KERNELS[:1])
    await fleet.add_module(name, build={"dockerfileConfigMap": {"name": name}})
    query = "SELECT state, fence, digest, lease_owner FROM artifacts WHERE target = $1"

    async def is_building() -> bool:
        row = await fleet.database.fetchrow(query, fleet.image(name, KERNELS[0]))
        return row is not None and row["state"] == "building"

    await eventually(is_building, what="the build has begun", every=0.005)
    sleeper = fleet.services["builder"]
    os.kill(sleeper.pid, signal.SIGSTOP)
    second = fleet.services.another("builder")
    second.start()
    try:
        await fleet.ready(name, seconds=40)
        before = await fleet.database.fetchrow(query, fleet.image(name, KERNELS[0]))
        os.kill(sleeper.pid, signal.SIGCONT)
        await asyncio.sleep(2)
        after = await fleet.database.fetchrow(query, fleet.image(name, KERNELS[0]))
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
        assert second.end() == 0
    assert before is not None
    assert before["fence"] == 2
    assert before["lease_owner"].endswith(f"/{second.pid}")
    assert after == before
    await fleet.ready(name)


@pytest.mark.parametrize("is_wiped", [False, True])
async def test_nats_is_killed_under_the_services(fleet: Fleet, own_hub: LocalHub, is_wiped: bool) -> None:
    works = await add_modules(fleet, modules=1)
    kill_server(own_hub, "nats")
    works |= await add_modules(fleet, modules=1)
    if is_wiped:
        shutil.rmtree(own_hub.directory / "nats" / "data")
    await asyncio.to_thread(own_hub.up)
    works |= await add_modules(fleet, modules=1)
    await converges(fleet, works, seconds=90)


async def test_services_wait_for_streams_that_only_one_process_may_make(
    fleet: Fleet, own_hub: LocalHub
) -> None:
    works = await add_modules(fleet, modules=1)
    await converges(fleet, works)
    fleet.services["streams"].kill()
    await delete_streams(own_hub.addresses().nats_url)
    added = asyncio.create_task(add_modules(fleet, modules=1))

    async def nobody_is_ready() -> bool:
        checks = [await asyncio.to_thread(fleet.services[name].checks) for name in NAMES]
        return all(one.get("bus") and one.get("streams") is False for one in checks)

    async def all_are_ready() -> bool:
        checks = [await asyncio.to_thread(fleet.services[name].checks) for name in ALL]
        return all(one and all(one.values()) for one in checks)

    works |= await added
    await eventually(nobody_is_ready, what="no service is ready without streams")
    fleet.services.start()
    await converges(fleet, works)
    await eventually(all_are_ready, what="every service is ready again")
    for name in NAMES:
        told = [line for line in fleet.services[name].events() if line["event"] == "bus.stream_missing"]
        assert told
        assert all("kmmhub streams" in line["what_to_do"] for line in told)


@pytest.mark.parametrize("name", ["postgres", "kube-apiserver", "etcd"])
async def test_a_server_is_killed_under_the_services(fleet: Fleet, own_hub: LocalHub, name: str) -> None:
    works = await add_modules(fleet, modules=2)
    pids = {service: fleet.services[service].pid for service in NAMES}
    kill_server(own_hub, name)
    await asyncio.sleep(2)
    await asyncio.to_thread(own_hub.up)
    works |= await add_modules(fleet, modules=1)
    await converges(fleet, works, seconds=90)
    assert {
        service: fleet.services[service].pid for service in NAMES if fleet.services[service].is_running
    } == pids


async def test_services_that_start_before_nats_wait_and_can_be_stopped(
    fleet: Fleet, own_hub: LocalHub
) -> None:
    fleet.services.end()
    kill_server(own_hub, "nats")
    fleet.services.start()
    for name in NAMES:
        await fleet.services[name].started()
    await asyncio.sleep(1)
    assert all(fleet.services[name].is_running for name in NAMES)
    assert set(fleet.services.end().values()) == {0}

    fleet.services.start()
    await asyncio.to_thread(own_hub.up)
    await converges(fleet, await add_modules(fleet, modules=1))


async def test_in_the_end_nothing_is_written(fleet: Fleet) -> None:
    async def is_still() -> bool:
        before = await fleet.versions()
        await asyncio.sleep(1)
        return await fleet.versions() == before

    await eventually(is_still, what="no work and no module changes any more", seconds=40)
    versions, requests = await fleet.versions(), fleet.write_requests()
    await asyncio.sleep(4)
    assert await fleet.versions() == versions
    assert fleet.write_requests() == requests


def test_nobody_was_refused_anything_on_the_bus(fleet: Fleet) -> None:
    """Each service has used its own user through all that happened here."""
    for name in ALL:
        refused = [line for line in fleet.services[name].events() if line["event"] == "bus.denied"]
        assert refused == []

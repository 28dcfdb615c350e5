"""What a person sees: kubectl's columns and waiting, Events that count, `kmmhub status`, a bounded attention."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from fleet import Fleet
from kubectl import Kubectl
from running_services import ROOT, eventually
from services_fixtures import fleet

from localhub.hub import HubAddresses
from shared.events.messages import Changed, Kind
from shared.kube.client import EVENTS
from shared.store.database import connect
from shared.store.outbox import announce
from shared.store.postgres import PostgresStore

__all__ = ["fleet"]  # a fixture

pytestmark = pytest.mark.integration

Json = dict[str, Any]
KERNEL = "6.1.0-13-amd64"
MAX_ATTENTION = 20


async def events_of(fleet: Fleet, name: str) -> dict[str, tuple[str, int, str]]:
    """Events about a module: type, count and resourceVersion by reason, of which there is one each."""
    items = json.loads(await fleet.kube.list_page(EVENTS, namespace="default", limit=5000))["items"]
    ours = [item for item in items if item["involvedObject"]["name"] == name]
    found = {
        item["reason"]: (item["type"], item["count"], item["metadata"]["resourceVersion"]) for item in ours
    }
    assert len(found) == len(ours), [(item["reason"], item["message"]) for item in ours]
    return found


def database_of(hub: HubAddresses, name: str) -> str:
    """The address of one of the hub's databases."""
    return urlunsplit(urlsplit(hub.database_url)._replace(path=f"/{name}"))


async def kmmhub_status(fleet: Fleet, hub: HubAddresses, name: str) -> Json:
    """What `kmmhub status NAME -o json` prints."""
    database = await fleet.database.fetchval("SELECT current_database()")
    url = database_of(hub, database)
    environment = os.environ | {"OPERATOR_NAMESPACE": fleet.namespace}
    command = [sys.executable, "-m", "kmmhub.main", "status", name, "-o", "json", "--database-url", url]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout, done.stderr
    (module,) = json.loads(done.stdout)["modules"]
    return dict(module)


async def test_kubectl_waits_for_a_module_and_shows_its_columns(fleet: Fleet, hub: HubAddresses) -> None:
    name = fleet.new_name()
    await fleet.push(name, KERNEL)
    await fleet.add_cluster(f"{name}-c", label=name, kernels=[KERNEL])
    await fleet.add_module(name)
    kubectl = Kubectl(hub)

    waited = await asyncio.to_thread(
        kubectl.run, "wait", "--for=condition=Ready", "--timeout=20s", f"mcm/{name}"
    )

    assert waited.returncode == 0, waited.stderr
    heading, line = (
        await asyncio.to_thread(kubectl.run, "get", "mcm", name, "-o", "wide")
    ).stdout.splitlines()
    assert heading.split() == ["NAME", "DESIRED", "APPLIED", "DEGRADED", "READY", "REASON", "AGE"]
    assert line.split()[:6] == [name, "1", "0", "0", "True", "Ready"]
    generation = (await fleet.module(name) or {})["metadata"]["generation"]
    gone = await asyncio.to_thread(
        kubectl.run, "wait", f"--for=jsonpath={{.status.observedGeneration}}={generation}", f"mcm/{name}"
    )
    assert gone.returncode == 0, gone.stderr


async def test_events_are_told_once_counted_when_repeated_and_silent_in_between(fleet: Fleet) -> None:
    name = fleet.new_name()
    await fleet.push(name, KERNEL)
    for number in range(2):
        await fleet.add_cluster(f"{name}-{number}", label=name, kernels=[KERNEL])
    await fleet.add_module(name)
    await fleet.ready(name)
    there = [{"regexp": ".+", "containerImage": fleet.image(name)}]
    missing = [{"regexp": ".+", "containerImage": fleet.image(name, "missing")}]

    for number in range(3):
        # Another number of clusters in the message is no other event.
        await fleet.add_cluster(f"{name}-more-{number}", label=name, kernels=[KERNEL])
        await fleet.change_module(name, kernelMappings=missing)
        await fleet.shows(name, "Degraded", "True", "ImageMissing")
        await fleet.change_module(name, kernelMappings=there)
        await fleet.ready(name)

    async def are_told() -> bool:
        told = {reason: (kind, count) for reason, (kind, count, _) in (await events_of(fleet, name)).items()}
        assert told["ImageMissing"] == ("Warning", 3)
        assert told["Recovered"] == ("Normal", 3)
        assert told["Ready"] == ("Normal", 4)
        return True

    await eventually(are_told, what="each event is told once and counted")
    before = await events_of(fleet, name)
    await fleet.label(f"{name}-0", name)
    await asyncio.sleep(2)
    assert await events_of(fleet, name) == before


async def test_nothing_is_written_or_told_twice_while_the_watcher_is_behind(
    fleet: Fleet, hub: HubAddresses
) -> None:
    name = fleet.new_name()
    await fleet.add_cluster(f"{name}-c", label=name, kernels=[KERNEL])
    await fleet.add_module(name)
    await fleet.shows(name, "Degraded", "True", "ImageMissing")
    await asyncio.sleep(1)
    engine = connect(
        database_of(hub, await fleet.database.fetchval("SELECT current_database()")), application="test"
    )
    os.kill(fleet.services["watcher"].pid, signal.SIGSTOP)
    try:
        await fleet.push(name, KERNEL)
        await fleet.ready(name)
        await asyncio.sleep(1.5)
        before, told = await fleet.module(name), await events_of(fleet, name)
        for _ in range(2):
            async with PostgresStore(engine).begin() as transaction:
                await announce(transaction, [Changed(kind=Kind.MODULE, name=name)])
            await asyncio.sleep(1.5)
        assert await fleet.module(name) == before
        assert await events_of(fleet, name) == told
        assert {count for _, count, _ in told.values()} == {1}
    finally:
        os.kill(fleet.services["watcher"].pid, signal.SIGCONT)
        await engine.dispose()


async def test_attention_is_bounded_and_the_command_tells_the_whole(fleet: Fleet, hub: HubAddresses) -> None:
    name = fleet.new_name()
    await fleet.push(name, KERNEL)
    clusters = [f"{name}-{number:02}" for number in range(MAX_ATTENTION + 3)]
    for cluster in clusters:
        await fleet.add_cluster(cluster, label=name, kernels=["4.18.0-1.el8.x86_64"])
    await fleet.add_cluster(f"{name}-fine", label=name, kernels=[KERNEL])
    await fleet.add_module(name, mappings=[{"literal": KERNEL, "containerImage": fleet.image(name)}])
    message = await fleet.shows(name, "Degraded", "True", "NoMatchingKernel")
    await fleet.posted(f"{name}-fine", name)

    async def is_whole() -> Json:
        status: Json = (await fleet.module(name) or {})["status"]
        assert status["phases"]["Failed"] == len(clusters)
        assert status["phases"]["Dispatched"] == 1
        return status

    status = await eventually(is_whole, what="every cluster is in a phase")
    assert [entry["cluster"] for entry in status["attention"]] == clusters[:MAX_ATTENTION]
    assert "and 18 more" in message
    told = await kmmhub_status(fleet, hub, name)
    assert told["conditions"] == status["conditions"]
    assert {one["cluster"]: one["reason"] for one in told["clusters"] if one["attention"]} == dict.fromkeys(
        clusters, "NoMatchingKernel"
    )


async def test_the_command_tells_what_the_api_server_refused_as_the_conditions_do(
    fleet: Fleet, hub: HubAddresses
) -> None:
    name = fleet.new_name()
    await fleet.push(name, KERNEL)
    await fleet.add_cluster(f"{name}-late", label=name, kernels=[KERNEL], has_namespace=False)
    await fleet.add_module(name)
    await fleet.shows(name, "Degraded", "True", "ClusterNamespaceMissing")

    async def is_told() -> bool:
        told = await kmmhub_status(fleet, hub, name)
        status = (await fleet.module(name) or {})["status"]
        assert told["conditions"] == status["conditions"]
        (cluster,) = told["clusters"]
        assert (cluster["phase"], cluster["reason"]) == ("Failed", "ClusterNamespaceMissing")
        assert [one["reason"] for one in cluster["attention"]] == ["ClusterNamespaceMissing"]
        return True

    await eventually(is_told, what="the command tells the same", every=0.5)

"""The deployed configuration on a real server, and the commands that prepare and keep the streams."""

import asyncio
import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import nats
import pytest
from broker import Broker
from nats.js.api import RetentionPolicy
from running_services import ROOT, eventually

from shared.bus import jetstream
from shared.bus.connection import BusDenied, BusUnavailable
from shared.bus.nkey import read_nkey
from shared.bus.permissions import Identity
from shared.bus.streams import open_administrator
from shared.bus.topology import BUILDS, CHANGES, QUEUES

pytestmark = pytest.mark.integration

DEPLOYED = ROOT / "deploy" / "nats"


def kmmhub(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.pathsep.join(os.get_exec_path()), "COLUMNS": "160", **variables}
    command = [sys.executable, "-m", "kmmhub.main", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(params=["password", "nkey"])
def deployed(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Broker, Mapping[Identity, dict[str, str]]]]:
    """A server with the deployed files, and each user's environment."""
    proof = request.param
    text = (DEPLOYED / "nats.conf").read_text()
    assert "store_dir: /data" in text
    (tmp_path / "nats.conf").write_text(text.replace("store_dir: /data", f"store_dir: {tmp_path}/data"))
    shutil.copy(DEPLOYED / f"users-{proof}.conf", tmp_path / "users.conf")
    secrets: dict[str, str] = {}
    for identity in Identity:
        if proof == "password":
            secrets[f"NATS_PASSWORD_{identity.upper()}"] = f"p0{identity}"
        else:
            made = kmmhub("nkey", str(tmp_path / identity))
            secrets[f"NATS_NKEY_{identity.upper()}"] = made.stdout.strip()
    running = Broker(tmp_path, configuration=tmp_path / "nats.conf", environment=secrets)
    running.start()
    where = running.url.removeprefix("nats://")
    environments = {
        identity: {"NATS_URL": f"nats://{identity}:p0{identity}@{where}"}
        if proof == "password"
        else {"NATS_URL": running.url, "NATS_NKEY_SEED": str(tmp_path / identity)}
        for identity in Identity
    }
    yield running, environments
    running.kill()


async def open_bus(identity: Identity, environment: Mapping[str, str]) -> jetstream.Bus:
    seed = environment.get("NATS_NKEY_SEED")
    return await jetstream.connect(
        environment["NATS_URL"], name=identity, nkey_seed=Path(seed) if seed else None
    )


async def test_the_deployed_configuration_admits_our_users_with_their_rights(
    deployed: tuple[Broker, Mapping[Identity, dict[str, str]]],
) -> None:
    broker, environments = deployed
    made = await asyncio.to_thread(kmmhub, "streams", "-o", "json", **environments[Identity.STREAMS])
    assert made.returncode == 0, made.stderr
    rows = json.loads(made.stdout)["streams"]
    assert [(row["stream"], row["consumer"]) for row in rows] == [
        (queue.stream, consumer) for queue in QUEUES for consumer in (None, queue.consumer)
    ]
    assert {row["action"] for row in rows} == {"created"}
    again = await asyncio.to_thread(kmmhub, "streams", **environments[Identity.STREAMS])
    assert again.stdout.splitlines()[:2] == [
        "unchanged stream KMM_CHANGES",
        "unchanged consumer dispatcher of KMM_CHANGES",
    ]
    assert again.stderr == ""

    builder = await open_bus(Identity.BUILDER, environments[Identity.BUILDER])
    await builder.publish("kmm.sign.0", b"{}", message_id="1")
    with pytest.raises(BusDenied):
        await builder.publish("kmm.changed.module.0", b"{}", message_id="2")
    await builder.close()
    with pytest.raises(BusUnavailable, match="does not admit us"):
        await jetstream.connect(broker.url, name="builder")


async def test_the_streams_of_an_older_release_are_replaced_by_the_deployed_user(
    deployed: tuple[Broker, Mapping[Identity, dict[str, str]]],
) -> None:
    _, environments = deployed
    variables = environments[Identity.STREAMS]
    seed = variables.get("NATS_NKEY_SEED")
    administrator = await open_administrator(variables["NATS_URL"], nkey_seed=Path(seed) if seed else None)
    await administrator.ensure([replace(CHANGES, retention=RetentionPolicy.LIMITS)])
    await administrator.close()
    upgraded = await asyncio.to_thread(kmmhub, "streams", **variables)
    assert upgraded.returncode == 0, upgraded.stderr
    assert upgraded.stdout.splitlines()[:2] == [
        "replaced stream KMM_CHANGES",
        "created consumer dispatcher of KMM_CHANGES",
    ]


async def test_whoever_may_not_make_streams_is_told(
    deployed: tuple[Broker, Mapping[Identity, dict[str, str]]],
) -> None:
    _, environments = deployed
    refused = await asyncio.to_thread(kmmhub, "streams", **environments[Identity.BUILDER])
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "kmmhub: NATS refuses us stream KMM_CHANGES" in refused.stderr
    assert "$js.api.stream.info.kmm_changes" in refused.stderr


def test_a_missing_address_is_named() -> None:
    told = kmmhub("streams")
    assert told.returncode == 1
    assert "NATS_URL" in told.stderr


def test_a_seed_is_private_and_never_overwritten(tmp_path: Path) -> None:
    made = kmmhub("nkey", str(tmp_path / "seed"))
    assert made.stdout == f"{read_nkey(tmp_path / 'seed').public}\n"
    assert stat.S_IMODE((tmp_path / "seed").stat().st_mode) == 0o600
    before = (tmp_path / "seed").read_text()
    again = kmmhub("nkey", str(tmp_path / "seed"))
    assert again.returncode == 1
    assert "never overwritten" in again.stderr
    assert (tmp_path / "seed").read_text() == before


@contextlib.asynccontextmanager
async def watching(broker: Broker, log: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    environment = {"PATH": os.pathsep.join(os.get_exec_path()), "NATS_URL": broker.url}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time
            [sys.executable, "-m", "kmmhub.main", "streams", "--watch"],
            cwd=ROOT,
            env=environment,
            stderr=output,
        )
    try:
        yield process
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0
    finally:
        process.kill()
        process.wait()


async def has_all(broker: Broker) -> bool:
    try:
        client = await nats.connect(broker.url, allow_reconnect=False, connect_timeout=1)
    except (OSError, nats.errors.Error):
        return False
    try:
        for queue in QUEUES:
            await client.jetstream(timeout=1).consumer_info(queue.stream, queue.consumer)
    except (nats.js.errors.Error, TimeoutError):
        return False
    finally:
        await client.close()
    return True


async def test_the_watch_starts_before_nats_and_makes_again_what_is_lost(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    async with watching(broker, tmp_path / "watch.log"):
        await asyncio.sleep(2)
        broker.start()
        try:
            await eventually(lambda: has_all(broker), what="everything is made", seconds=15)
            client = await nats.connect(broker.url)
            await client.jetstream().delete_stream(BUILDS.stream)
            await client.jetstream().delete_consumer(QUEUES[0].stream, QUEUES[0].consumer)
            await client.close()
            assert not await has_all(broker)
            await eventually(lambda: has_all(broker), what="everything is made again", seconds=10)
            await broker.restart(is_wiped=True)
            await eventually(
                lambda: has_all(broker), what="everything is made in the empty server", seconds=15
            )
        finally:
            broker.kill()
    lines = [json.loads(line) for line in (tmp_path / "watch.log").read_text().splitlines()]
    made = [
        (line["event"], line["stream"], line["consumer"])
        for line in lines
        if line["event"] == "streams.created"
    ]
    assert made.count(("streams.created", BUILDS.stream, BUILDS.consumer)) == 3
    assert not [line for line in lines if line["level"] == "error"]

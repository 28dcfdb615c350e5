"""The local hub itself: real servers, found again, replaced, and ended without harm to others."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import nats
import pytest

from localhub import ocm, postgres, processes
from localhub.addresses import GivenAddresses
from localhub.hub import HubAddresses, LocalHub
from localhub.server import free_port
from shared.domain.errors import PermanentError, TransientError

pytestmark = pytest.mark.integration

NOTHING = GivenAddresses()
SERVERS = {"kube-apiserver", "etcd", "nats", "postgres", "registry"}


@contextmanager
def running_hub(directory: Path, given: GivenAddresses = NOTHING) -> Iterator[tuple[LocalHub, HubAddresses]]:
    hub = LocalHub(directory, given=given)
    try:
        yield hub, hub.up()
    finally:
        hub.down(purge=True)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalHub, HubAddresses]]:
    with running_hub(tmp_path_factory.mktemp("own")) as pair:
        yield pair


def kubectl(addresses: HubAddresses, *arguments: str) -> str:
    command = [str(addresses.kubectl), f"--kubeconfig={addresses.kubeconfig}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_api_server_is_the_pinned_version_and_serves_ocm(own: tuple[LocalHub, HubAddresses]) -> None:
    _, addresses = own
    version = json.loads(kubectl(addresses, "version", "-o", "json"))
    assert version["serverVersion"]["gitVersion"] == version["clientVersion"]["gitVersion"]
    assert version["serverVersion"]["minor"] == "36"
    served = kubectl(addresses, "get", "crd", "-o", "name").split()
    assert {name.partition("/")[2] for name in served} >= set(ocm.FILES)
    manifest = {"apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork"}
    work = {
        **manifest,
        "metadata": {"name": "one", "namespace": "default"},
        "spec": {"workload": {"manifests": []}},
    }
    path = Path(addresses.kubeconfig).parent / "work.json"
    path.write_text(json.dumps(work))
    assert "created" in kubectl(addresses, "create", "-f", str(path))
    path.unlink()


def test_api_server_authorizes_by_rbac(own: tuple[LocalHub, HubAddresses]) -> None:
    _, addresses = own
    assert kubectl(addresses, "auth", "can-i", "create", "secrets").strip() == "yes"
    command = [
        str(addresses.kubectl),
        f"--kubeconfig={addresses.kubeconfig}",
        "--as=nobody",
        "get",
        "secrets",
    ]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "forbidden" in outcome.stderr


async def test_nats_stores_messages(own: tuple[LocalHub, HubAddresses]) -> None:
    _, addresses = own
    connection = await nats.connect(addresses.nats_url)
    stream = connection.jetstream()
    await stream.add_stream(name="try", subjects=["try.>"])
    assert (await stream.publish("try.one", b"1")).seq == 1
    await connection.close()


def test_nats_refuses_strangers(own: tuple[LocalHub, HubAddresses]) -> None:
    _, addresses = own
    where = urlsplit(addresses.nats_url)
    with socket.create_connection((where.hostname, where.port), timeout=5) as connection:
        answers = connection.makefile("rb")
        assert b'"auth_required":true' in answers.readline()
        connection.sendall(b'CONNECT {"verbose":true,"user":"kmmhub","pass":"wrong"}\r\n')
        assert answers.readline() == b"-ERR 'Authorization Violation'\r\n"


async def test_postgres_is_durable_and_refuses_strangers(own: tuple[LocalHub, HubAddresses]) -> None:
    _, addresses = own
    connection = await asyncpg.connect(addresses.database_url)
    assert await connection.fetchval("SHOW fsync") == "on"
    assert await connection.fetchval("SHOW password_encryption") == "scram-sha-256"
    assert await connection.fetchval("SHOW server_encoding") == "UTF8"
    await connection.close()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(addresses.database_url.replace("kmmhub:", "kmmhub:not"))


def test_registry_answers(own: tuple[LocalHub, HubAddresses]) -> None:
    _, addresses = own
    with urllib.request.urlopen(f"http://{addresses.registry}/v2/_catalog", timeout=5) as answer:
        assert json.load(answer) == {"repositories": []}


def test_everything_listens_on_loopback_only(own: tuple[LocalHub, HubAddresses]) -> None:
    hub, _ = own
    pids = set(processes.running(hub.directory).values())
    sockets = {
        str(link.readlink())
        for pid in pids
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.is_symlink()
    }
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    listening = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    assert len(listening) == 4
    assert {address.partition(":")[0] for address in listening} == {"0100007F"}


def test_secrets_are_for_the_owner_only(own: tuple[LocalHub, HubAddresses]) -> None:
    hub, addresses = own
    assert hub.directory.stat().st_mode & 0o077 == 0
    for path in (addresses.kubeconfig, hub.directory / "state.json", hub.directory / "nats" / "nats.conf"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_up_again_changes_nothing(own: tuple[LocalHub, HubAddresses]) -> None:
    hub, addresses = own
    before = processes.running(hub.directory)
    began = time.monotonic()
    assert LocalHub(hub.directory, given=NOTHING).up() == addresses
    assert time.monotonic() - began < 5
    assert processes.running(hub.directory) == before
    assert set(before) == SERVERS


def test_own_addresses_in_the_environment_are_ours(own: tuple[LocalHub, HubAddresses]) -> None:
    hub, addresses = own
    evaluated = GivenAddresses(
        kubeconfig=addresses.kubeconfig,
        nats_url=addresses.nats_url,
        database_url=addresses.database_url,
        registry=addresses.registry,
    )
    again = LocalHub(hub.directory, given=evaluated)
    assert again.up() == addresses
    assert {server.state for server in again.status()} == {"ready"}


def test_what_died_is_started_again_with_its_data(own: tuple[LocalHub, HubAddresses]) -> None:
    hub, addresses = own
    kubectl(addresses, "create", "namespace", "kept")
    before = processes.running(hub.directory)
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes.running(hub.directory))
    assert {server.state for server in hub.status()} == {"stopped"}
    assert hub.up() == addresses
    assert {server.state for server in hub.status()} == {"ready"}
    assert not set(before.values()) & set(processes.running(hub.directory).values())
    assert "kept" in kubectl(addresses, "get", "namespace", "kept")


def test_what_hangs_is_replaced(own: tuple[LocalHub, HubAddresses]) -> None:
    hub, addresses = own
    pid = processes.running(hub.directory)["registry"]
    os.kill(pid, signal.SIGSTOP)
    assert {server.name for server in hub.status() if server.state == "silent"} == {"registry"}
    assert hub.up() == addresses
    assert processes.running(hub.directory)["registry"] != pid


def test_down_keeps_data_and_a_taken_port_is_replaced(tmp_path: Path) -> None:
    with running_hub(tmp_path / "one") as (hub, addresses):
        kubectl(addresses, "create", "namespace", "kept")
        hub.down()
        hub.down()
        assert processes.running(hub.directory) == {}
        port = int(addresses.registry.partition(":")[2])
        with socket.create_server(("127.0.0.1", port)):
            moved = hub.up()
        assert moved.registry != addresses.registry
        assert moved.database_url == addresses.database_url
        assert "kept" in kubectl(moved, "get", "namespace", "kept")
    assert not (tmp_path / "one").exists()


def test_two_hubs_side_by_side(own: tuple[LocalHub, HubAddresses], tmp_path: Path) -> None:
    hub, addresses = own
    with running_hub(tmp_path / "other") as (other, elsewhere):
        shared = elsewhere.environment().items() & addresses.environment().items()
        assert {name for name, _ in shared} == {"KUBECTL", "KMMHUB_LEADER_LEASE_SECONDS"}
        assert set(processes.running(other.directory)) == SERVERS
    assert set(processes.running(hub.directory)) == SERVERS


def test_given_servers_are_used_one_by_one(own: tuple[LocalHub, HubAddresses], tmp_path: Path) -> None:
    _, addresses = own
    given = GivenAddresses(
        kubeconfig=addresses.kubeconfig, nats_url=addresses.nats_url, registry=addresses.registry
    )
    with running_hub(tmp_path / "partial", given) as (hub, mixed):
        assert set(processes.running(hub.directory)) == {"postgres"}
        assert (mixed.kubeconfig, mixed.nats_url) == (addresses.kubeconfig, addresses.nats_url)
        assert mixed.database_url != addresses.database_url
        states = {server.name: server.state for server in hub.status()}
        assert states == dict.fromkeys(SERVERS, "given") | {"postgres": "ready"}


def test_given_server_that_is_silent_is_named(tmp_path: Path) -> None:
    given = GivenAddresses(
        kubeconfig=tmp_path / "none", nats_url=f"nats://127.0.0.1:{free_port()}", database_url="", registry=""
    )
    hub = LocalHub(tmp_path / "hub", given=given)
    try:
        with pytest.raises(
            TransientError, match="the nats server that the environment gives does not answer"
        ):
            hub.up()
    finally:
        hub.down(purge=True)


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    hub = LocalHub(tmp_path, given=NOTHING)
    with pytest.raises(PermanentError, match=r"thesis\.txt"):
        hub.up()
    hub.down(purge=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_somebody_elses_process_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        processes.stop(bystander.pid, hub=tmp_path, name="nats", stop_signal=signal.SIGKILL, limit=1)
        assert bystander.poll() is None
        bystander.kill()


def test_servers_outlive_the_process_that_started_them(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from localhub import processes as p\n"
    code += "command = p.Command(arguments=('sleep', '60'), directory=Path('/'))\n"
    code += "p.start(command, hub=Path(sys.argv[1]), name='sleeper')\n"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], timeout=30, check=True, cwd=Path(__file__).parents[2]
    )
    pid = processes.running(tmp_path)["sleeper"]
    processes.stop(pid, hub=tmp_path, name="sleeper", stop_signal=signal.SIGTERM, limit=5)
    assert processes.running(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account")
def test_postgres_under_its_own_account(tmp_path: Path) -> None:
    try:
        installation = postgres.choose_installation(root=True, namespaces=False)
    except PermanentError:
        pytest.skip("Debian's PostgreSQL is not installed")
    hub, port = tmp_path / "hub", free_port()
    hub.mkdir()
    server = postgres.Postgres(installation, directory=hub / "postgres", password="secret")
    process = processes.start(server.command(port), hub=hub, name="postgres")
    try:
        wait_until(lambda: server.ready(port))
        assert Path(f"/proc/{process.pid}").owner() == "postgres"
    finally:
        processes.stop(process.pid, hub=hub, name="postgres", stop_signal=server.stop_signal, limit=10)
        LocalHub(hub, given=NOTHING).down(purge=True)
    assert not postgres.foreign_directory(hub / "postgres").exists()


async def test_each_test_may_have_a_database(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    assert await connection.fetch("SELECT * FROM pg_tables WHERE schemaname = 'public'") == []
    await connection.close()

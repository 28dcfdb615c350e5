"""The demo's story as a test: the command itself, and the same story while its services are being killed."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from demo import run
from demo.narrator import Narrator
from demo.story import CLUSTERS, Story
from demo.user import User
from localhub.addresses import GivenAddresses
from localhub.hub import LocalHub
from shared.kube.client import KubeClient
from shared.registry.client import RegistryClient
from shared.store.database import connect

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SERVICES = ("watcher", "dispatcher", "builder", "signer")


def test_demo_command(tmp_path: Path) -> None:
    """`kmmhub demo` ends with 0, says what it saw on real kernels, and leaves no process behind."""
    directory = tmp_path / "demo"
    told = subprocess.run(
        [sys.executable, "-m", "kmmhub.main", "demo"],
        env={**os.environ, "KMMHUB_DEMO_DIR": str(directory), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert told.returncode == 0, told.stdout[-4000:] + told.stderr[-2000:]
    assert "exactly 3 builds and 3 signatures" in told.stdout
    assert "exactly one more build and signature, one work changed, five were not written" in told.stdout
    as_it_happened = told.stdout.partition("What happened")[0]
    assert as_it_happened.count("unsigned refused, foreign key refused, shipped module loaded") == 4
    assert processes_of(directory) == []


async def test_story_while_services_are_killed(tmp_path: Path) -> None:
    """Every service is killed again and again, without warning; the story ends the same."""
    settings = run.DemoSettings(kmmhub_demo_dir=tmp_path / "demo")
    variables = {"KMMHUB_LEASE_SECONDS": "5"}
    settings.directory.mkdir()
    settings.log.write_text("what an earlier demo left\n")
    narrator = Narrator(Console(file=StringIO()))
    hub = LocalHub(settings.hub, given=GivenAddresses())
    try:
        addresses = await asyncio.to_thread(run.start_hub, narrator, settings, hub)
        kernels = await asyncio.to_thread(run.prepare, narrator, addresses)
        engine = connect(addresses.database_url, application="test")
        with run.services(narrator, settings, addresses, keep=False, variables=variables):
            async with await KubeClient.connect(addresses.kubeconfig) as kube, RegistryClient() as registry:
                story = Story(
                    narrator=narrator,
                    user=User(kube, namespace=run.NAMESPACE),
                    registry=registry,
                    engine=engine,
                    registry_address=addresses.registry,
                    kernels=kernels,
                )
                await story.join_clusters()
                async with assassin(settings.directory, seed=7) as victims:
                    await story.apply_module()
                    works = await story.see_works()
                    await story.see_modules(works)
                    await story.move_cluster(works)
                    await story.deselect_cluster()
                    await story.delete_module()
                assert set(victims) == set(SERVICES), f"only {victims} were killed"
                assert set(works) == set(CLUSTERS)
        await engine.dispose()
    finally:
        await asyncio.to_thread(hub.down, purge=True)


@contextlib.asynccontextmanager
async def assassin(directory: Path, *, seed: int) -> AsyncIterator[list[str]]:
    """Kill services one after the other for as long as the block runs, in rounds over all four.

    `kmmhub up` starts them again, as an orchestrator would. Yields the names of the victims so far.
    """
    choice = random.Random(seed)
    victims: list[str] = []

    async def hunt() -> None:
        for _ in range(3):
            for name in choice.sample(SERVICES, len(SERVICES)):
                await asyncio.sleep(choice.uniform(1.0, 4.0))
                for pid in service_processes(directory, name):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        victims.append(name)

    hunting = asyncio.create_task(hunt())
    try:
        yield victims
    finally:
        hunting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hunting


def service_processes(directory: Path, name: str) -> list[int]:
    """The processes of a service that `kmmhub up` started."""
    parent = (directory / "services.pid").read_text().strip()
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if f"services.{name}".encode() in command_of(pid)]


def processes_of(directory: Path) -> list[str]:
    """Commands of processes whose arguments name the directory."""
    needle = str(directory).encode()
    pids = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [command.decode(errors="replace") for pid in pids if needle in (command := command_of(pid))]


def command_of(pid: str) -> bytes:
    """A process's arguments; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""

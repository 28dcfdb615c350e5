"""The real parts of a run: a local hub of its own, proxies before two of its servers, and the services.

The only file that knows how the hub's servers and the services are started and what environment they get.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from chaos.plan import PROCESSES
from chaos.proxy import Proxy, serve_api, serve_registry
from kmmhub.credentials import service_environment
from kmmhub.install import install_hub
from kmmhub.up import command
from localhub import processes
from localhub.addresses import GivenAddresses, HubAddresses
from localhub.hub import LocalHub
from localhub.progress import Progress, silent
from shared.store.migrate import upgrade

NAMESPACE = "kmm-operator-system"
LEASE_SECONDS = 3.0
STOP_SECONDS = 28.0
DISK_MEGABYTES = 64
FILLER = "filler"


@dataclass(slots=True, kw_only=True)
class Service:
    """One process of ours; its log goes on through all lives.

    Attributes:
        name: as the plan names it; the program is what stands before the number.
        lives: process ids of all lives so far.
        deaths: when lives ended, in seconds of the epoch.
        ended: exit statuses of lives that nobody ended.
    """

    name: str
    log: Path
    environment: Mapping[str, str]
    lives: list[int] = field(default_factory=list)
    deaths: list[float] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it unless it runs."""
        if self.is_running:
            return
        if self._process is not None:
            self.ended.append(self._process.returncode)
            self.deaths.append(time.time())
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command(self.program),
                cwd=Path(__file__).parents[1],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.lives.append(self._process.pid)

    @property
    def program(self) -> str:
        """What runs: several of its kind may."""
        return self.name.partition("-")[0]

    @property
    def is_running(self) -> bool:
        """Whether its process lives, stopped or not."""
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.is_running and self._process is not None:
            self._process.send_signal(number)

    async def end(self, number: signal.Signals) -> int | None:
        """End it by a signal and wait.

        Returns:
            The exit status; None if it had to be killed because it did not end in time.
        """
        process = self._process
        if process is None:
            return 0
        self.send(number)
        try:
            status = await asyncio.to_thread(process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
            status = None
        self._process = None
        self.deaths.append(time.time())
        return status


@dataclass(slots=True, kw_only=True)
class World:
    """Everything that runs.

    Attributes:
        addresses: of the servers themselves, for those who look and for the user.
        api, registry: the proxies that the services go through.
        registry_address: what stands in image references.
        disk: the builders' small file system; None where this machine does not let us mount one.
    """

    directory: Path
    hub: LocalHub
    addresses: HubAddresses
    api: Proxy
    registry: Proxy
    registry_address: str
    services: Mapping[str, Service]
    disk: Path | None

    def server_pid(self, name: str) -> int | None:
        """The process of a server of the hub."""
        return processes.running(self.hub.directory).get(name)

    async def stop_server(self, name: str, number: signal.Signals) -> None:
        """End a server by a signal, and wait until it has."""
        pid = self.server_pid(name)
        if pid is not None:
            stop = partial(processes.stop, hub=self.hub.directory, name=name, stop_signal=number, limit=10)
            await asyncio.to_thread(stop, pid)

    async def revive(self) -> None:
        """Start every server of the hub that does not run."""
        await asyncio.to_thread(self.hub.up)

    def wipe_nats(self) -> None:
        """Remove everything that NATS stored; it must not run."""
        shutil.rmtree(self.hub.directory / "nats" / "data", ignore_errors=True)

    def fill_disk(self) -> None:
        """Leave no byte on the builders' file system."""
        assert self.disk is not None
        with contextlib.suppress(OSError), (self.disk / FILLER).open("wb", buffering=0) as filler:
            while filler.write(b"\0" * (1 << 20)):
                pass

    def empty_disk(self) -> None:
        """Give the room back."""
        assert self.disk is not None
        (self.disk / FILLER).unlink(missing_ok=True)

    def start_services(self) -> None:
        """Start those that do not run."""
        for service in self.services.values():
            service.start()

    async def end_services(self) -> dict[str, int | None]:
        """SIGTERM to all; their exit statuses, None for one that would not end."""
        names = list(self.services)
        statuses = await asyncio.gather(*(self.services[name].end(signal.SIGTERM) for name in names))
        return dict(zip(names, statuses, strict=True))

    def kill_services(self) -> None:
        """Kill -9 to all."""
        for service in self.services.values():
            service.send(signal.SIGKILL)


@contextlib.asynccontextmanager
async def open_world(
    directory: Path, *, resync_seconds: float, keep: bool = False, progress: Progress = silent
) -> AsyncIterator[World]:
    """Start everything but the services; end everything, also after an error.

    Args:
        directory: where all of it lies.
        resync_seconds: how often the dispatcher compares everything.
        keep: leave the hub's servers and their data.
        progress: told what happens.
    """
    hub = LocalHub(directory / "hub", progress=progress, given=GivenAddresses())
    try:
        addresses = await asyncio.to_thread(hub.up)
        await asyncio.to_thread(upgrade, addresses.database_url)
        await asyncio.to_thread(install_hub, addresses.kubeconfig, NAMESPACE)
        async with (
            serve_api(_server_of(addresses.kubeconfig), hub.pki) as (api, api_address),
            serve_registry(addresses.registry) as (registry, registry_address),
        ):
            with _small_disk(directory / "build") as disk:
                settings = {
                    "KMMHUB_RESYNC_SECONDS": f"{resync_seconds:g}",
                    "KMMHUB_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
                    "KMMHUB_BUILD_DIR": str(directory / "build"),
                }
                world = World(
                    directory=directory,
                    hub=hub,
                    addresses=addresses,
                    api=api,
                    registry=registry,
                    registry_address=registry_address,
                    services=_services(directory, addresses, api_address, registry_address, settings),
                    disk=disk,
                )
                try:
                    yield world
                finally:
                    world.kill_services()
                    await world.end_services()
    finally:
        if not keep:
            await asyncio.to_thread(hub.down, purge=True)


def _services(
    directory: Path,
    addresses: HubAddresses,
    api_address: str,
    registry_address: str,
    settings: Mapping[str, str],
) -> dict[str, Service]:
    """The services, which reach API server and registry through the proxies."""
    found = {}
    for name in PROCESSES:
        own = service_environment(name.partition("-")[0], addresses.environment())
        environment = dict(own) | {
            "PATH": os.pathsep.join(os.get_exec_path()),
            "HOME": str(directory),
            "OPERATOR_NAMESPACE": NAMESPACE,
            **settings,
        }
        through = directory / f"{name}.kubeconfig"
        _write_with_server(Path(environment["KUBECONFIG"]), through, api_address)
        environment |= {"KUBECONFIG": str(through), "KMMHUB_REGISTRY": registry_address}
        found[name] = Service(name=name, log=directory / f"{name}.log", environment=environment)
    return found


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[Path | None]:
    """A small file system at `place`, unmounted afterwards; None where we may not mount."""
    place.mkdir(mode=0o700, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m,mode=700", "kmmhub-chaos", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, timeout=30, check=False)
    if not mounted or mounted.returncode != 0:
        yield None
        return
    try:
        yield place
    finally:
        # Lazily: what a build has mounted below goes with it.
        subprocess.run(["umount", "--lazy", str(place)], capture_output=True, timeout=30, check=False)


def _server_of(kubeconfig: Path) -> str:
    return str(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"])


def _write_with_server(kubeconfig: Path, copy: Path, server: str) -> None:
    document = yaml.safe_load(kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = server
    copy.touch(mode=0o600)
    copy.write_text(yaml.safe_dump(document))

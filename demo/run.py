"""`kmmhub demo`: a fresh hub, the services, and the story on them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from demo import base_image, kernels
from demo.image_layout import ImageLayout
from demo.kernels import Kernel
from demo.narrator import Narrator
from demo.story import Story
from demo.user import User
from kmmhub.install import install_hub
from localhub.addresses import GivenAddresses, HubAddresses
from localhub.hub import LocalHub
from localhub.progress import Progress
from localhub.settings import LocalHubSettings
from shared.domain.errors import HubError
from shared.kube.client import KubeClient
from shared.registry.client import RegistryClient
from shared.store.database import connect
from shared.store.migrate import upgrade

NAMESPACE = "kmm-operator-system"
SHUTDOWN_SECONDS = 40.0


class DemoSettings(BaseSettings):
    """Where the demo keeps its hub, apart from the developer's own."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore")

    kmmhub_demo_dir: Path | None = None
    path: str = ""
    home: str = ""

    @property
    def directory(self) -> Path:
        """KMMHUB_DEMO_DIR, else `demo` beside the directory of `kmmhub dev`."""
        return (self.kmmhub_demo_dir or LocalHubSettings().directory.parent / "demo").absolute()

    @property
    def hub(self) -> Path:
        """The local hub's own directory."""
        return self.directory / "hub"

    @property
    def log(self) -> Path:
        """What the services say."""
        return self.directory / "services.log"

    @property
    def pid(self) -> Path:
        """The process of `kmmhub up`."""
        return self.directory / "services.pid"


def run_demo(*, keep: bool) -> int:
    """Run the demo on a hub of its own. Returns the exit status: 0 only if everything was so.

    Args:
        keep: leave hub and services running, with the module applied again, and say how to look at them.
    """
    console = Console()
    narrator = Narrator(console)
    settings = DemoSettings()
    # Servers that the environment names are not touched: a story that deletes things needs a hub of its own.
    hub = LocalHub(settings.hub, progress=_progress(narrator), given=GivenAddresses())
    is_told = False
    try:
        addresses = start_hub(narrator, settings, hub)
        fleet_kernels = prepare(narrator, addresses)
        with services(narrator, settings, addresses, keep=keep):
            asyncio.run(_tell(narrator, addresses, fleet_kernels, keep=keep))
        is_told = True
    except* HubError as errors:
        for error in errors.exceptions:
            console.print(f"[red]✗[/red] {error}", highlight=False)
        console.print(f"Logs: {settings.log} and {settings.hub / 'logs'}", highlight=False, soft_wrap=True)
    finally:
        if not keep:
            hub.down()
    narrator.print_table()
    if keep and is_told:
        _say_how_to_look(console, hub)
    return 0 if is_told else 1


def stop_kept(settings: DemoSettings) -> None:
    """End the services that an earlier demo left running on purpose."""
    file = settings.pid
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        pid = int(file.read_text())
        # A process that got the number since then is somebody else's.
        if b"kmmhub.main\0up" in Path(f"/proc/{pid}/cmdline").read_bytes():
            _end(pid)
    file.unlink(missing_ok=True)


def stop_demo() -> None:
    """Take down what `kmmhub demo --keep` left running."""
    settings = DemoSettings()
    stop_kept(settings)
    LocalHub(settings.hub, given=GivenAddresses()).down()


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def start_hub(narrator: Narrator, settings: DemoSettings, hub: LocalHub) -> HubAddresses:
    """A fresh hub, with schema and CRDs; what an earlier demo left is removed."""
    with narrator.step("A hub of its own: API server, etcd, NATS, Postgres, registry"):
        stop_kept(settings)
        hub.down(purge=True)
        addresses = hub.up()
        upgrade(addresses.database_url)
        install_hub(addresses.kubeconfig, NAMESPACE)
        narrator.seen("servers are ready, CRDs and schema applied")
        return addresses


def prepare(narrator: Narrator, addresses: HubAddresses) -> tuple[Kernel, ...]:
    """The kernels of the story, and the base images in the registry."""
    with narrator.step("Four real kernels of Debian, and a base image with their headers"):
        packages = kernels.offered_packages()
        versions = kernels.choose_versions(kernels.offered_versions(packages))
        found = kernels.fetch_kernels(
            versions, packages, cache=kernels.cache_directory(), progress=narrator.doing
        )
        layout = ImageLayout(base_image.cache_directory())
        base_image.prepare_images(found, layout=layout, progress=narrator.doing)
        asyncio.run(_push(layout, addresses.registry, narrator))
        narrator.seen(", ".join(kernel.version for kernel in found))
        return found


async def _push(layout: ImageLayout, registry: str, narrator: Narrator) -> None:
    async with RegistryClient() as client:
        await base_image.push_images(layout, registry=registry, client=client, progress=narrator.doing)


@contextlib.contextmanager
def services(
    narrator: Narrator,
    settings: DemoSettings,
    addresses: HubAddresses,
    *,
    keep: bool,
    variables: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """`kmmhub up` beside the story, with further variables; a service that somebody kills is started again by it."""
    environment = (
        addresses.environment()
        | dict(variables or {})
        | {
            "OPERATOR_NAMESPACE": NAMESPACE,
            "KMMHUB_SPOKE_PERMISSIONS": "false",  # no agents here, and the story counts works
            "PATH": settings.path,
            "HOME": settings.home,
        }
    )
    with settings.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kmmhub.main", "up"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    settings.pid.write_text(str(process.pid))
    narrator.doing("starts watcher, dispatcher, builder and signer")
    try:
        yield
    finally:
        if not keep:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SHUTDOWN_SECONDS)
            process.kill()
            process.wait()
            settings.pid.unlink(missing_ok=True)


async def _tell(
    narrator: Narrator, addresses: HubAddresses, fleet_kernels: tuple[Kernel, ...], *, keep: bool
) -> None:
    engine = connect(addresses.database_url, application="kmmhub-demo")
    try:
        async with await KubeClient.connect(addresses.kubeconfig) as kube, RegistryClient() as registry:
            story = Story(
                narrator=narrator,
                user=User(kube, namespace=NAMESPACE),
                registry=registry,
                engine=engine,
                registry_address=addresses.registry,
                kernels=fleet_kernels,
            )
            await story.tell()
            if keep:
                await story.apply_module()
                await story.wait_until_ready()
    finally:
        await engine.dispose()


def _progress(narrator: Narrator) -> Progress:
    """Shows what the local hub does as the narrator's own words."""

    def tell(part: str, message: str, *, done: bool = False) -> None:
        del done
        narrator.doing(f"{part}: {message}")

    return tell


def _say_how_to_look(console: Console, hub: LocalHub) -> None:
    addresses = hub.addresses()
    kubectl = f"{shlex.quote(str(addresses.kubectl))} --kubeconfig {shlex.quote(str(addresses.kubeconfig))}"
    console.print("Everything is left running. Look at it with", highlight=False)
    console.print(f"  {kubectl} get managedclustermodules,manifestworks -A", highlight=False, soft_wrap=True)
    console.print("and take it down with", highlight=False)
    console.print("  .venv/bin/kmmhub demo --stop", highlight=False)

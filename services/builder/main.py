"""The builder's composition."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from services.builder.buildah import Buildah
from services.builder.stage import BuildStage
from shared.bus.topology import BUILDS
from shared.domain.artifact import Stage
from shared.kube.client import KubeClient
from shared.leasing.secrets import SecretReader
from shared.leasing.worker import StageWorker
from shared.registry.client import RegistryClient
from shared.relay.backbone import open_backbone
from shared.runtime.process import Process, run
from shared.runtime.settings import ServiceSettings, read_settings


class BuilderSettings(ServiceSettings):
    """Settings of a builder."""

    build_directory: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "kmmhub" / "builder",
        validation_alias="KMMHUB_BUILD_DIR",
    )
    """Where layers and temporary files are kept; several builders may share it."""

    concurrency: int = Field(default=1, ge=1, validation_alias="KMMHUB_BUILD_CONCURRENCY")
    """Builds at once in this process."""

    time_limit: float = Field(default=3600, gt=0, validation_alias="KMMHUB_BUILD_TIMEOUT")
    """Seconds that one build and its push may take."""

    lease_seconds: float = Field(default=30, gt=0, validation_alias="KMMHUB_LEASE_SECONDS")
    """After how many seconds without a heartbeat another builder takes over."""

    isolation: str = Field(default="chroot", validation_alias="KMMHUB_BUILD_ISOLATION")
    """buildah's isolation: chroot, oci or rootless."""


def main() -> int:
    """Run a builder. Returns the exit status."""
    settings = read_settings(BuilderSettings)

    async def body(process: Process) -> None:
        await build(settings, process)

    return run("builder", settings, body)


async def build(settings: BuilderSettings, process: Process) -> None:
    """Work on build requests until the process is stopped."""
    async with (
        await KubeClient.connect() as kube,
        open_backbone(settings, process, service="builder") as backbone,
        RegistryClient() as registry,
    ):
        if backbone is None:
            return
        with own_storage(settings.build_directory) as storage:
            stage = BuildStage(
                registry=registry,
                secrets=SecretReader(kube, settings.operator_namespace),
                buildah=Buildah(storage / "root", storage / "run", isolation=settings.isolation),
                time_limit=settings.time_limit,
            )
            worker = StageWorker(
                Stage.BUILD,
                stage.perform,
                backbone=backbone,
                owner=f"{socket.gethostname()}/{os.getpid()}",
                lease_seconds=settings.lease_seconds,
                concurrency=settings.concurrency,
                stop=process.stop,
            )
            await worker.run(BUILDS)


@contextlib.contextmanager
def own_storage(directory: Path) -> Iterator[Path]:
    """A folder below `directory` that no other builder uses now; its cached layers outlive the process."""
    number = 0
    while True:
        folder = directory / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                number += 1
                continue
            yield folder
            return

"""The signer's composition."""

from __future__ import annotations

import os
import socket

from pydantic import Field

from services.signer.stage import SignStage
from shared.bus.topology import SIGNATURES
from shared.domain.artifact import Stage
from shared.kube.client import KubeClient
from shared.leasing.secrets import SecretReader
from shared.leasing.worker import StageWorker
from shared.registry.client import RegistryClient
from shared.relay.backbone import open_backbone
from shared.runtime.process import Process, run
from shared.runtime.settings import ServiceSettings, read_settings


class SignerSettings(ServiceSettings):
    """Settings of a signer."""

    concurrency: int = Field(default=2, ge=1, validation_alias="KMMHUB_SIGN_CONCURRENCY")
    """Images signed at once in this process."""

    lease_seconds: float = Field(default=30, gt=0, validation_alias="KMMHUB_LEASE_SECONDS")
    """After how many seconds without a heartbeat another signer takes over."""


def main() -> int:
    """Run a signer. Returns the exit status."""
    settings = read_settings(SignerSettings)

    async def body(process: Process) -> None:
        await sign(settings, process)

    return run("signer", settings, body)


async def sign(settings: SignerSettings, process: Process) -> None:
    """Work on sign requests until the process is stopped."""
    async with (
        await KubeClient.connect() as kube,
        open_backbone(settings, process, service="signer") as backbone,
        RegistryClient() as registry,
    ):
        if backbone is None:
            return
        stage = SignStage(registry=registry, secrets=SecretReader(kube, settings.operator_namespace))
        worker = StageWorker(
            Stage.SIGN,
            stage.perform,
            backbone=backbone,
            owner=f"{socket.gethostname()}/{os.getpid()}",
            lease_seconds=settings.lease_seconds,
            concurrency=settings.concurrency,
            stop=process.stop,
        )
        await worker.run(SIGNATURES)

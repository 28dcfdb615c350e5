"""The webhook's composition."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import structlog
import uvicorn
from pydantic import Field

from services.admission.app import PATH, make_app
from services.admission.certificate import Certificate, NoCertificate
from shared.domain.errors import TransientError
from shared.runtime.health import HealthServer
from shared.runtime.pause import pause
from shared.runtime.process import Process, run
from shared.runtime.settings import ProcessSettings, read_settings

log = structlog.get_logger()

REFRESH_SECONDS = 5.0
"""How often the certificate's files are looked at."""

DRAIN_SECONDS = 10
"""How long reviews that are under way may take once the process is told to stop."""

MAX_CONNECTIONS = 256
"""Beyond these the answer is 503; each API server holds a few."""


class AdmissionSettings(ProcessSettings):
    """Settings of the webhook."""

    bind: str = Field(default="127.0.0.1:9443", validation_alias="KMMHUB_ADMISSION_BIND")
    """host:port of the webhook; port 0 picks a free one and logs it."""

    tls_dir: Path = Field(validation_alias="KMMHUB_ADMISSION_TLS_DIR")
    """Directory with `tls.crt` and `tls.key`, PEM; read again when they change."""


def main() -> int:
    """Run the webhook. Returns the exit status."""
    settings = read_settings(AdmissionSettings)

    async def body(process: Process) -> None:
        await admit(settings, process)

    return run("admission", settings, body)


async def admit(settings: AdmissionSettings, process: Process) -> None:
    """Answer reviews until the process is stopped.

    Raises:
        NoCertificate: there is none at the start.
        TransientError: the server ended by itself.
    """
    certificate = Certificate(settings.tls_dir)
    listener = _listen(settings.bind)
    server = _make_server(certificate)
    process.checks["certificate"] = lambda: certificate.is_valid
    process.checks["server"] = lambda: server.started
    host, port = listener.getsockname()[:2]
    log.info(
        "admission.listening", url=f"https://{host}:{port}{PATH}", certificate_until=str(certificate.until)
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not process.stop.is_set() and not serving.done():
            _refresh(certificate)
            await pause(process.stop, REFRESH_SECONDS)
        if serving.done() and not process.stop.is_set():
            raise TransientError("The webhook's server ended by itself; it is to be started again.")
    finally:
        server.should_exit = True
        await serving


def _listen(bind: str) -> socket.socket:
    host, _, port = bind.rpartition(":")
    name = host.strip("[]")
    return socket.create_server((name, int(port)), family=socket.AF_INET6 if ":" in name else socket.AF_INET)


def _make_server(certificate: Certificate) -> HealthServer:
    configuration = uvicorn.Config(
        make_app(),
        ssl_context_factory=lambda _configuration, _default: certificate.context,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
        log_config=None,
        access_log=False,
        lifespan="off",
    )
    return HealthServer(configuration)


def _refresh(certificate: Certificate) -> None:
    try:
        if certificate.refresh():
            log.info("certificate.changed", until=str(certificate.until))
    except NoCertificate as error:
        log.warning("certificate.not_read", error=str(error))

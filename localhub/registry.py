"""An OCI registry on plain HTTP: Debian's `docker-registry`."""

import http.client
import secrets
import shutil
import signal
from pathlib import Path

import yaml

from localhub.files import write_private
from localhub.processes import Command
from shared.domain.errors import PermanentError


def find_program() -> Path:
    """The registry's program.

    Raises:
        PermanentError: it is not installed.
    """
    found = shutil.which("docker-registry")
    if found is None:
        message = (
            "docker-registry is not installed: run 'kmmhub dev packages' as root, or set KMMHUB_REGISTRY"
        )
        raise PermanentError(message, reason="ProgramMissing")
    return Path(found)


class Registry:
    """One registry that keeps images in its directory and lets them be deleted."""

    name = "registry"
    uses_port = True
    stop_signal = signal.SIGTERM

    def __init__(self, program: Path, *, directory: Path) -> None:
        self._program = program
        self._directory = directory

    def command(self, port: int) -> Command:
        """As `localhub.server.Server`."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        configuration = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self._directory / "data")},
                "delete": {"enabled": True},
            },
            "http": {"addr": f"127.0.0.1:{port}", "secret": secrets.token_hex(16)},
        }
        write_private(self._directory / "config.yaml", yaml.safe_dump(configuration))
        arguments = (str(self._program), "serve", str(self._directory / "config.yaml"))
        return Command(arguments=arguments, directory=self._directory)

    def ready(self, port: int) -> bool:
        """Whether it answers as a registry (OCI distribution-spec, end-1)."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

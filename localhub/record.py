"""What a hub remembers between runs: the passwords it made and the ports it chose. One JSON file, only its owner's."""

import hashlib
import hmac
import secrets
from pathlib import Path
from threading import Lock

from pydantic import BaseModel, Field, ValidationError

from localhub.files import write_private
from shared.domain.errors import PermanentError


class Record(BaseModel):
    """The content of the state file.

    Attributes:
        nats_password, postgres_password: made at the first start (URL-safe characters only).
        ports: TCP port by name of the server, on 127.0.0.1.
    """

    nats_password: str = Field(default_factory=lambda: secrets.token_hex(16))
    postgres_password: str = Field(default_factory=lambda: secrets.token_hex(16))
    ports: dict[str, int] = Field(default_factory=dict)


def service_password(secret: str, service: str) -> str:
    """A service's own password at a server, made from the server's secret: nothing more needs to be remembered."""
    return hmac.new(secret.encode(), service.encode(), hashlib.sha256).hexdigest()[:32]


class RecordFile:
    """The state file of one hub; safe to use from several threads of the process that holds the hub's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()

    def exists(self) -> bool:
        """Whether the hub was ever started in this directory."""
        return self._path.exists()

    def read(self) -> Record:
        """What is remembered.

        Raises:
            PermanentError: there is no hub here, or the file is not ours.
        """
        try:
            return Record.model_validate_json(self._path.read_bytes())
        except FileNotFoundError as error:
            message = f"there is no hub in {self._path.parent}: run 'kmmhub dev up' first"
            raise PermanentError(message, reason="NoHub") from error
        except ValidationError as error:
            message = f"{self._path} is damaged: run 'kmmhub dev down --purge', then 'kmmhub dev up'"
            raise PermanentError(message, reason="DamagedState") from error

    def create(self) -> None:
        """Start with fresh passwords and no ports."""
        write_private(self._path, Record().model_dump_json(indent=2))

    def set_port(self, server: str, port: int) -> None:
        """Remember the port of a server."""
        with self._lock:
            record = self.read()
            record.ports[server] = port
            write_private(self._path, record.model_dump_json(indent=2))

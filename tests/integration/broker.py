"""A NATS server of a test's own, which it may kill, wipe and start again."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localhub.nats_server import find_program
from localhub.server import free_port

START_SECONDS = 10.0


class Broker:
    """A server with JetStream on a port that stays the same through all lives.

    Without `authorization`, a block of the server's configuration, or a whole `configuration`, everybody may do
    everything.
    """

    def __init__(
        self,
        directory: Path,
        authorization: Mapping[str, Any] | None = None,
        *,
        configuration: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory
        self._configuration = configuration
        self._environment = environment
        if authorization is not None:
            self._configuration = directory / "nats.conf"
            stored = {"store_dir": str(directory / "data")}
            self._configuration.write_text(json.dumps({"authorization": authorization, "jetstream": stored}))
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        arguments = ["--addr", "127.0.0.1", "--port", str(self._port)]
        if self._configuration is not None:
            arguments += ["--config", str(self._configuration)]
        else:
            arguments += ["--jetstream", "--store_dir", str(self._directory / "data")]
        with (self._directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(find_program()), *arguments], stdout=log, stderr=log, env=self._environment
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError(f"nats-server does not listen after {START_SECONDS:.0f} seconds")

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)

    def reload(self) -> None:
        """Have it read its configuration again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    async def restart(self, *, is_wiped: bool = False, pause: float = 0.5) -> None:
        """Kill -9, and start again after a while, with or without what it had stored."""
        self.kill()
        if is_wiped:
            shutil.rmtree(self._directory / "data")
        await asyncio.sleep(pause)
        await asyncio.to_thread(self.start)

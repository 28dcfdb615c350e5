"""One server of the hub: how it is started, when it is ready, and how it is kept running."""

import socket
import subprocess
import time
from pathlib import Path
from signal import Signals
from typing import Protocol

from localhub import processes
from localhub.processes import Command
from localhub.progress import Progress
from localhub.record import RecordFile
from shared.domain.errors import TransientError

READY_LIMIT = 60.0
HEALTHY_LIMIT = 5.0
ATTEMPTS = 3


class Server(Protocol):
    """What is particular to one kind of server."""

    @property
    def name(self) -> str:
        """Short name, also that of its log and directory."""

    @property
    def uses_port(self) -> bool:
        """Whether it listens on TCP; if not, `port` is 0 everywhere."""

    @property
    def stop_signal(self) -> Signals:
        """What asks it for a clean end."""

    def command(self, port: int) -> Command:
        """Write what the server needs to start and say how to start it on this port of 127.0.0.1."""

    def ready(self, port: int) -> bool:
        """Whether it answers, within a second or two; an error of the connection means no."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def ensure_running(server: Server, *, hub: Path, record: RecordFile, progress: Progress) -> int:
    """Make a server run and answer: leave a healthy one alone, replace a sick one, start a missing one.

    Args:
        server: the server.
        hub: the hub's directory.
        record: where ports are remembered; the old port is kept if nobody else took it.
        progress: told what happens.

    Returns:
        The server's port; 0 if it uses none.

    Raises:
        TransientError: it ends at once or does not become ready; the message holds the end of its log.
    """
    port = record.read().ports.get(server.name, 0)
    pid = processes.running(hub).get(server.name)
    if pid is not None:
        if _wait_ready(server, port, limit=HEALTHY_LIMIT, process=None):
            progress(server.name, "runs", done=True)
            return port
        progress(server.name, "does not answer, is started again")
        processes.stop(pid, hub=hub, name=server.name, stop_signal=server.stop_signal, limit=3)
    return _start(server, port, hub=hub, record=record, progress=progress)


def _start(server: Server, port: int, *, hub: Path, record: RecordFile, progress: Progress) -> int:
    for _ in range(ATTEMPTS):
        if server.uses_port and not (port and is_free(port)):
            port = free_port()
            record.set_port(server.name, port)
        progress(server.name, "starts")
        began = time.monotonic()
        process = processes.start(server.command(port), hub=hub, name=server.name)
        if _wait_ready(server, port, limit=READY_LIMIT, process=process):
            progress(server.name, f"ready after {time.monotonic() - began:.1f} s", done=True)
            return port
        if process.poll() is None or not server.uses_port or is_free(port):
            break  # not a lost race for the port: the same would happen again
    log = hub / "logs" / f"{server.name}.log"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
    raise TransientError(
        f"{server.name} did not become ready; its log {log} ends with:\n{tail}", reason="NotReady"
    )


def _wait_ready(server: Server, port: int, *, limit: float, process: subprocess.Popen[bytes] | None) -> bool:
    """Whether the server answers within `limit` seconds; gives up at once when its process has ended."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            return False
        if server.ready(port):
            return True
        time.sleep(0.05)
    return False

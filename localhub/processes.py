"""Processes that outlive us, are found again, and are ended without ever touching somebody else's.

A server carries its hub's directory and its own name in its environment, which the kernel shows in /proc (proc(5)) and
which a process keeps for life. That needs no file of process ids: a crash between starting and noting cannot lose a
server, and a process id that was reused, after a reboot for instance, never matches.
"""

import os
import select
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from shared.domain.errors import TransientError

MARK = "KMMHUB_LOCAL_HUB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How to start a server.

    Attributes:
        arguments: program and arguments.
        directory: working directory.
        user: name of the account to run as, when we are root; none means our own.
    """

    arguments: tuple[str, ...]
    directory: Path
    user: str | None = None


def _mark(hub: Path, name: str) -> bytes:
    return f"{MARK}={hub}//{name}".encode()


def start(command: Command, *, hub: Path, name: str) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own; its output goes to `logs/<name>.log` below the hub's directory."""
    log = hub / "logs" / f"{name}.log"
    log.parent.mkdir(mode=0o700, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    environment = {"PATH": os.defpath, "HOME": str(command.directory), "LC_ALL": "C.UTF-8"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command.arguments,
            cwd=command.directory,
            env={**environment, MARK: f"{hub}//{name}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=command.user,
            group=command.user,
            extra_groups=[] if command.user else None,
        )
    # Reaps the server should it end before us, so that it never stays behind as a zombie of a long test run.
    threading.Thread(target=process.wait, name=f"wait-{name}", daemon=True).start()
    return process


def running(hub: Path) -> dict[str, int]:
    """The servers of a hub that run now: process id by name."""
    prefix = _mark(hub, "")
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        name = _marked_name(int(entry.name), prefix)
        if name is not None:
            found[name] = int(entry.name)
    return found


def _marked_name(pid: int, prefix: bytes) -> str | None:
    """The name of the server that a process is; none for a server's child and for processes that are not ours."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        if prefix not in environment or os.getsid(pid) != pid:
            return None
    except OSError:
        return None  # ended meanwhile, or belongs to another user
    for variable in environment.split(b"\0"):
        if variable.startswith(prefix):
            return variable.removeprefix(prefix).decode()
    return None


def stop(pid: int, *, hub: Path, name: str, stop_signal: signal.Signals, limit: float) -> None:
    """End a server: politely, then after `limit` seconds by SIGKILL. No process, or somebody else's by now, is fine.

    Raises:
        TransientError: the kernel could not end it either.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The handle stands for this very process, so that the id cannot come to mean another one after the check.
        if _marked_name(pid, _mark(hub, "")) != name:
            return
        for number, patience in ((stop_signal, limit), (signal.SIGKILL, 10.0)):
            signal.pidfd_send_signal(handle, number)
            if _ended(handle, patience):
                return
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
    raise TransientError(
        f"{name} (process {pid}) does not end: look at its state in /proc/{pid}/status", reason="Stuck"
    )


def _ended(handle: int, seconds: float) -> bool:
    """Wait for the end of a process (pidfd_open(2): the handle becomes readable)."""
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(seconds * 1000))

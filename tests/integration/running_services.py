"""The services as real processes, each with its own credentials, and waiting with a limit."""

import asyncio
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kmmhub.credentials import service_environment
from kmmhub.up import command

NAMES = ("watcher", "dispatcher", "builder", "signer")
ALL = ("streams", *NAMES)
"""Beside them, whoever makes the streams again."""
STOP_SECONDS = 20.0
ROOT = Path(__file__).parents[2]

T = TypeVar("T")


async def eventually(
    look: Callable[[], Awaitable[T | None]], *, what: str, seconds: float = 25.0, every: float = 0.1
) -> T:
    """What `look` returns as soon as that is true (not None, False or empty) and no assertion in it fails.

    Raises:
        AssertionError: after `seconds`; it says what was waited for, and what was seen last.
    """
    deadline = time.monotonic() + seconds
    seen: object
    while True:
        try:
            found = await look()
        except AssertionError as error:
            seen = error
        else:
            if found:
                return found
            seen = found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} seconds: {what}; seen last: {str(seen)[:3000]}")
        await asyncio.sleep(every)


class Service:
    """One service, started and ended as often as a test likes; its log goes on through all lives."""

    def __init__(self, name: str, *, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._starts_seen = 0

    def start(self, **settings: str) -> None:
        """Start it, in this life with these variables of the environment, too; it is not waited for."""
        assert not self.is_running, f"{self.name} runs already"
        self._starts_seen = self._starts()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command(self.name),
                cwd=ROOT,
                env=self._environment | settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    async def started(self) -> None:
        """Wait until it says so in this life: from then on it listens to signals."""

        async def look() -> bool:
            return self._starts() > self._starts_seen

        await eventually(look, what=f"{self.name} has started", seconds=60)

    def kill(self) -> None:
        """Kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=STOP_SECONDS)

    def ask_to_end(self) -> None:
        """SIGTERM; it is not waited for."""
        assert self._process is not None
        self._process.terminate()

    def end(self) -> int:
        """SIGTERM; the exit status, which must come within the time limit."""
        self.ask_to_end()
        return self.status()

    def status(self) -> int:
        """Its exit status, which must come within the time limit."""
        assert self._process is not None
        try:
            return self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{self.name} did not end on SIGTERM; its log ends with {self.tail()}"
            ) from None

    def events(self) -> list[dict[str, Any]]:
        """The lines of its log so far."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [
            json.loads(line) if line.startswith("{") else {"event": line, "level": "error"} for line in lines
        ]

    def _starts(self) -> int:
        return len([line for line in self.events() if line["event"] == "service.started"])

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text().splitlines()[-lines:])

    def _health(self) -> str:
        return str([line for line in self.events() if line["event"] == "service.started"][-1]["health"])

    def checks(self) -> dict[str, bool]:
        """What its readiness consists of."""
        try:
            with urllib.request.urlopen(f"{self._health()}/readyz", timeout=5) as answer:
                checks = answer.read()
        except urllib.error.HTTPError as not_ready:
            with not_ready:
                checks = not_ready.read()
        found: dict[str, bool] = json.loads(checks)
        return found

    def metrics(self) -> dict[str, float]:
        """Its metrics: name with labels to value."""
        with urllib.request.urlopen(f"{self._health()}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}


class Services:
    """All of them, with one environment, from which each gets its own credentials."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        base = {
            "PATH": os.pathsep.join(os.get_exec_path()),
            "HOME": str(directory),
            "KMMHUB_BUILD_DIR": str(directory / "build"),
        }
        self._environment = base | dict(environment)
        self._all = {
            name: Service(
                name, environment=service_environment(name, self._environment), log=directory / f"{name}.log"
            )
            for name in ALL
        }

    def __getitem__(self, name: str) -> Service:
        return self._all[name]

    def another(self, name: str, *, number: int = 2) -> Service:
        """One more of a kind, which the test starts and ends itself."""
        first = self._all[name]
        environment = service_environment(name, self._environment)
        return Service(name, environment=environment, log=first.log.with_stem(f"{name}-{number}"))

    def start(self) -> None:
        """Start those that do not run."""
        for service in self._all.values():
            if not service.is_running:
                service.start()

    def end(self) -> dict[str, int]:
        """End those that run, all at once; their exit statuses."""
        running = {name: service for name, service in self._all.items() if service.is_running}
        for service in running.values():
            service.ask_to_end()
        return {name: service.status() for name, service in running.items()}

    def kill(self) -> None:
        """Kill -9 those that run."""
        for service in self._all.values():
            if service.is_running:
                service.kill()

    def surprises(self) -> list[dict[str, Any]]:
        """Log lines that no fault of the outside explains: errors and exceptions."""
        return [
            {"service": name, **line}
            for name, service in self._all.items()
            for line in service.events()
            if line.get("level") in {"error", "critical"} or "exception" in line
        ]

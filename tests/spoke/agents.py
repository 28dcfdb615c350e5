"""Work agents that a test can start and take away: our stand-in, and OCM's own program where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from localhub.server import free_port
from spoke.agent import Agent, Timing
from spoke.client import ApiClient
from spoke.rights import AGENT_NAMESPACE

STAND_IN, OCM = "stand-in", "ocm"

BINARY_VARIABLE = "OCM_WORK_BIN"
"""Names the program `work` of OCM 1.3 or newer; without it OCM's cases are skipped."""

STOP_SECONDS = 20.0
STATUS_SECONDS = 1.0
RESYNC_SECONDS = 8.0


class WorkAgent(Protocol):
    """An agent of one cluster.

    Attributes:
        resync_seconds: within so many seconds whatever was changed on the spoke is put right.
    """

    resync_seconds: float

    async def start(self) -> None:
        """Start it; nothing is waited for."""

    async def stop(self) -> None:
        """Take it away, as a spoke that is switched off does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an agent works.

    Attributes:
        cluster: the ManagedCluster's name.
        hub: kubeconfig of the hub, with the rights of this cluster's agent.
        spoke: kubeconfig of the spoke, with the rights of a klusterlet's work agent.
        directory: for its log.
        eviction_grace: seconds, see `Timing`.
    """

    cluster: str
    hub: Path
    spoke: Path
    directory: Path
    eviction_grace: float = 3600.0


@dataclass(slots=True)
class StandIn:
    """Our stand-in, as a task of the test's own event loop. It resyncs after seconds where OCM takes minutes."""

    place: Place
    resync_seconds: float = 30.0
    _task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """As `WorkAgent`."""
        assert self._task is None, "the agent runs already"
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """As `WorkAgent`. Raises what the agent died of, if it did."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _run(self) -> None:
        timing = Timing(
            status_interval=STATUS_SECONDS,
            resync=RESYNC_SECONDS,
            eviction_grace=self.place.eviction_grace,
        )
        async with (
            await ApiClient.connect(self.place.hub) as hub,
            await ApiClient.connect(self.place.spoke) as spoke,
        ):
            await Agent(hub=hub, spoke=spoke, cluster=self.place.cluster, timing=timing).run()


@dataclass(slots=True)
class OcmAgent:
    """OCM's own `work agent` as a process; flags as of OCM 1.3."""

    place: Place
    program: Path
    resync_seconds: float = 400.0  # 4 minutes and up to half as much again
    _process: subprocess.Popen[bytes] | None = field(default=None)

    async def start(self) -> None:
        """As `WorkAgent`."""
        assert self._process is None, "the agent runs already"
        arguments = (
            str(self.program),
            "agent",
            f"--kubeconfig={self.place.spoke}",
            f"--spoke-kubeconfig={self.place.spoke}",
            "--workload-source-driver=kube",
            # The connection to the hub; --hub-kubeconfig is parsed and not used for works.
            f"--workload-source-config={self.place.hub}",
            f"--spoke-cluster-name={self.place.cluster}",
            "--agent-id=agent1",
            f"--namespace={AGENT_NAMESPACE}",
            "--disable-leader-election",
            f"--status-sync-interval={STATUS_SECONDS:.0f}s",
            f"--appliedmanifestwork-eviction-grace-period={self.place.eviction_grace:.0f}s",
            f"--listen=127.0.0.1:{free_port()}",
            "-v=2",
        )
        with (self.place.directory / "work-agent.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
                arguments,
                cwd=self.place.directory,
                env={"PATH": os.defpath, "HOME": str(self.place.directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def stop(self) -> None:
        """As `WorkAgent`. Raises if it had ended by itself."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is not None:
            log = (self.place.directory / "work-agent.log").read_text(errors="replace")
            raise AssertionError(f"the work agent ended with {process.returncode}: {log[-2000:]}")
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait, STOP_SECONDS)


def ocm_program() -> Path | None:
    """OCM's program if the environment names one."""
    name = os.environ.get(BINARY_VARIABLE)
    return Path(name).resolve() if name else None


AGENTS = (
    STAND_IN,
    pytest.param(
        OCM,
        marks=pytest.mark.skipif(
            ocm_program() is None, reason=f"{BINARY_VARIABLE} names no program `work` of OCM 1.3 or newer"
        ),
    ),
)
"""Parameters of a fixture that runs its tests with every agent there is."""


def make_agent(kind: str, place: Place) -> WorkAgent:
    """The agent of a kind, `STAND_IN` or `OCM`; for the latter `ocm_program` must be there."""
    if kind == STAND_IN:
        return StandIn(place)
    program = ocm_program()
    assert program is not None, f"{BINARY_VARIABLE} is not set"
    return OcmAgent(place, program)

"""A spoke beside a local hub: a second API server on the hub's etcd, with an authority and users of its own."""

import shutil
import signal
from pathlib import Path

from localhub import processes
from localhub.apiserver import ApiServer, Etcd, write_kubeconfig
from localhub.files import locked
from localhub.pki import ensure_authority
from localhub.programs import Programs
from localhub.progress import Progress, silent
from localhub.record import RecordFile
from localhub.server import ensure_running
from localhub.settings import LocalHubSettings

NAME_PREFIX = "spoke-"
"""Begins the name of every spoke's API server, so that the hub's `down` finds those that were left."""

DIRECTORY = "spokes"
"""Where spokes lie below the hub's directory."""


class Spoke:
    """One spoke of the hub in a directory. Several run side by side; none knows the others or the hub."""

    def __init__(self, hub: Path, name: str, *, progress: Progress = silent) -> None:
        """A spoke that may be up, down or not made yet.

        Args:
            hub: the hub's directory, see `localhub.hub.LocalHub`; the hub was started before.
            name: what it stores, it stores below this name: a new name is an empty cluster.
            progress: told what happens.
        """
        settings = LocalHubSettings()
        self.directory = hub / DIRECTORY / name
        self._hub = hub
        self._name = f"{NAME_PREFIX}{name}"
        self._programs = Programs(cache=settings.cache, assets=settings.kubebuilder_assets)
        self._progress = progress
        self._record = RecordFile(hub / "state.json")

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.directory / "kubeconfig"

    @property
    def pki(self) -> Path:
        """The spoke's authority, see `localhub.pki`: the hub's certificates mean nothing here."""
        return self.directory / "pki"

    def up(self) -> Path:
        """Make the API server run, and etcd if the hub's own API server is somebody else's.

        Returns:
            The administrator's kubeconfig.

        Raises:
            PermanentError: the hub was never started.
            TransientError: a server did not start.
        """
        self._record.read()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        ensure_authority(self.pki)
        kubernetes = self._hub / "kubernetes"
        program = self._programs.ensure(ApiServer.name, self._progress)
        server = ApiServer(
            program, directory=kubernetes, pki=self.pki, prefix=f"/{self._name}", name=self._name
        )
        etcd = Etcd(self._programs.ensure(Etcd.name, self._progress), kubernetes)
        # Two spokes that start at once must not start etcd twice.
        with locked(
            self._hub / DIRECTORY / "lock", limit=120, waiting=lambda: self._progress(self._name, "waits")
        ):
            ensure_running(etcd, hub=self._hub, record=self._record, progress=self._progress)
            port = ensure_running(server, hub=self._hub, record=self._record, progress=self._progress)
        write_kubeconfig(self.kubeconfig, pki=self.pki, port=port)
        return self.kubeconfig

    def down(self, *, purge: bool = False) -> None:
        """End the API server; fine if there is none.

        Args:
            purge: also forget its files. What it stored goes with the hub's etcd.
        """
        pid = processes.running(self._hub).get(self._name)
        if pid is not None:
            how = signal.SIGKILL if purge else ApiServer.stop_signal
            processes.stop(pid, hub=self._hub, name=self._name, stop_signal=how, limit=20)
        if purge:
            shutil.rmtree(self.directory, ignore_errors=True)

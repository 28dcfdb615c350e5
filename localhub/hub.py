"""A hub in one directory: its servers come up together, are found again, and are taken down together."""

import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from localhub import nats_server as nats
from localhub import ocm, processes
from localhub import postgres as pg
from localhub import registry as oci
from localhub.addresses import GivenAddresses, HubAddresses
from localhub.apiserver import ApiServer, Etcd, write_kubeconfig
from localhub.files import locked
from localhub.pki import ensure_authority
from localhub.programs import Programs
from localhub.progress import Progress, silent
from localhub.record import Record, RecordFile
from localhub.server import Server, ensure_running
from localhub.settings import LocalHubSettings
from localhub.spoke import DIRECTORY as SPOKES
from localhub.spoke import NAME_PREFIX as SPOKE
from shared.domain.errors import HubError, PermanentError, TransientError

__all__ = ["HubAddresses", "LocalHub", "ServerStatus"]

STATE = "state.json"
LOCK = "lock"
ENTRIES = (STATE, LOCK, "kubeconfig", "pki", "kubernetes", "nats", "postgres", "registry", "logs", SPOKES)
# Whoever depends on another one ends first; groups end side by side.
STOP_GROUPS = (
    (ApiServer.name, Etcd.name),
    (nats.NatsServer.name,),
    (pg.Postgres.name,),
    (oci.Registry.name,),
)
STOP_SIGNALS = {pg.Postgres.name: pg.Postgres.stop_signal}
DEFAULT_PORTS = {"nats": 4222, "tls": 4222, "postgresql": 5432, "postgres": 5432, "": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """How one server is.

    Attributes:
        name: the server.
        state: `ready`; `silent` (runs, but does not answer); `stopped`; `given` (somebody else's).
        address: where it listens, without credentials; a given address is not shown, it may hold a password.
        pid: its process.
        log: its output.
    """

    name: str
    state: Literal["ready", "silent", "stopped", "given"]
    address: str | None = None
    pid: int | None = None
    log: Path | None = None


class LocalHub:
    """The hub of one directory. Two hubs of different directories run side by side."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        progress: Progress = silent,
        given: GivenAddresses | None = None,
        programs: Programs | None = None,
    ) -> None:
        """A hub that may be up, down or not made yet.

        Args:
            directory: where everything of the hub lies; by default the user's, see `LocalHubSettings`.
            progress: told what happens.
            given: servers to use instead of starting our own; by default those of the environment.
            programs: where programs come from; by default the user's cache.
        """
        settings = LocalHubSettings()
        self.directory = (directory or settings.directory).resolve()
        self._progress = progress
        self._given = settings.given if given is None else given
        self._cache = settings.cache
        self._programs = programs or Programs(cache=settings.cache, assets=settings.kubebuilder_assets)
        self._record = RecordFile(self.directory / STATE)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig of the hub's own API server."""
        return self.directory / "kubeconfig"

    @property
    def pki(self) -> Path:
        """The authority of the hub's own API server, see `localhub.pki`."""
        return self.directory / "pki"

    def up(self) -> HubAddresses:
        """Make everything run; what runs and answers is left alone, what died is started again.

        Returns:
            Where everything is.

        Raises:
            PermanentError: something is missing on the machine, or the directory holds something else.
            TransientError: a server did not start, or a given one does not answer.
        """
        self._refuse_foreign_directory()
        with self._locked():
            if not self._record.exists():
                self._record.create()
            given = self._foreign()
            tasks: list[Callable[[], object]] = [
                partial(self._ensure_kubernetes, given.kubeconfig),
                partial(self._ensure, nats.NatsServer.name, given.nats_url),
                partial(self._ensure, pg.Postgres.name, given.database_url),
                partial(self._ensure, oci.Registry.name, given.registry and f"//{given.registry}"),
            ]
            _run_all(tasks)
            return self.addresses()

    def down(self, *, purge: bool = False) -> None:
        """End every server of the hub; fine if there is none.

        Args:
            purge: also remove the hub's data; without it the next `up` finds everything as it was.

        Raises:
            TransientError: a server cannot be ended.
        """
        if not self.directory.exists():
            return
        with self._locked():
            running = processes.running(self.directory)
            spokes = sorted(name for name in running if name.startswith(SPOKE))
            groups = ((*spokes, *STOP_GROUPS[0]), *STOP_GROUPS[1:])
            _run_all([partial(self._stop_group, group, running, purge=purge) for group in groups])
            if purge:
                self._remove_data()
        if purge and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def addresses(self) -> HubAddresses:
        """Where everything is: given addresses first, then the hub's own, whether it is up or not.

        Raises:
            PermanentError: no hub was ever started in the directory.
        """
        own, given = self._own(self._record.read()), self._foreign()
        return HubAddresses(
            kubeconfig=given.kubeconfig or own.kubeconfig,
            nats_url=given.nats_url or own.nats_url,
            nats_urls={} if given.nats_url else own.nats_urls,
            database_url=given.database_url or own.database_url,
            database_urls={} if given.database_url else own.database_urls,
            registry=given.registry or own.registry,
            kubectl=own.kubectl,
        )

    def status(self) -> tuple[ServerStatus, ...]:
        """How each server is; nothing is changed."""
        names = [name for group in STOP_GROUPS for name in group]
        if not self._record.exists():
            return tuple(ServerStatus(name=name, state="stopped") for name in names)
        record, given, running = self._record.read(), self._foreign(), processes.running(self.directory)
        elsewhere = {
            ApiServer.name: given.kubeconfig,
            Etcd.name: given.kubeconfig,
            nats.NatsServer.name: given.nats_url,
            pg.Postgres.name: given.database_url,
            oci.Registry.name: given.registry,
        }
        return tuple(
            ServerStatus(name=name, state="given") if elsewhere[name] else self._status(name, record, running)
            for name in names
        )

    def _status(self, name: str, record: Record, running: dict[str, int]) -> ServerStatus:
        pid, port = running.get(name), record.ports.get(name, 0)
        status = ServerStatus(
            name=name,
            state="stopped",
            address=f"127.0.0.1:{port}" if port else None,
            pid=pid,
            log=self.directory / "logs" / f"{name}.log",
        )
        if pid is None:
            return status
        return replace(status, state="ready" if self._server(name, record).ready(port) else "silent")

    def _own(self, record: Record) -> HubAddresses:
        ports = record.ports
        nats_port, postgres_port = ports.get(nats.NatsServer.name, 0), ports.get(pg.Postgres.name, 0)
        return HubAddresses(
            kubeconfig=self.kubeconfig,
            nats_url=nats.url(record.nats_password, nats_port),
            nats_urls=nats.service_urls(record.nats_password, nats_port),
            database_url=pg.url(record.postgres_password, postgres_port),
            database_urls=pg.service_urls(record.postgres_password, postgres_port),
            registry=f"127.0.0.1:{ports.get(oci.Registry.name, 0)}",
            kubectl=self._programs.find("kubectl") or Path("kubectl"),
        )

    def _foreign(self) -> GivenAddresses:
        return self._given.foreign_to(self._own(self._record.read()))

    def _server(self, name: str, record: Record) -> Server:
        """What is particular to one server; its programs must be there.

        Raises:
            PermanentError: a program is missing on the machine.
        """
        kubernetes = self.directory / "kubernetes"
        match name:
            case Etcd.name:
                return Etcd(self._programs.ensure(name, self._progress), kubernetes)
            case ApiServer.name:
                return ApiServer(
                    self._programs.ensure(name, self._progress), directory=kubernetes, pki=self.pki
                )
            case nats.NatsServer.name:
                directory = self.directory / "nats"
                return nats.NatsServer(
                    nats.find_program(), directory=directory, password=record.nats_password
                )
            case pg.Postgres.name:
                directory, password = self.directory / "postgres", record.postgres_password
                return pg.Postgres(pg.find_installation(), directory=directory, password=password)
            case _:
                return oci.Registry(oci.find_program(), directory=self.directory / "registry")

    def _ensure(self, name: str, given_url: str | None) -> int:
        if given_url:
            _check_answers(name, given_url)
            self._progress(name, "given by the environment", done=True)
            return 0
        server = self._server(name, self._record.read())
        return ensure_running(server, hub=self.directory, record=self._record, progress=self._progress)

    def _ensure_kubernetes(self, given: Path | None) -> None:
        if given is None:
            ensure_authority(self.pki)
            self._ensure(Etcd.name, None)
            port = self._ensure(ApiServer.name, None)
            write_kubeconfig(self.kubeconfig, pki=self.pki, port=port)
        else:
            self._progress(ApiServer.name, f"given by the environment: {given}", done=True)
        kubectl = self._programs.ensure("kubectl", self._progress)
        files = ocm.ensure_files(self._cache, self._progress)
        applied = ocm.apply_crds(kubectl, given or self.kubeconfig, files, replace=given is None)
        self._progress("ocm", f"{len(applied)} of {len(ocm.FILES)} resources applied", done=True)

    def _stop_group(self, group: Sequence[str], running: dict[str, int], *, purge: bool) -> None:
        for name in group:
            pid = running.get(name)
            if pid is None:
                continue
            self._progress(name, "stops")
            # Data that is removed anyway needs no clean end.
            how = signal.SIGKILL if purge else STOP_SIGNALS.get(name, signal.SIGTERM)
            processes.stop(pid, hub=self.directory, name=name, stop_signal=how, limit=20)
            self._progress(name, "stopped", done=True)

    def _remove_data(self) -> None:
        """Remove what we made and nothing else, whatever directory we were pointed at."""
        foreign = pg.foreign_directory(self.directory / "postgres")
        for path in (foreign, *(self.directory / entry for entry in ENTRIES)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _refuse_foreign_directory(self) -> None:
        if self._record.exists() or not self.directory.exists():
            return
        strange = sorted(path.name for path in self.directory.iterdir() if path.name not in ENTRIES)
        if strange:
            message = f"{self.directory} holds {strange[0]}, which is not the hub's: "
            message += "set KMMHUB_DEV_DIR to a directory that is empty or does not exist"
            raise PermanentError(message, reason="ForeignDirectory")

    def _locked(self) -> AbstractContextManager[None]:
        waiting = partial(self._progress, "hub", "waits for another kmmhub that works on this hub")
        return locked(self.directory / LOCK, limit=3600, waiting=waiting)


def _run_all(tasks: Sequence[Callable[[], object]]) -> None:
    """Run tasks side by side and wait for all of them.

    Raises:
        HubError: the one that was raised, or one with the messages of all.
    """
    with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
        futures: list[Future[object]] = [pool.submit(task) for task in tasks]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if len(errors) > 1 and all(isinstance(error, HubError) for error in errors):
        kind = (
            PermanentError if any(isinstance(error, PermanentError) for error in errors) else TransientError
        )
        raise kind("\n".join(map(str, errors)), reason="NotReady")
    if errors:
        raise errors[0]


def _check_answers(name: str, url: str) -> None:
    """Refuse to go on with a given server that takes no connections."""
    parts = urlsplit(url.partition(",")[0])
    port = parts.port or DEFAULT_PORTS.get(parts.scheme.partition("+")[0], 443)
    try:
        socket.create_connection((parts.hostname or "localhost", port), timeout=5).close()
    except OSError as error:
        where = f"{parts.hostname}:{port}"
        message = f"the {name} server that the environment gives does not answer at {where} ({error}): "
        message += "start it, or unset its variable so that the local hub starts its own"
        raise TransientError(message, reason="GivenServerSilent") from error

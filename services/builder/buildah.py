"""Builds a user's Dockerfile with buildah and pushes the image. Production adapter; no other module runs buildah.

What a user writes never meets a shell or this service's environment: values are argument-list entries, the
context is an empty directory, and the program runs with a given environment and a configuration of its own. As
root, it also runs in PID and mount namespaces of its own, so that a build sees no other process, and killing it
leaves neither processes nor mounts behind.
"""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from services.builder.build_log import BuildLog
from services.builder.build_request import (
    BuildRequest,
    BuiltImage,
    Workspace,
    build_arguments,
    push_arguments,
)
from services.builder.buildah_failure import BuildahMissing, BuildFailed, BuildTimedOut, Step, explain

__all__ = ["BuildRequest", "Buildah", "BuiltImage"]

PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
"""Puts a build into namespaces of its own, which end with the build and with this process."""

MINIMUM_FREE_BYTES = 8 << 30
"""Cached layers are dropped when the disk has less room than this."""

MAXIMUM_CACHE_AGE = 24 * 3600.0
"""Seconds for which a cached layer is used: what an instruction fetched from the network must not get too old."""

UPKEEP_TIMEOUT = 120.0
"""Seconds for one command that looks after the storage."""

PULL_POLICY = (
    '{"default": [{"type": "reject"}], "transports": {"docker": {"": [{"type": "insecureAcceptAnything"}]}}}'
)
"""Base images come from registries only: `FROM dir:/…` would read this machine's files."""

PUSH_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'

LOOPBACK_REGISTRIES = ("localhost", "127.0.0.1", "[::1]")
"""Reached without TLS, as Docker and containerd do."""


class Buildah:
    """Runs builds, several at once if asked to, on one storage that only this process uses."""

    def __init__(
        self,
        root: Path,
        runroot: Path,
        *,
        isolation: str = "chroot",
        search_registries: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        minimum_free_bytes: int = MINIMUM_FREE_BYTES,
    ) -> None:
        """Name the storage; nothing is created or run yet.

        Args:
            root: directory for layers and temporary files.
            runroot: directory for locks, mounts and secrets, best on a tmpfs.
            isolation: buildah's isolation: `chroot` (works inside a pod), `oci` or `rootless`.
            search_registries: where short names such as `debian:12` are looked for.
            environment: further variables for buildah, such as HTTPS_PROXY.
            minimum_free_bytes: cached layers are dropped when the disk has less room.

        """
        self._root = root.resolve()
        self._runroot = runroot.resolve()
        self._isolation = isolation
        self._search_registries = tuple(search_registries)
        self._environment = dict(environment or {})
        self._minimum_free_bytes = minimum_free_bytes
        self._prefix: tuple[str, ...] = ()
        self._prepared = False
        self._leftovers = False
        self._running = 0
        self._gate = asyncio.Lock()

    async def build(
        self, request: BuildRequest, *, on_line: Callable[[str], None] = lambda _: None
    ) -> BuiltImage:
        """Build an image, push it, and return the digest that the registry knows it by.

        Args:
            request: what to build, and where to.
            on_line: receives each line of the log, cleaned and without secret values.

        Raises:
            BuildFailed: the Dockerfile or an image reference is at fault, or a registry denied access.
            BuildTimedOut: the time limit was reached; everything that belonged to the build was killed.
            BuildahMissing: buildah is not installed or cannot run here.
            RegistryUnavailable: a registry or the network failed.
            BuildInterrupted: something outside killed buildah.

        """
        hidden = [content for files in request.secrets.values() for content in files.values()]
        log = BuildLog(hidden=hidden, on_line=on_line)
        async with self._use_of_storage():
            if not request.use_cache:
                self._rebuild_mark.touch()
            with self._workspace(request) as workspace:
                try:
                    async with asyncio.timeout(request.time_limit):
                        digest = await self._build_and_push(request, workspace, log)
                except TimeoutError as error:
                    raise BuildTimedOut(
                        f"building {request.destination} took over {request.time_limit:.0f} s, at instruction "
                        f"{log.instruction!r}. Make it faster or raise the builder's time limit.",
                        log_tail=log.tail(),
                    ) from error
        return BuiltImage(digest=digest, log_tail=log.tail())

    async def _build_and_push(self, request: BuildRequest, workspace: Workspace, log: BuildLog) -> str:
        try:
            for step, arguments in ((Step.BUILD, build_arguments), (Step.PUSH, push_arguments)):
                code = await self._run(
                    arguments(request, workspace), temporary=workspace.private, feed=log.feed
                )
                log.close()
                if code != 0:
                    raise explain(
                        step=step,
                        exit_code=code,
                        log_tail=log.tail(),
                        instruction=log.instruction,
                        destination=request.destination,
                    )
        finally:
            if request.secrets and workspace.image_file.exists():
                # Layers that saw a secret must not become another build's cache.
                await self._upkeep("rmi", "--force", workspace.image_file.read_text().strip())
        return workspace.digest_file.read_text().strip()

    async def _run(
        self, arguments: Sequence[str], *, temporary: Path, feed: Callable[[bytes], None] = lambda _: None
    ) -> int:
        """Run buildah to its end and return its exit code; if interrupted, kill all that it started."""
        process = await asyncio.create_subprocess_exec(
            *self._prefix,
            "buildah",
            f"--registries-conf-dir={self._configuration / 'registries.conf.d'}",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._variables(temporary),
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            while output := await process.stdout.read(1 << 16):
                feed(output)
            return await process.wait()
        except BaseException:
            self._leftovers = True
            raise
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    @property
    def _rebuild_mark(self) -> Path:
        """Return the file that was last touched when a rebuild was asked for."""
        return self._root / "rebuild"

    def _cache_age(self) -> float:
        """Return how many seconds old a layer may be to be used."""
        if not self._rebuild_mark.exists():
            return MAXIMUM_CACHE_AGE
        return min(max(time.time() - self._rebuild_mark.stat().st_mtime, 0.0), MAXIMUM_CACHE_AGE)

    @property
    def _configuration(self) -> Path:
        return self._runroot / "configuration"

    def _variables(self, temporary: Path) -> dict[str, str]:
        return {
            **self._environment,
            "PATH": PROGRAM_PATH,
            "LANG": "C.UTF-8",
            "HOME": str(temporary),
            "TMPDIR": str(temporary),
            "XDG_RUNTIME_DIR": str(temporary),
            "CONTAINERS_CONF": str(self._configuration / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self._configuration / "registries.conf"),
            "CONTAINERS_STORAGE_CONF": str(self._configuration / "storage.conf"),
        }

    @asynccontextmanager
    async def _use_of_storage(self) -> AsyncIterator[None]:
        """Count the builds at work; look after the storage when there is none."""
        async with self._gate:
            if not self._prepared:
                await self._prepare()
            self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            async with self._gate:
                if self._running == 0:
                    await self._tidy()

    async def _prepare(self) -> None:
        """Write the configuration, find out what works here, and drop what a killed process left behind."""
        if shutil.which("buildah", path=PROGRAM_PATH) is None:
            raise BuildahMissing("buildah is not installed. Debian: apt install buildah crun")
        for leftover in (self._root / "work", *self._runroot.glob("secrets-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in (
            self._root / "work",
            self._root / "storage",
            self._configuration / "registries.conf.d",
        ):
            folder.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o700)
        self._runroot.chmod(0o700)
        self._configure("containers.conf", "")
        self._configure("pull-policy.json", PULL_POLICY)
        self._configure("push-policy.json", PUSH_POLICY)
        self._configure("registries.conf", _registries(self._search_registries))
        if os.geteuid() == 0 and await _succeeds([*NAMESPACES, "true"]):
            self._prefix = NAMESPACES
        for driver in ("overlay", "vfs"):
            self._configure(
                "storage.conf", _storage(driver, self._root / "storage", self._runroot / "storage")
            )
            if await self._upkeep("info") == 0:
                break
        else:
            raise BuildahMissing(
                f"buildah cannot use {self._root} as storage: neither overlay nor vfs works there."
            )
        self._leftovers = True
        await self._tidy()
        self._prepared = True

    async def _tidy(self) -> None:
        """Drop working containers of interrupted builds, and the cache if the disk is nearly full."""
        if self._leftovers:
            self._leftovers = await self._upkeep("rm", "--all") != 0
        if shutil.disk_usage(self._root).free < self._minimum_free_bytes:
            await self._upkeep("rmi", "--all", "--force")

    async def _upkeep(self, *arguments: str) -> int:
        """Run buildah on the storage alone; an exit code other than 0 means that it did not work this time."""
        try:
            async with asyncio.timeout(UPKEEP_TIMEOUT):
                return await self._run(arguments, temporary=self._root / "work")
        except TimeoutError:
            return -1

    def _configure(self, name: str, text: str) -> None:
        (self._configuration / name).write_text(text)

    @contextmanager
    def _workspace(self, request: BuildRequest) -> Iterator[Workspace]:
        """Lay out the files of one build; all are gone afterwards."""
        with (
            tempfile.TemporaryDirectory(dir=self._root / "work", ignore_cleanup_errors=True) as private,
            tempfile.TemporaryDirectory(dir=self._runroot, prefix="secrets-") as secrets,
        ):
            workspace = Workspace(
                private=Path(private),
                secrets=Path(secrets),
                configuration=self._configuration,
                isolation=self._isolation,
                cache_age=self._cache_age(),
            )
            workspace.context.mkdir()
            workspace.dockerfile.write_text(request.dockerfile)
            workspace.auth_file.write_bytes(request.auth_file or b"{}")
            for name, files in request.secrets.items():
                _write_secret(workspace.secrets / "build" / _plain(name), files)
            yield workspace


def _write_secret(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a Secret's files, readable by any user of the build (the folder above is closed to others)."""
    folder.mkdir(parents=True)
    folder.parent.chmod(0o755)
    folder.chmod(0o755)
    for name, content in files.items():
        (folder / _plain(name)).write_bytes(content)
        (folder / name).chmod(0o444)


def _plain(name: str) -> str:
    """Return a name of a Secret or of its key if it can be no path and no mount option.

    Raises:
        BuildFailed: it could.

    """
    if name in {"", ".", ".."} or not all(c.isalnum() or c in "-._" for c in name):
        raise BuildFailed(f"{name!r} is not a name of a Secret or of a key in one.", reason="SecretInvalid")
    return name


async def _succeeds(command: Sequence[str]) -> bool:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait() == 0


def _storage(driver: str, root: Path, runroot: Path) -> str:
    return f'[storage]\ndriver = "{driver}"\ngraphroot = "{root}"\nrunroot = "{runroot}"\n'


def _registries(search: Iterable[str]) -> str:
    """Return a containers-registries.conf(5)."""
    names = ", ".join(f'"{name}"' for name in search)
    loopback = "".join(
        f'[[registry]]\nlocation = "{name}"\ninsecure = true\n' for name in LOOPBACK_REGISTRIES
    )
    return f'unqualified-search-registries = [{names}]\nshort-name-mode = "disabled"\n{loopback}'

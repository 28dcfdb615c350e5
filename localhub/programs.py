"""The programs of Kubernetes and etcd: found, or built once from their Go modules into the user's cache."""

import platform
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from localhub.files import locked
from localhub.progress import Progress
from localhub.toolchain import find_go
from shared.domain.errors import TransientError

MODULES = Path(__file__).parent / "programs"
BUILD_LIMIT = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a program comes from.

    Attributes:
        folder: the wrapper module below `localhub/programs` that pins it.
        module: the Go module with its version.
        package: the Go package to build.
        expected: how long a first build takes on two cores, for people.
    """

    folder: str
    module: str
    package: str
    expected: str


SOURCES = {
    "etcd": Source(
        folder="etcd",
        module="go.etcd.io/etcd/server/v3",
        package="go.etcd.io/etcd/server/v3",
        expected="20 s",
    ),
    "kube-apiserver": Source(
        folder="kubernetes",
        module="k8s.io/kubernetes",
        package="k8s.io/kubernetes/cmd/kube-apiserver",
        expected="3 to 4 min",
    ),
    "kubectl": Source(
        folder="kubernetes",
        module="k8s.io/kubernetes",
        package="k8s.io/kubernetes/cmd/kubectl",
        expected="30 s",
    ),
}


def pinned_version(folder: str, module: str) -> str:
    """The version of a module that the wrapper module in `folder` requires, such as `v1.36.3`."""
    text = (MODULES / folder / "go.mod").read_text()
    found = re.search(rf"^(?:require)?\s+{re.escape(module)} (v\S+)", text, re.MULTILINE)
    assert found is not None, f"{folder}/go.mod does not require {module}"
    return found.group(1)


class Programs:
    """The programs of one user, shared by all hubs."""

    def __init__(self, *, cache: Path, assets: Path | None = None) -> None:
        """Look in `assets` (KUBEBUILDER_ASSETS) first, then in `cache`, which is also where builds go."""
        self._cache = cache
        self._assets = assets

    def find(self, name: str) -> Path | None:
        """A program that is there already."""
        if self._assets is not None and (self._assets / name).is_file():
            return (self._assets / name).absolute()
        cached = self._cached(name)
        return cached if cached.is_file() else None

    def ensure(self, name: str, progress: Progress) -> Path:
        """A program, built if it is not there. Two runs at once build it once.

        Raises:
            TransientError: the build failed; the message says where its output is.
        """
        found = self.find(name)
        if found is not None:
            return found
        target = self._cached(name)
        lock = target.with_name(f"{SOURCES[name].folder}.lock")
        waiting = f"waits while another run builds {name}"
        with locked(lock, limit=BUILD_LIMIT, waiting=lambda: progress("programs", waiting)):
            if not target.is_file():
                self._build(name, target, progress)
        return target

    def _cached(self, name: str) -> Path:
        source = SOURCES[name]
        version = pinned_version(source.folder, source.module)
        return self._cache / f"{source.folder}-{version}-{platform.machine()}" / name

    def _build(self, name: str, target: Path, progress: Progress) -> None:
        source = SOURCES[name]
        folder = MODULES / source.folder
        go = find_go(folder, self._cache, progress)
        message = f"building {name} from source, once; usually {source.expected}"
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{name}-") as work:
            output = Path(work) / name
            arguments = (str(go), "build", "-trimpath", "-ldflags", _linker_flags(source), "-o", str(output))
            log = target.with_name(f"{name}.log")
            with log.open("wb") as file:
                build = subprocess.Popen(
                    (*arguments, source.package),
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
                _follow(build, message, progress)
            if build.returncode != 0:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                raise TransientError(
                    f"building {name} failed; {log} ends with:\n{tail}", reason="BuildFailed"
                )
            output.rename(target)
        progress("programs", f"{name} built", done=True)


def _follow(build: subprocess.Popen[bytes], message: str, progress: Progress) -> None:
    """Wait for a build, telling once a second that it goes on; never leave it behind."""
    end = time.monotonic() + BUILD_LIMIT
    try:
        while build.poll() is None and time.monotonic() < end:
            progress("programs", message)
            try:
                build.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if build.poll() is None:
            build.terminate()
            build.wait()


def _linker_flags(source: Source) -> str:
    """Strip, and for Kubernetes say the version, which its own build would do: clients see v0.0.0 otherwise."""
    flags = ["-s", "-w"]
    if source.folder == "kubernetes":
        version = pinned_version(source.folder, source.module)
        major, minor, _ = version.removeprefix("v").split(".", 2)
        values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
        flags += [f"-X k8s.io/component-base/version.{key}={value}" for key, value in values.items()]
    return " ".join(flags)

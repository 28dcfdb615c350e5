"""The Debian packages that the local hub, the demo and the tests run, and how they get onto the machine."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.domain.errors import PermanentError, TransientError

PACKAGES = (
    "binutils",  # reads kernel modules in tests
    "buildah",
    "busybox-static",
    "cpio",
    "crun",
    "debootstrap",
    "docker-registry",
    "gcc",
    "kmod",
    "make",
    "openssl",
    "ovmf",
    "python3-venv",
    "qemu-system-x86",
    "uidmap",
    "util-linux",  # unshare, for PostgreSQL below root
    "xz-utils",
    "zstd",
)
POLICY = Path("/usr/sbin/policy-rc.d")
INSTALL_LIMIT = 1800


def missing_packages() -> tuple[str, ...]:
    """Which of `PACKAGES` are not installed.

    Raises:
        PermanentError: this is no Debian.
    """
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        message = f"this is not a Debian system: install the programs of these Debian packages: {' '.join(PACKAGES)}"
        raise PermanentError(message, reason="NoDebian")
    query = ("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\\n", *PACKAGES)
    outcome = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    installed = {line.split()[1] for line in outcome.stdout.splitlines() if line.startswith("installed ")}
    return tuple(name for name in PACKAGES if name not in installed)


def ensure_packages(tell: Callable[[str], None]) -> tuple[str, ...]:
    """Install what is missing; no service that a package brings is left running.

    Args:
        tell: receives one line before each slow step.

    Returns:
        What was installed.

    Raises:
        PermanentError: we may not install; the message says the command for who may.
        TransientError: apt-get failed; the message holds the end of its output.
    """
    missing = missing_packages()
    if not missing:
        return ()
    install = ("apt-get", "install", "--yes", "--no-install-recommends", *missing)
    if os.geteuid() != 0:
        message = f"Debian packages are missing; run: sudo apt-get update && sudo {' '.join(install)}"
        raise PermanentError(message, reason="PackagesMissing")
    tell("reading the package lists")
    _apt(("apt-get", "update"))
    tell(f"installing {', '.join(missing)}")
    with _no_services_started():
        _apt(install)
    if "docker-registry" in missing and Path("/run/systemd/system").is_dir():
        # The package wants its own registry at every boot; the local hub starts one of its own.
        disable = ("systemctl", "disable", "--now", "docker-registry")
        subprocess.run(disable, capture_output=True, timeout=60, check=False)
    return missing


@contextmanager
def _no_services_started() -> Iterator[None]:
    """Have packages start nothing (status 101 of Debian's policy-rc.d), unless the machine has a policy already."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def _apt(arguments: tuple[str, ...]) -> None:
    command = ("env", "DEBIAN_FRONTEND=noninteractive", *arguments)
    outcome = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_LIMIT, check=False
    )
    if outcome.returncode != 0:
        tail = (outcome.stdout + outcome.stderr).strip()[-800:]
        raise TransientError(f"{' '.join(arguments[:2])} failed:\n{tail}", reason="AptFailed")

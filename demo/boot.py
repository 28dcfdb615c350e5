"""The kernel as the judge: boots a real kernel that enforces module signatures and tries modules on it.

The signing certificate is enrolled in the emulated firmware's signature database (`db`). The kernel loads it
into its platform keyring, which Debian's kernels trust for modules (with Secure Boot off, too). Everything runs
under emulation without special rights: no KVM, no root, no network.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from demo.kernels import Kernel
from shared.domain.errors import PermanentError, TransientError

FIRMWARE = Path("/usr/share/OVMF")
CERTIFICATE_OWNER = "9b7b1f5e-5d0f-4f53-9d65-6b6d6d687562"
"""The owner GUID of our entry in the signature database; it only has to be stable (UEFI 2.10, 32.4.1)."""

COMMAND_LINE = "console=ttyS0 module.sig_enforce=1 panic=1 efi=runtime"
"""`efi=runtime`: a PREEMPT_RT kernel otherwise leaves the firmware's variables, and so our certificate, alone."""

BOOT_TIMEOUT = 180.0
"""Seconds from start to power-off; an unloaded machine needs six to nine."""

SIGNATURE_ERRORS = (
    "Key was rejected by service",
    "Required key not available",
    "Bad message",
    "Package not installed",
)
"""What insmod says for the errors of a failed signature check (EKEYREJECTED, ENOKEY, EBADMSG, ENOPKG)."""

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
dmesg -n 1
echo
echo "@release $(uname -r)"
dmesg | grep 'Loaded X.509 cert' | sed 's/^/@certificate /'
for module in /modules/*.ko; do
    dmesg -c > /dev/null
    number=$(basename "$module" .ko)
    if answer=$(insmod "$module" 2>&1); then verdict=loaded; else verdict=failed; fi
    echo "@$verdict $number $answer"
    dmesg | sed "s/^/@kernel $number /"
    while read -r name rest; do rmmod "$name"; done < /proc/modules
done
echo "@end"
poweroff -f
"""
"""The only program of the machine. It silences the kernel on the console, so that no line is cut in two."""


class Verdict(StrEnum):
    """What the kernel did with a module."""

    LOADED = "loaded"
    REFUSED = "refused"
    """The signature was not accepted."""
    FAILED = "failed"
    """Another error, such as a module that was built for a different kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One module and what the kernel made of it.

    Attributes:
        name: the caller's name for the module.
        message: insmod's error; empty if the module was loaded.
        kernel_messages: what the kernel logged meanwhile, with its time stamps.
    """

    name: str
    verdict: Verdict
    message: str
    kernel_messages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootReport:
    """The outcome of one boot.

    Attributes:
        release: the kernel's own `uname -r`.
        certificates: what the kernel said of the certificates it loaded.
        attempts: one for each module, in the order given.
        seconds: from the start of the machine to power-off.
        console: all that the machine printed.
    """

    release: str
    certificates: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    seconds: float
    console: str


class LabProgramMissing(PermanentError):
    """A program or file of the kernel lab is not installed."""

    reason = "LabProgramMissing"


class BootFailed(TransientError):
    """The machine did not run to its end in time, or stopped early."""

    reason = "BootFailed"


async def boot(
    kernel: Kernel,
    modules: Mapping[str, bytes],
    *,
    trusted_certificate: bytes,
    time_limit: float = BOOT_TIMEOUT,
) -> BootReport:
    """Boot a kernel that trusts one certificate and try to load modules, one after the other.

    A loaded module is unloaded before the next is tried, so the same module may come in several signing states.

    Args:
        kernel: the kernel to boot.
        modules: module files (.ko) by a name of the caller's choice, tried in this order.
        trusted_certificate: the certificate, PEM, to enrol in the firmware.
        time_limit: seconds until the machine is stopped.

    Raises:
        LabProgramMissing: qemu, its firmware, busybox, cpio or virt-fw-vars is not installed.
        BootFailed: the machine did not come to its end.

    """
    _check_programs()
    with tempfile.TemporaryDirectory(prefix="kmmhub-boot-") as name:
        directory = Path(name)
        await _write_firmware(directory, trusted_certificate)
        await _write_initial_disk(directory, tuple(modules.values()))
        started = time.monotonic()
        console = await _run(_machine(kernel, directory), time_limit=time_limit)
        seconds = time.monotonic() - started
    return read_console(console, names=tuple(modules), seconds=seconds)


def read_console(console: str, *, names: Sequence[str], seconds: float) -> BootReport:
    """Read the report of the machine's init program.

    Args:
        console: what the machine printed on its serial line.
        names: the modules' names, in the order in which they were tried.
        seconds: how long the machine ran.

    Raises:
        BootFailed: the report is not complete.

    """
    lines = [line.split(" ", 1) for line in console.splitlines() if line.startswith("@")]
    said: dict[str, list[str]] = {}
    for word, *rest in lines:
        said.setdefault(word, []).append(rest[0] if rest else "")
    if "@end" not in said:
        raise BootFailed(f"the machine stopped before its end. Its last lines:\n{console[-2000:]}")
    outcomes = {
        number: (word, message)
        for word in ("@loaded", "@failed")
        for number, _, message in (line.partition(" ") for line in said.get(word, ()))
    }
    logged = [line.partition(" ") for line in said.get("@kernel", ())]
    return BootReport(
        release=said["@release"][0],
        certificates=tuple(said.get("@certificate", ())),
        attempts=tuple(
            Attempt(
                name=name,
                verdict=_verdict(*outcomes[number]),
                message=outcomes[number][1],
                kernel_messages=tuple(text for logged_for, _, text in logged if logged_for == number),
            )
            for number, name in ((_number(index), name) for index, name in enumerate(names))
        ),
        seconds=seconds,
        console=console,
    )


def _verdict(word: str, message: str) -> Verdict:
    if word == "@loaded":
        return Verdict.LOADED
    return Verdict.REFUSED if any(error in message for error in SIGNATURE_ERRORS) else Verdict.FAILED


def _number(index: int) -> str:
    """Return a module's file name in the machine, which decides the order of the attempts."""
    return f"{index:04d}"


def _virt_fw_vars() -> Path:
    return Path(sys.executable).parent / "virt-fw-vars"


def _check_programs() -> None:
    packages = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio"}
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if not (FIRMWARE / "OVMF_CODE_4M.fd").exists():
        missing.append("ovmf")
    if missing:
        raise LabProgramMissing(f"the kernel lab needs Debian packages: apt install {' '.join(missing)}")
    if not _virt_fw_vars().exists():
        raise LabProgramMissing("the kernel lab needs virt-firmware: pip install 'kmm-hub[local]'")


async def _write_firmware(directory: Path, certificate: bytes) -> None:
    """Write the firmware's variable store with the certificate in its signature database."""
    (directory / "certificate.pem").write_bytes(certificate)
    command = [str(_virt_fw_vars()), "--input", str(FIRMWARE / "OVMF_VARS_4M.fd")]
    command += ["--output", str(directory / "variables.fd")]
    command += ["--add-db", CERTIFICATE_OWNER, str(directory / "certificate.pem")]
    await _run(command, time_limit=60)


async def _write_initial_disk(directory: Path, modules: Sequence[bytes]) -> None:
    """Pack busybox, the init program and the modules as the kernel wants it (initramfs buffer format, newc)."""
    tree = directory / "tree"
    for folder in ("bin", "dev", "modules", "proc", "sys"):
        (tree / folder).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin" / "busybox")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    for index, content in enumerate(modules):
        (tree / "modules" / f"{_number(index)}.ko").write_bytes(content)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    output = str(directory / "initial-disk")
    command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-D", str(tree), "-O", output]
    await _run(command, time_limit=60, stdin=names.encode())


def _machine(kernel: Kernel, directory: Path) -> list[str]:
    code = f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE / 'OVMF_CODE_4M.fd'}"
    variables = f"if=pflash,format=raw,unit=1,file={directory / 'variables.fd'}"
    return [
        *("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-m", "1024"),
        *("-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot"),
        *("-drive", code, "-drive", variables),
        *(
            "-kernel",
            str(kernel.vmlinuz),
            "-initrd",
            str(directory / "initial-disk"),
            "-append",
            COMMAND_LINE,
        ),
    ]


async def _run(command: Sequence[str], *, time_limit: float, stdin: bytes = b"") -> str:
    """Run a program to its end and return what it printed; no process of it outlives the call."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(time_limit):
            output, _ = await process.communicate(stdin)
    except TimeoutError as error:
        raise BootFailed(f"{Path(command[0]).name} was stopped after {time_limit:.0f} s.") from error
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    text = output.decode(errors="replace").replace("\r", "")
    if process.returncode != 0:
        raise BootFailed(f"{Path(command[0]).name} ended with {process.returncode}: {text[-2000:]}")
    return text

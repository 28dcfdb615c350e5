"""Real Debian kernels, taken from the machine's own apt sources without installing anything."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.domain.errors import PermanentError, TransientError

IMAGE = "linux-image-"
HEADERS = "linux-headers-"
COMPILER = "linux-compiler-"
"""Empty packages that only name the compiler."""
BUILD_PACKAGES = (HEADERS, "linux-kbuild-", COMPILER)
FLAVOURS = ("amd64", "cloud-amd64", "rt-amd64")
"""Flavours of one kernel version; each is a different kernel for a module."""

DOWNLOAD_TIMEOUT = 600.0
"""Seconds for fetching one batch of packages."""


class NoKernels(PermanentError):
    """The machine's package sources do not offer the kernels that are needed."""

    reason = "NoKernels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that apt would install now.

    Attributes:
        depends: the first alternative of each dependency, names only.
        file_name: the name `apt-get download` gives to the file.
    """

    name: str
    version: str
    depends: tuple[str, ...]
    file_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel that can be booted, and what a module for it is built with.

    Attributes:
        version: as `uname -r` and `Node.status.nodeInfo.kernelVersion` say it.
        vmlinuz: the bootable image.
        headers: the .deb files to unpack into a build image.
        requirements: the packages that a module build needs beside the headers, such as `gcc-12`.
    """

    version: str
    vmlinuz: Path
    headers: tuple[Path, ...]
    requirements: tuple[str, ...]


def cache_directory() -> Path:
    """Return where downloads of this user are kept (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME")  # noqa: TID251 - the XDG specification names the variable
    return (Path(base) if base else Path.home() / ".cache") / "kmmhub" / "kernels"


def offered_packages() -> Mapping[str, Package]:
    """Return the kernel packages that the machine's apt offers, by name.

    Raises:
        NoKernels: apt is not there or does not answer.

    """
    try:
        answer = subprocess.run(
            ["apt-cache", "dumpavail"], check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernels(
            f"apt-cache dumpavail failed: {error}. The kernel lab needs Debian with package lists (apt update)."
        ) from error
    return read_packages(answer.stdout)


def read_packages(text: str) -> Mapping[str, Package]:
    """Return the packages of a Debian control file whose names begin with `linux-`, by name."""
    packages = {}
    for stanza in text.split("\n\n"):
        if not stanza.lstrip().startswith("Package: linux-"):
            continue
        fields = dict(
            line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line.startswith(" ")
        )
        name, version, architecture = (fields.get(key, "") for key in ("Package", "Version", "Architecture"))
        packages[name] = Package(
            name=name,
            version=version,
            depends=tuple(
                alternative.split()[0] for alternative in fields.get("Depends", "").split(",") if alternative
            ),
            file_name=f"{name}_{version.replace(':', '%3a')}_{architecture}.deb",
        )
    return packages


def offered_versions(packages: Mapping[str, Package]) -> tuple[str, ...]:
    """Return the kernel versions that can be both booted and built for, newest first."""
    versions = [
        name.removeprefix(IMAGE)
        for name in packages
        if name.startswith(IMAGE) and HEADERS + name.removeprefix(IMAGE) in packages
    ]
    full = [version for version in versions if flavour_of(version) and version.split("-")[0].count(".") == 2]
    return tuple(sorted(full, key=lambda version: (_numbers(version), version), reverse=True))


def flavour_of(version: str) -> str:
    """Return the flavour at the end of a kernel version, such as `cloud-amd64`; empty if it is not known."""
    matching = [flavour for flavour in FLAVOURS if version.endswith(f"-{flavour}")]
    return max(matching, key=len, default="")


def choose_versions(offered: Iterable[str]) -> tuple[str, ...]:
    """Return the four kernels of the demo: the newest stable one in each flavour, and the newest with a `+`.

    A `+` is legal in a kernel version but not in an image tag, which is why one such kernel belongs in the set.

    Args:
        offered: kernel versions, newest first.

    Raises:
        NoKernels: one of the four is not offered.

    """
    versions = tuple(offered)
    wanted = [(flavour, False) for flavour in FLAVOURS] + [("cloud-amd64", True)]
    chosen = []
    for flavour, with_plus in wanted:
        found = next((v for v in versions if flavour_of(v) == flavour and ("+" in v) is with_plus), None)
        if found is None:
            kind = "a version with '+'" if with_plus else "a stable version"
            raise NoKernels(
                f"apt offers no kernel with headers of flavour {flavour} and {kind}. "
                "The kernel lab needs Debian 12 with its security updates; run apt update."
            )
        chosen.append(found)
    return tuple(chosen)


def build_packages(
    packages: Mapping[str, Package], version: str
) -> tuple[tuple[Package, ...], tuple[str, ...]]:
    """Return what a module build for a kernel version needs: packages to unpack, and names of ordinary ones.

    Raises:
        NoKernels: a needed package is not offered.

    """
    needed: dict[str, Package] = {}
    ordinary: set[str] = set()
    open_names = [HEADERS + version]
    while open_names:
        name = open_names.pop()
        if name.startswith(BUILD_PACKAGES) and name not in needed:
            if name not in packages:
                raise NoKernels(
                    f"kernel {version} needs package {name}, which apt does not offer. Run apt update."
                )
            needed[name] = packages[name]
            open_names.extend(packages[name].depends)
        elif not name.startswith("linux-"):
            ordinary.add(name)
    unpacked = tuple(needed[name] for name in sorted(needed) if not name.startswith(COMPILER))
    return unpacked, tuple(sorted(ordinary))


def fetch_kernels(
    versions: Iterable[str],
    packages: Mapping[str, Package],
    *,
    cache: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Kernel, ...]:
    """Return the named kernels, from the cache or through apt, which checks every signature and digest.

    Args:
        versions: kernel versions among `offered_versions(packages)`.
        packages: what apt offers.
        cache: a directory that this function may fill; created if it is not there.
        progress: receives one line for people per step.

    Raises:
        NoKernels: a needed package is not offered.
        TransientError: a download failed.

    """
    cache.mkdir(parents=True, exist_ok=True)
    plan = {version: (packages[IMAGE + version], *build_packages(packages, version)) for version in versions}
    missing = {
        package.name: package
        for image, headers, _ in plan.values()
        for package in (image, *headers)
        if not _cached_file(cache, package).exists()
    }
    if missing:
        progress(f"fetching {len(missing)} kernel packages through apt")
        _download(missing.values(), cache)
    return tuple(
        Kernel(
            version=version,
            vmlinuz=_cached_file(cache, image),
            headers=tuple(_cached_file(cache, package) for package in headers),
            requirements=requirements,
        )
        for version, (image, headers, requirements) in plan.items()
    )


def _cached_file(cache: Path, package: Package) -> Path:
    """Return where the useful part of a package is kept: of an image only the kernel, not its drivers."""
    suffix = ".vmlinuz" if package.name.startswith(IMAGE) else ".deb"
    return cache / (package.file_name.removesuffix(".deb") + suffix)


def _download(packages: Iterable[Package], cache: Path) -> None:
    """Fetch packages aside and move each into the cache whole, so that an interrupted run leaves no half file."""
    wanted = list(packages)
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as name:
        aside = Path(name)
        command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download"]
        command += [f"{package.name}={package.version}" for package in wanted]
        try:
            subprocess.run(
                command, cwd=aside, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT
            )
        except subprocess.CalledProcessError as error:
            raise TransientError(f"apt-get download failed: {error.stderr.strip()[-500:]}") from error
        except subprocess.TimeoutExpired as error:
            raise TransientError(f"apt-get download took over {DOWNLOAD_TIMEOUT:.0f} s.") from error
        for package in wanted:
            fetched = aside / package.file_name
            if package.name.startswith(IMAGE):
                fetched = _extract_vmlinuz(fetched, package.name.removeprefix(IMAGE))
            fetched.replace(_cached_file(cache, package))


def _extract_vmlinuz(deb: Path, version: str) -> Path:
    target = deb.with_suffix(".vmlinuz")
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as unpacker,
        tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive,
    ):
        for member in archive:
            if member.name == f"./boot/vmlinuz-{version}":
                content = archive.extractfile(member)
                assert content is not None
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
                unpacker.kill()  # the drivers that follow are not needed
                return target
    raise NoKernels(f"package {deb.name} holds no /boot/vmlinuz-{version}.")


def _numbers(version: str) -> tuple[int, ...]:
    digits = "".join(character if character.isdigit() else " " for character in version)
    return tuple(int(number) for number in digits.split())

"""The two base images of the demo's Dockerfile, made on this machine from its own package mirror.

* `kmod-build`: Debian's minimal system, the kernels' compiler and headers, and the source of the demo's module.
  A build from it needs no network.
* `kmod-run`: a static busybox, so that the node's agent finds a `cp`.

Both are kept in an OCI image layout (image-spec, image-layout.md) in the user's cache. A layer is made again only
when what goes into it changes.
"""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from demo.image_layout import ImageLayout, Layer
from demo.kernels import Kernel
from demo.kernels import cache_directory as kernel_cache_directory
from shared.domain.errors import PermanentError
from shared.domain.image import ImageReference
from shared.registry.access import ANONYMOUS, RegistryAccess
from shared.registry.client import RegistryClient

BUILD_IMAGE = "kmod-build"
RUN_IMAGE = "kmod-run"
TAG = "latest"
MODULE_SOURCE = Path(__file__).parent / "module"
MODULE_FILES = ("Kbuild", "Makefile", "kmm_hello.c")
TOOLS = ("kmod", "make")
"""Packages of the build image beside the kernels' own requirements: depmod and make."""

LEFT_OUT = (
    *("dev/*", "usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man"),
    *("var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*"),
)
"""What a build does not read, as tar patterns below the root."""

RECIPE = 1
"""Part of every layer's cache key: raise it when the way a layer is made changes."""

DEBOOTSTRAP_TIMEOUT = 900.0
"""Seconds."""


class BaseImageFailed(PermanentError):
    """A base image could not be made on this machine."""

    reason = "BaseImageFailed"


def cache_directory() -> Path:
    """Return where the images of this user are kept, beside the kernels."""
    return kernel_cache_directory().parent / "images"


def dockerfile() -> str:
    """Return the demo's Dockerfile, for the key `dockerfile` of the ConfigMap that a build names."""
    return (MODULE_SOURCE / "Dockerfile").read_text()


def prepare_images(
    kernels: Sequence[Kernel], *, layout: ImageLayout, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Bring an image layout up to date: it then holds `kmod-build` for these kernels, and `kmod-run`.

    Args:
        kernels: the kernels whose headers `kmod-build` holds.
        layout: where the images are kept between runs.
        progress: receives one line for people per step.

    Raises:
        BaseImageFailed: debootstrap or busybox is not installed, debootstrap failed, or we are not root.

    """
    suite, mirror = _package_source()
    packages = sorted({*TOOLS, *(name for kernel in kernels for name in kernel.requirements)})
    headers = sorted({deb for kernel in kernels for deb in kernel.headers})
    content = [str(RECIPE), suite, *packages, *LEFT_OUT, *(deb.name for deb in headers)]
    key = hashlib.sha256("\n".join(content).encode()).hexdigest()
    toolchain = layout.recall(key)
    if toolchain is None:
        toolchain = _make_toolchain(suite, mirror, packages, headers, layout=layout, progress=progress)
        layout.remember(key, toolchain)
    source = layout.store_archive(_source_archive())
    busybox = layout.store_archive(_busybox_archive())
    layout.write_images({BUILD_IMAGE: (toolchain, source), RUN_IMAGE: (busybox,)})
    progress(f"base images {BUILD_IMAGE} ({toolchain.size / 1e6:.0f} MB) and {RUN_IMAGE} are ready")


async def push_images(
    layout: ImageLayout,
    *,
    registry: str,
    client: RegistryClient,
    access: RegistryAccess = ANONYMOUS,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Copy both images to a registry, as `<registry>/kmod-build:latest` and `<registry>/kmod-run:latest`.

    Args:
        layout: what `prepare_images` filled.
        registry: host and port, and a path if wanted.
        client: the registry client to use.
        access: how to reach the registry.
        progress: receives one line for people per image.

    Raises:
        HubError: as `RegistryClient`.

    """
    for image in (BUILD_IMAGE, RUN_IMAGE):
        target = ImageReference.parse(f"{registry}/{image}:{TAG}")
        await layout.push(image, target, client, access)
        progress(f"pushed {target}")


def _package_source() -> tuple[str, str]:
    """Return the machine's Debian release and the mirror that apt takes it from."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    suite = release.get("VERSION_CODENAME", "").strip('"')
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise BaseImageFailed(f"apt does not tell its sources: {error}. The demo needs Debian.") from error
    mirrors = dict(reversed([line.split(" ", 1) for line in answer.stdout.splitlines()]))
    if suite not in mirrors:
        raise BaseImageFailed(f"apt has no source for release {suite!r} (see /etc/apt/sources.list.d).")
    return suite, mirrors[suite]


def _make_toolchain(
    suite: str,
    mirror: str,
    packages: Sequence[str],
    headers: Sequence[Path],
    *,
    layout: ImageLayout,
    progress: Callable[[str], None],
) -> Layer:
    """Install a minimal system with the compiler, unpack the headers into it, and store it as a layer."""
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise BaseImageFailed("making the build image needs root and debootstrap: apt install debootstrap")
    with tempfile.TemporaryDirectory(dir=layout.directory, prefix="root-") as name:
        root = Path(name)
        progress(f"installing {suite} with {', '.join(packages)} (about 40 s, once)")
        # In a mount namespace of its own: what debootstrap mounts can then never be deleted with the directory.
        command = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "debootstrap",
            "--variant=minbase",
        ]
        command += [f"--include={','.join(packages)}", suite, name, mirror]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEBOOTSTRAP_TIMEOUT)
        except subprocess.CalledProcessError as error:
            raise BaseImageFailed(f"debootstrap failed: {(error.stdout + error.stderr)[-1000:]}") from error
        except subprocess.TimeoutExpired as error:
            raise BaseImageFailed(f"debootstrap took over {DEBOOTSTRAP_TIMEOUT:.0f} s.") from error
        progress(f"unpacking the headers of {len(headers)} kernel packages")
        for deb in headers:
            _unpack(deb, root)
        root.chmod(0o755)
        patterns = [f"--exclude=./{pattern}" for pattern in LEFT_OUT]
        command = ["tar", "-C", name, "--numeric-owner", "--sort=name", *patterns, "-cf", "-", "."]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as archiver:
            archive = archiver.stdout
            assert archive is not None
            layer = layout.store_stream(iter(lambda: archive.read(1 << 20), b""))
        if archiver.returncode != 0:
            raise BaseImageFailed(
                f"tar ended with {archiver.returncode}; is the disk of {layout.directory} full?"
            )
    return layer


def _unpack(deb: Path, root: Path) -> None:
    """Unpack a package into a root whose /lib is a link (dpkg -x would put a directory in its place)."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as reader:
        subprocess.run(
            ["tar", "-x", "--keep-directory-symlink", "-C", str(root)],
            stdin=reader.stdout,
            check=True,
            timeout=120,
        )


def _source_archive() -> bytes:
    files = {f"usr/src/kmm-hello/{name}": (MODULE_SOURCE / name).read_bytes() for name in MODULE_FILES}
    return _archive(files, links={})


def _busybox_archive() -> bytes:
    program = shutil.which("busybox")
    if program is None:
        raise BaseImageFailed("the image kmod-run needs a static busybox: apt install busybox-static")
    answer = subprocess.run([program, "--list-full"], check=True, capture_output=True, text=True, timeout=10)
    names = [name for name in answer.stdout.split() if name != "bin/busybox"]
    return _archive({"bin/busybox": Path(program).read_bytes()}, links=dict.fromkeys(names, "/bin/busybox"))


def _archive(files: Mapping[str, bytes], *, links: Mapping[str, str]) -> bytes:
    """Return a tar archive that depends on nothing but its content; programs are executable."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(member, io.BytesIO(content))
        for name, target in sorted(links.items()):
            member = tarfile.TarInfo(name)
            member.type = tarfile.SYMTYPE
            member.linkname = target
            archive.addfile(member)
    return buffer.getvalue()

"""The two base images of the demo's Dockerfile, made on this machine from its own package mirror.

* `kmod-build`: Debian's minimal system, the kernels' compiler and headers, and the source of the demo's module.
  A build from it needs no network.
* `kmod-run`: a static busybox, so that the node's agent finds a `cp`.

Both are kept in an OCI image layout (image-spec, image-layout.md) in the user's cache. A layer is made again only
when what goes into it changes.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import zstandard

from demo.kernels import Kernel
from demo.kernels import cache_directory as kernel_cache_directory
from shared.domain.errors import PermanentError, TransientError

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
COPY_TIMEOUT = 300.0
"""Seconds."""

MEDIA_TYPE = "application/vnd.oci.image"


class BaseImageFailed(PermanentError):
    """A base image could not be made on this machine."""

    reason = "BaseImageFailed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A compressed layer in the layout's blobs (image-spec, descriptor.md and config.md).

    Attributes:
        digest: of the compressed blob.
        diff_id: digest of the uncompressed tar archive.
        size: of the compressed blob, in bytes.
    """

    digest: str
    diff_id: str
    size: int
    compression: str


def cache_directory() -> Path:
    """Return where the images of this user are kept, beside the kernels."""
    return kernel_cache_directory().parent / "images"


def dockerfile() -> str:
    """Return the demo's Dockerfile, for the key `dockerfile` of the ConfigMap that a build names."""
    return (MODULE_SOURCE / "Dockerfile").read_text()


def prepare_images(
    kernels: Sequence[Kernel], *, layout: Path, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Bring an image layout up to date: it then holds `kmod-build` for these kernels, and `kmod-run`.

    Args:
        kernels: the kernels whose headers `kmod-build` holds.
        layout: the image layout's directory; created if it is not there.
        progress: receives one line for people per step.

    Raises:
        BaseImageFailed: debootstrap or busybox is not installed, debootstrap failed, or we are not root.

    """
    (layout / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    suite, mirror = _package_source()
    packages = sorted({*TOOLS, *(name for kernel in kernels for name in kernel.requirements)})
    headers = sorted({deb for kernel in kernels for deb in kernel.headers})
    content = [str(RECIPE), suite, *packages, *LEFT_OUT, *(deb.name for deb in headers)]
    key = hashlib.sha256("\n".join(content).encode()).hexdigest()
    record = layout / f"layer-{key}.json"
    if record.exists():
        toolchain = Layer(**json.loads(record.read_text()))
    else:
        toolchain = _make_toolchain(suite, mirror, packages, headers, layout=layout, progress=progress)
        _write(record, json.dumps(asdict(toolchain)).encode())
    source = _store_archive(_source_archive(), layout)
    busybox = _store_archive(_busybox_archive(), layout)
    images = {BUILD_IMAGE: (toolchain, source), RUN_IMAGE: (busybox,)}
    _write_index(layout, {name: _store_image(layers, layout) for name, layers in images.items()})
    progress(f"base images {BUILD_IMAGE} ({toolchain.size / 1e6:.0f} MB) and {RUN_IMAGE} are ready")


def push_images(
    layout: Path, *, registry: str, verify_tls: bool = False, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Copy both images to a registry, as `<registry>/kmod-build:latest` and `<registry>/kmod-run:latest`.

    Args:
        layout: what `prepare_images` filled.
        registry: host and port, and a path if wanted.
        verify_tls: whether the registry must have a certificate; False also allows plain HTTP.
        progress: receives one line for people per step.

    Raises:
        BaseImageFailed: skopeo is not installed.
        TransientError: the copy failed.

    """
    if shutil.which("skopeo") is None:
        raise BaseImageFailed("copying the base images needs skopeo: apt install skopeo")
    for image in (BUILD_IMAGE, RUN_IMAGE):
        destination = f"{registry}/{image}:{TAG}"
        command = [
            "skopeo",
            "copy",
            "--quiet",
            "--insecure-policy",
            f"--dest-tls-verify={str(verify_tls).lower()}",
        ]
        command += [f"oci:{layout}:{image}", f"docker://{destination}"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COPY_TIMEOUT)
        except subprocess.CalledProcessError as error:
            raise TransientError(f"copying {destination} failed: {error.stderr.strip()[-500:]}") from error
        except subprocess.TimeoutExpired as error:
            raise TransientError(f"copying {destination} took over {COPY_TIMEOUT:.0f} s.") from error
        progress(f"pushed {destination}")


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
    layout: Path,
    progress: Callable[[str], None],
) -> Layer:
    """Install a minimal system with the compiler, unpack the headers into it, and store it as a layer."""
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise BaseImageFailed("making the build image needs root and debootstrap: apt install debootstrap")
    with tempfile.TemporaryDirectory(dir=layout, prefix="root-") as name:
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
            layer = _store_stream(iter(lambda: archive.read(1 << 20), b""), layout)
        if archiver.returncode != 0:
            raise BaseImageFailed(f"tar ended with {archiver.returncode}; is the disk of {layout} full?")
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


def _store_stream(chunks: Iterable[bytes], layout: Path) -> Layer:
    """Compress a tar stream with Zstandard into the blobs."""
    plain, packed, size = hashlib.sha256(), hashlib.sha256(), 0
    compressor = zstandard.ZstdCompressor(level=3, threads=-1).compressobj()
    with tempfile.NamedTemporaryFile(dir=layout, delete=False) as file:
        for chunk in chunks:
            plain.update(chunk)
            block = compressor.compress(chunk)
            packed.update(block)
            size += file.write(block)
        block = compressor.flush()
        packed.update(block)
        size += file.write(block)
    digest = packed.hexdigest()
    Path(file.name).replace(_blob(layout, digest))
    return Layer(
        digest=f"sha256:{digest}", diff_id=f"sha256:{plain.hexdigest()}", size=size, compression="zstd"
    )


def _store_archive(archive: bytes, layout: Path) -> Layer:
    """Compress a small tar archive with gzip, which every runtime reads, into the blobs."""
    blob = gzip.compress(archive, mtime=0)
    diff_id = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    return Layer(digest=_store_blob(blob, layout), diff_id=diff_id, size=len(blob), compression="gzip")


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


def _store_image(layers: Sequence[Layer], layout: Path) -> tuple[str, int]:
    """Store an image's configuration and manifest; return the manifest's digest and size."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created_by": "kmm-hub demo"} for _ in layers],  # buildah wants one for each layer
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{MEDIA_TYPE}.manifest.v1+json",
            "config": {
                "mediaType": f"{MEDIA_TYPE}.config.v1+json",
                "digest": _store_blob(config, layout),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": f"{MEDIA_TYPE}.layer.v1.tar+{layer.compression}",
                    "digest": layer.digest,
                    "size": layer.size,
                }
                for layer in layers
            ],
        }
    ).encode()
    return _store_blob(manifest, layout), len(manifest)


def _write_index(layout: Path, images: Mapping[str, tuple[str, int]]) -> None:
    manifests = [
        {
            "mediaType": f"{MEDIA_TYPE}.manifest.v1+json",
            "digest": digest,
            "size": size,
            "annotations": {"org.opencontainers.image.ref.name": name},
        }
        for name, (digest, size) in images.items()
    ]
    _write(layout / "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    _write(layout / "index.json", json.dumps({"schemaVersion": 2, "manifests": manifests}).encode())


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest


def _store_blob(content: bytes, layout: Path) -> str:
    digest = hashlib.sha256(content).hexdigest()
    _write(_blob(layout, digest), content)
    return f"sha256:{digest}"


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)

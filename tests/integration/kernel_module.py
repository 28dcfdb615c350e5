"""A real kernel module, signing keys, and real images with modules in them, for tests."""

import datetime as dt
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

SOURCE = """
#include <linux/module.h>
static int __init hello_init(void) { pr_info("hello\\n"); return 0; }
static void __exit hello_exit(void) { }
module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("says hello");
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningPair:
    """A private key and its self-signed certificate."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate


def new_signing_pair(name: str) -> SigningPair:
    """A new pair whose certificate has this common name."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .serial_number(x509.random_serial_number())
        .public_key(key.public_key())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return SigningPair(key=key, certificate=certificate)


def _kernel_build() -> Path:
    """Where the headers of an installed kernel are; Debian's are installed if there are none."""
    found = sorted(Path("/lib/modules").glob("*/build"))
    if not found:
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "linux-headers-cloud-amd64"]
        environment = {"PATH": os.defpath, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(
            ["apt-get", "update", "-q"], check=True, capture_output=True, timeout=300, env=environment
        )
        subprocess.run(install, check=True, capture_output=True, timeout=600, env=environment)
        found = sorted(Path("/lib/modules").glob("*/build"))
    return found[-1]


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An unsigned kernel module, compiled against a real kernel's headers."""
    directory = tmp_path_factory.mktemp("module")
    (directory / "hello.c").write_text(SOURCE)
    (directory / "Kbuild").write_text("obj-m := hello.o\n")
    command = ["make", "-s", "-C", str(_kernel_build()), f"M={directory}", "modules"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return (directory / "hello.ko").read_bytes()


@pytest.fixture(scope="session")
def signer() -> SigningPair:
    """The pair that the fleet's kernels trust."""
    return new_signing_pair("fleet signing key")


@pytest.fixture(scope="session")
def stranger() -> SigningPair:
    """A pair that they do not trust."""
    return new_signing_pair("another key")


class Buildah:
    """Builds and reads images with buildah in a storage of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *arguments: str, timeout: float = 120) -> str:
        """What `buildah <arguments>` prints."""
        storage = ["--root", str(self.directory / "root"), "--runroot", str(self.directory / "run")]
        done = subprocess.run(
            ["buildah", *storage, "--storage-driver", "vfs", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def push(
        self, context: Path, containerfile: str, image: str, *, form: str = "oci", packing: str = "gzip"
    ) -> None:
        """Build an image, one layer for each instruction, and push it."""
        (context / "Containerfile").write_text(containerfile)
        self.run(
            "build", "--isolation", "chroot", "--layers", "--format", _FORMS[form], "-t", image, str(context)
        )
        options = ["--tls-verify=false", "--format", form, "--compression-format", packing]
        self.run("push", *options, image, f"docker://{image}")

    def copy_root(self, image: str, destination: Path) -> None:
        """Pull an image and copy its whole file system, as a container engine sees it, with owners and modes."""
        container = self.run("from", "--pull-always", "--tls-verify=false", f"docker://{image}")
        root = self.run("mount", container)
        subprocess.run(["cp", "-a", f"{root}/.", str(destination)], check=True, timeout=60)
        self.run("umount", container)
        self.run("rm", container)


_FORMS = {"oci": "oci", "v2s2": "docker"}


@pytest.fixture(scope="session")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Buildah:
    """buildah with an empty storage."""
    return Buildah(tmp_path_factory.mktemp("buildah"))

"""What modules are made of: a kernel module, a signing key, and the images that a user has in the registry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import secrets
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from demo.signing_key import SigningKey, new_signing_key
from shared.domain.image import ImageReference
from shared.registry.access import RegistryAccess
from shared.registry.client import RegistryClient
from shared.registry.content import digest_of
from shared.registry.manifest import OCI_MANIFEST
from shared.runtime.clock import now

PLAIN = RegistryAccess(insecure=True)
MODULE_PATH = "opt/hello.ko"
PADDING_BYTES = 400_000
"""What makes uploads long enough to be cut."""

SOURCE = """\
#ifdef MODULE
#include <linux/module.h>
static int __init chaos_init(void) { return 0; }
module_init(chaos_init);
MODULE_LICENSE("GPL");
#else
static const char license[] __attribute__((section(".modinfo"), used)) = "license=GPL";
int init_module(void) { return 0; }
#endif
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a run's modules are made of.

    Attributes:
        module: an unsigned kernel module.
        signing: the key that the fleet's kernels trust.
        canaries: texts that stand in Secrets, and must stand nowhere else.
    """

    module: bytes
    signing: SigningKey
    canaries: Mapping[str, str] = field(repr=False)


def make_material(directory: Path) -> Material:
    """Compile the module and make key and canaries."""
    return Material(
        module=_compile(directory / "module"),
        signing=new_signing_key("chaos signing key", now=now()),
        canaries={
            "build secret": f"canary-{secrets.token_hex(24)}",
            "registry password": f"canary-{secrets.token_hex(24)}",
        },
    )


def _compile(directory: Path) -> bytes:
    """A module for a kernel whose headers are installed; without any, an object file of the same form."""
    directory.mkdir(exist_ok=True)
    (directory / "hello.c").write_text(SOURCE)
    (directory / "Kbuild").write_text("obj-m := hello.o\n")
    headers = sorted(Path("/lib/modules").glob("*/build"))
    if headers:
        command = ["make", "-s", "-C", str(headers[-1]), f"M={directory}", "modules"]
    else:
        command = ["gcc", "-c", str(directory / "hello.c"), "-o", str(directory / "hello.ko")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return (directory / "hello.ko").read_bytes()


async def push_image(
    registry: RegistryClient, reference: str, *, files: Mapping[str, bytes], labels: Mapping[str, str]
) -> str:
    """Push an image of one layer, in which `files` lie under these paths. Returns its digest. Raises HubError."""
    image = ImageReference.parse(reference)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    layer = gzip.compress(plain.getvalue(), mtime=0)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": dict(labels)},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(plain.getvalue())]},
        }
    ).encode()
    kinds = {"config.v1+json": config, "layer.v1.tar+gzip": layer}
    parts = [
        {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": await registry.upload_blob(image, blob, access=PLAIN),
            "size": len(blob),
        }
        for kind, blob in kinds.items()
    ]
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": parts[0], "layers": parts[1:]}
    return await registry.put_manifest(image, json.dumps(manifest).encode(), OCI_MANIFEST, access=PLAIN)


def padding(name: str) -> bytes:
    """Bytes that no compression makes small; the same for the same name."""
    return hashlib.shake_256(name.encode()).digest(PADDING_BYTES)

"""What tests know of the kernel lab: its kernels, its registry, and what is in a built image."""

import asyncio
import gzip
import io
import json
import tarfile
import urllib.request
from dataclasses import dataclass

from demo import base_image, kernels
from demo.kernels import Kernel
from services.builder.buildah import BuildRequest, BuiltImage

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A registry that holds the base images, and the kernels that they can build for."""

    registry: str
    kernels: tuple[Kernel, ...]

    def kernel(self, flavour: str) -> Kernel:
        """The first kernel of a flavour; for `+` the one with a plus in its version."""
        chosen = [
            kernel
            for kernel in self.kernels
            if (("+" in kernel.version) if flavour == "+" else kernels.flavour_of(kernel.version) == flavour)
        ]
        return chosen[0]

    def module_request(self, kernel: Kernel, **changes: object) -> BuildRequest:
        """The build of the demo's module for one kernel."""
        arguments = {
            "REGISTRY": self.registry,
            "KERNEL_FULL_VERSION": kernel.version,
            "MODULE_VERSION": "4.2",
        }
        values = {
            "dockerfile": base_image.dockerfile(),
            "build_args": arguments,
            "destination": f"{self.registry}/kmm-hello:{kernel.version.replace('+', '_')}",
            **changes,
        }
        return BuildRequest(**values)

    async def fetch(self, path: str) -> bytes:
        """What the registry answers for a path below /v2/."""
        request = urllib.request.Request(f"http://{self.registry}/v2/{path}", headers={"Accept": MANIFEST})
        return await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=30).read())

    async def config(self, repository: str, image: BuiltImage) -> dict:
        """The image's configuration."""
        manifest = json.loads(await self.fetch(f"{repository}/manifests/{image.digest}"))
        return json.loads(await self.fetch(f"{repository}/blobs/{manifest['config']['digest']}"))

    async def files(self, repository: str, image: BuiltImage) -> dict[str, bytes]:
        """All regular files of the image, by path; later layers win."""
        manifest = json.loads(await self.fetch(f"{repository}/manifests/{image.digest}"))
        found = {}
        for layer in manifest["layers"]:
            blob = await self.fetch(f"{repository}/blobs/{layer['digest']}")
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob))) as archive:
                found |= {
                    member.name.removeprefix("./"): archive.extractfile(member).read()
                    for member in archive
                    if member.isfile()
                }
        return found

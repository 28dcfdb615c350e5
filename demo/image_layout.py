"""Images on disk, as an OCI image layout (image-spec, image-layout.md), and their way into a registry."""

import gzip
import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import zstandard

from shared.domain.image import ImageReference
from shared.registry.access import ANONYMOUS, RegistryAccess
from shared.registry.client import RegistryClient

MEDIA_TYPE = "application/vnd.oci.image"
MANIFEST_TYPE = f"{MEDIA_TYPE}.manifest.v1+json"
NAME_ANNOTATION = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A compressed layer among the blobs (image-spec, descriptor.md and config.md).

    Attributes:
        digest: of the compressed blob.
        diff_id: digest of the uncompressed tar archive.
        size: of the compressed blob, in bytes.
        compression: `gzip` or `zstd`.
    """

    digest: str
    diff_id: str
    size: int
    compression: str


class ImageLayout:
    """A directory of images. Every file in it is written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        """Use a directory, which is created if it is not there."""
        self.directory = directory
        self._blobs = directory / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)

    def recall(self, key: str) -> Layer | None:
        """Return the layer that was remembered under a key; None if there is none."""
        record = self.directory / f"layer-{key}.json"
        return Layer(**json.loads(record.read_text())) if record.exists() else None

    def remember(self, key: str, layer: Layer) -> None:
        """Let a key, such as a digest of what went into the layer, stand for a layer."""
        _write(self.directory / f"layer-{key}.json", json.dumps(asdict(layer)).encode())

    def store_stream(self, chunks: Iterable[bytes]) -> Layer:
        """Compress a tar stream of any length with Zstandard, on all processors."""
        plain, packed, size = hashlib.sha256(), hashlib.sha256(), 0
        compressor = zstandard.ZstdCompressor(level=3, threads=-1).compressobj()

        def blocks() -> Iterable[bytes]:
            for chunk in chunks:
                plain.update(chunk)
                yield compressor.compress(chunk)
            yield compressor.flush()

        with tempfile.NamedTemporaryFile(dir=self.directory, delete=False) as file:
            for block in blocks():
                packed.update(block)
                size += file.write(block)
        digest = f"sha256:{packed.hexdigest()}"
        Path(file.name).replace(self.blob(digest))
        return Layer(digest=digest, diff_id=f"sha256:{plain.hexdigest()}", size=size, compression="zstd")

    def store_archive(self, archive: bytes) -> Layer:
        """Compress a small tar archive with gzip, which every runtime reads."""
        blob = gzip.compress(archive, mtime=0)
        return Layer(digest=self._store(blob), diff_id=digest_of(archive), size=len(blob), compression="gzip")

    def write_images(self, images: Mapping[str, Sequence[Layer]]) -> None:
        """Make these the layout's images, by name, each of the given layers from the bottom up."""
        manifests = []
        for name, layers in images.items():
            manifest = self._manifest(layers)
            descriptor = {"mediaType": MANIFEST_TYPE, "digest": self._store(manifest), "size": len(manifest)}
            manifests.append({**descriptor, "annotations": {NAME_ANNOTATION: name}})
        index = {"schemaVersion": 2, "manifests": manifests}
        _write(self.directory / "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _write(self.directory / "index.json", json.dumps(index).encode())

    def manifest(self, name: str) -> bytes:
        """Return an image's manifest.

        Raises:
            KeyError: the layout has no image of this name.

        """
        index = json.loads((self.directory / "index.json").read_text())
        digests = {entry["annotations"][NAME_ANNOTATION]: entry["digest"] for entry in index["manifests"]}
        return self.blob(digests[name]).read_bytes()

    def blob(self, digest: str) -> Path:
        """Return where a blob is, or would be."""
        return self._blobs / digest.removeprefix("sha256:")

    async def push(
        self, name: str, target: ImageReference, client: RegistryClient, access: RegistryAccess = ANONYMOUS
    ) -> str:
        """Copy an image to a registry; blobs that it has are not sent. Returns the manifest's digest.

        Raises:
            KeyError: the layout has no image of this name.
            HubError: as `RegistryClient`.

        """
        manifest = self.manifest(name)
        content = json.loads(manifest)
        for descriptor in (content["config"], *content["layers"]):
            await client.upload_blob(target, self.blob(descriptor["digest"]), access=access)
        return await client.put_manifest(target, manifest, MANIFEST_TYPE, access=access)

    def _manifest(self, layers: Sequence[Layer]) -> bytes:
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created_by": "kmm-hub demo"} for _ in layers],  # buildah wants one for each layer
        }
        stored = json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": f"{MEDIA_TYPE}.config.v1+json",
                "digest": self._store(stored),
                "size": len(stored),
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
        return json.dumps(manifest).encode()

    def _store(self, content: bytes) -> str:
        digest = digest_of(content)
        _write(self.blob(digest), content)
        return digest


def digest_of(content: bytes) -> str:
    """Return the OCI digest of bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _write(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)

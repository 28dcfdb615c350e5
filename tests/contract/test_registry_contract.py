"""What builder and signer rely on in a registry holds for docker-registry and for the simulated one."""

import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from own_registry import OwnRegistry, run_registry

from shared.domain.image import ImageReference
from shared.registry.access import ANONYMOUS, Credentials, RegistryAccess
from shared.registry.client import RegistryClient, at_digest
from shared.registry.errors import (
    DigestMismatch,
    ImageMissing,
    ImageUnreadable,
    RegistryDenied,
    RegistryRejected,
    RegistryUnavailable,
)
from shared.registry.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor
from shared.registry.port import ImageRegistry
from simulation.line import Line, Weather
from simulation.registry import RegistryState, SimulatedRegistry

USER = Credentials(username="robot", password="correct horse")
ALLOWED = RegistryAccess(credentials=USER)
WRONG = RegistryAccess(credentials=Credentials(username="robot", password="battery staple"))
# bcrypt of the password above, as `htpasswd -B` writes it
HTPASSWD = "robot:$2b$04$Qiqo8jqvt/Oel/iae/5fKuGM8eT5xK/EksPA0I9uRuO6ge0Hk1Y8q\n"
NOTHING = Descriptor(media_type="", digest=f"sha256:{hashlib.sha256(b'nothing').hexdigest()}", size=7)


@dataclass
class Bench:
    """Registries and clients of them.

    Attributes:
        client: of `open` and `other`, which let everybody in.
        closed_client: of `closed`, which wants credentials.
        away_client: of `away`, where nobody listens.
        damage: changes a bit of a blob of `open` on disk.
        lose: deletes a blob of `open` from disk.
    """

    client: ImageRegistry
    closed_client: ImageRegistry
    away_client: ImageRegistry
    open: str
    other: str
    closed: str
    away: str
    damage: Callable[[str], None]
    lose: Callable[[str], None]

    def image(self, name: str) -> ImageReference:
        return ImageReference.parse(f"{self.open}/team/{name}")


@pytest.fixture(scope="session")
def real_registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OwnRegistry, ...]]:
    directory = tmp_path_factory.mktemp("registries")
    for name in ("open", "other", "closed"):
        (directory / name).mkdir()
    (directory / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    with (
        run_registry(directory / "open") as opened,
        run_registry(directory / "other") as other,
        run_registry(directory / "closed", auth=auth) as closed,
    ):
        yield opened, other, closed


def change_file(storage: Path, digest: str, content: bytes | None) -> None:
    hexadecimal = digest.removeprefix("sha256:")
    (path,) = storage.rglob(f"sha256/{hexadecimal[:2]}/{hexadecimal}/data")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def simulated_client(state: RegistryState) -> SimulatedRegistry:
    return SimulatedRegistry(state, Line("test", Weather(delay=0), random.Random(1)))


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.integration)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "simulated":
        state, closed_state, away = (RegistryState(chance=random.Random(1)) for _ in range(3))
        closed_state.required = USER
        away.is_down = True
        yield Bench(
            client=simulated_client(state),
            closed_client=simulated_client(closed_state),
            away_client=simulated_client(away),
            **{name: f"{name}.example:5000" for name in ("open", "other", "closed", "away")},
            damage=state.damage,
            lose=state.lose,
        )
        return
    opened, other, closed = request.getfixturevalue("real_registries")
    async with RegistryClient() as client:
        yield Bench(
            client=client,
            closed_client=client,
            away_client=client,
            open=opened.address,
            other=other.address,
            closed=closed.address,
            away="127.0.0.1:9",
            damage=lambda digest: change_file(opened.storage, digest, b"other"),
            lose=lambda digest: change_file(opened.storage, digest, None),
        )


async def push(
    client: ImageRegistry, image: ImageReference, layer: bytes, access: RegistryAccess = ANONYMOUS
) -> str:
    """Push an image of one layer; its digest."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "for": str(image)}).encode()
    parts = [
        {
            "mediaType": media_type,
            "digest": await client.upload_blob(image, content, access=access),
            "size": len(content),
        }
        for media_type, content in (
            ("application/vnd.oci.image.config.v1+json", config),
            ("application/vnd.oci.image.layer.v1.tar", layer),
        )
    ]
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": parts[0], "layers": parts[1:]}
    return await client.put_manifest(image, json.dumps(manifest).encode(), OCI_MANIFEST, access=access)


async def layer_of(client: ImageRegistry, image: ImageReference, access: RegistryAccess = ANONYMOUS) -> bytes:
    """The content of the image's only layer."""
    found = await client.image(image, access=access)
    return b"".join([chunk async for chunk in client.blob(image, found.layers[0], access=access)])


async def test_what_was_pushed_comes_back(bench: Bench) -> None:
    image = bench.image("pushed:1")
    digest = await push(bench.client, image, b"layer" * 300_000)
    assert await layer_of(bench.client, image) == b"layer" * 300_000
    head = await bench.client.head(image)
    by_digest = await bench.client.manifest(at_digest(image, digest))
    assert head == by_digest.descriptor
    assert head.digest == digest
    assert head.media_type == OCI_MANIFEST
    assert head.size == len(by_digest.content)
    found = await bench.client.image(image)
    assert json.loads(await bench.client.config(image, found.config))["for"] == str(image)


async def test_a_file_is_uploaded_and_blobs_belong_to_their_repository(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(bytes(range(256)) * 5000)
    image = bench.image("file")
    digest = await bench.client.upload_blob(image, path)
    assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert await bench.client.blob_exists(image, digest)
    assert not await bench.client.blob_exists(bench.image("stranger"), digest)
    assert await bench.client.upload_blob(image, path) == digest


async def test_what_is_not_there(bench: Bench) -> None:
    image = bench.image("nothing:1")
    assert await bench.client.head(image) is None
    assert await bench.client.head(at_digest(image, NOTHING.digest)) is None
    assert not await bench.client.blob_exists(image, NOTHING.digest)
    with pytest.raises(ImageMissing, match="team/nothing:1"):
        await bench.client.manifest(image)
    with pytest.raises(ImageMissing, match="team/nothing:1"):
        await bench.client.image(image)
    with pytest.raises(ImageMissing, match=NOTHING.digest):
        async for _ in bench.client.blob(image, NOTHING):
            pass
    with pytest.raises(ImageMissing):
        await bench.client.tag(image, NOTHING.digest)
    with pytest.raises(ImageMissing):
        await bench.client.copy_blob(NOTHING, source=image, target=bench.image("copy"))


async def test_a_tag_moves_and_what_it_left_stays(bench: Bench) -> None:
    image = bench.image("moving:1")
    first = await push(bench.client, image, b"one")
    second = await push(bench.client, image.with_tag("2"), b"two")
    assert first != second
    await bench.client.tag(image, second)
    assert (await bench.client.manifest(image)).descriptor.digest == second
    assert (await bench.client.manifest(at_digest(image, first))).descriptor.digest == first


async def test_a_manifest_without_a_tag_has_none(bench: Bench) -> None:
    digest = await push(bench.client, bench.image("bare"), b"bare")
    assert await bench.client.head(at_digest(bench.image("bare"), digest)) is not None
    assert await bench.client.head(bench.image("bare:latest")) is None
    await bench.client.tag(bench.image("bare"), digest)
    found = await bench.client.head(bench.image("bare:latest"))
    assert found is not None
    assert found.digest == digest


async def test_a_manifest_must_have_its_parts_and_its_digest(bench: Bench) -> None:
    image = bench.image("parts:1")
    digest = await push(bench.client, image, b"whole")
    content = (await bench.client.manifest(image)).content
    elsewhere = bench.image("without-parts:1")
    with pytest.raises(RegistryRejected):
        await bench.client.put_manifest(elsewhere, content, OCI_MANIFEST)
    assert await bench.client.head(elsewhere) is None
    with pytest.raises(RegistryRejected):
        await bench.client.put_manifest(image, b"no manifest", OCI_MANIFEST)
    with pytest.raises(DigestMismatch):
        await bench.client.put_manifest(at_digest(image, NOTHING.digest), content, OCI_MANIFEST)
    assert await bench.client.put_manifest(image, content, OCI_MANIFEST) == digest


async def test_an_index_leads_to_the_platform(bench: Bench) -> None:
    image = bench.image("index:1")
    entries = []
    for architecture in ("arm64", "amd64"):
        digest = await push(bench.client, image.with_tag(architecture), architecture.encode())
        size = (await bench.client.manifest(at_digest(image, digest))).descriptor.size
        platform = {"os": "linux", "architecture": architecture}
        entries.append({"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": platform})
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    await bench.client.put_manifest(image, json.dumps(index).encode(), OCI_INDEX)
    head = await bench.client.head(image)
    assert head is not None
    assert head.media_type == OCI_INDEX
    assert (await bench.client.image(image)).manifest.descriptor.digest == entries[1]["digest"]
    arm = await bench.client.image(image, architecture="arm64")
    assert arm.manifest.descriptor.digest == entries[0]["digest"]
    with pytest.raises(ImageUnreadable, match="linux/s390x"):
        await bench.client.image(image, architecture="s390x")


@pytest.mark.parametrize("is_far", [False, True])
async def test_a_blob_is_copied_within_and_between_registries(bench: Bench, is_far: bool) -> None:
    source = bench.image("source:1")
    await push(bench.client, source, b"to be copied" * 100_000)
    layer = (await bench.client.image(source)).layers[0]
    target = ImageReference.parse(f"{bench.other if is_far else bench.open}/team/target")
    for _ in range(2):
        await bench.client.copy_blob(layer, source=source, target=target)
        chunks = [chunk async for chunk in bench.client.blob(target, layer)]
        assert b"".join(chunks) == b"to be copied" * 100_000


async def test_docker_manifests_keep_their_kind(bench: Bench) -> None:
    image = bench.image("docker:1")
    await push(bench.client, image, b"docker")
    document = json.loads((await bench.client.manifest(image)).content)
    content = json.dumps({**document, "mediaType": DOCKER_MANIFEST}).encode()
    await bench.client.put_manifest(image, content, DOCKER_MANIFEST)
    head = await bench.client.head(image)
    assert head is not None
    assert head.media_type == DOCKER_MANIFEST


async def test_content_changed_on_disk_is_noticed(bench: Bench) -> None:
    image = bench.image("damaged:1")
    await push(bench.client, image, b"precious content")
    layer = (await bench.client.image(image)).layers[0]
    bench.damage(layer.digest)
    with pytest.raises(DigestMismatch, match=layer.digest):
        await layer_of(bench.client, image)


async def test_a_lost_blob_is_missing_until_it_is_uploaded_again(bench: Bench) -> None:
    image = bench.image("lost:1")
    await push(bench.client, image, b"lost and found")
    layer = (await bench.client.image(image)).layers[0]
    bench.lose(layer.digest)
    assert await bench.client.head(image) is not None
    assert not await bench.client.blob_exists(image, layer.digest)
    with pytest.raises(ImageMissing, match=layer.digest):
        await layer_of(bench.client, image)
    with pytest.raises(ImageMissing, match=layer.digest):
        await bench.client.copy_blob(layer, source=image, target=bench.image("copy-of-lost"))
    await bench.client.upload_blob(image, b"lost and found")
    assert await layer_of(bench.client, image) == b"lost and found"


async def test_the_right_credentials_read_and_write_and_others_are_denied(bench: Bench) -> None:
    image = ImageReference.parse(f"{bench.closed}/team/secret:1")
    await push(bench.closed_client, image, b"x" * 1000, ALLOWED)
    assert await layer_of(bench.closed_client, image, ALLOWED) == b"x" * 1000
    for access in (WRONG, ANONYMOUS):
        with pytest.raises(RegistryDenied, match="imageRepoSecret") as caught:
            await bench.closed_client.head(image, access=access)
        assert "battery" not in str(caught.value)
        with pytest.raises(RegistryDenied):
            await bench.closed_client.upload_blob(image, b"y", access=access)


async def test_a_registry_that_is_away_is_unavailable(bench: Bench) -> None:
    image = ImageReference.parse(f"{bench.away}/team/x:1")
    with pytest.raises(RegistryUnavailable):
        await bench.away_client.head(image)
    with pytest.raises(RegistryUnavailable):
        await bench.away_client.upload_blob(image, b"x")

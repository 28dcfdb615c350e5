"""Signing modules in real images: judged by openssl, modinfo, and a container engine's view of the result."""

import hashlib
import json
import lzma
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from kernel_module import Buildah, SigningPair, buildah, module, signer, stranger
from own_registry import OwnRegistry, run_registry

from services.signer.image import (
    FileToSignMissing,
    SignedFile,
    SignedImage,
    read_files,
    sign_image,
    verify_image,
)
from services.signer.layers import Limits
from services.signer.module_signature import MAGIC, ModuleMalformed, read_signature, sign_module
from shared.domain.image import ImageReference
from shared.registry.client import RegistryClient, at_digest
from shared.registry.errors import ImageMissing, ImageUnreadable
from shared.registry.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

__all__ = ["buildah", "module", "signer", "stranger"]  # fixtures

pytestmark = pytest.mark.integration

MODULES = "/opt/lib/modules/6.1.0"
CONTAINERFILE = """FROM scratch
COPY first/ /
COPY --chown=7:8 --chmod=0640 second/ /opt/lib/modules/6.1.0/
LABEL made.by=test
"""


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> OwnRegistry:
    with run_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    async with RegistryClient() as opened:
        yield opened


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory, module: bytes, stranger: SigningPair) -> Path:
    """Two layers: the second replaces `hello.ko`, so that only an overlay's view gives the right content."""
    directory = tmp_path_factory.mktemp("context")
    first, second = directory / "first" / MODULES[1:], directory / "second"
    first.mkdir(parents=True)
    second.mkdir()
    (first / "hello.ko").write_bytes(b"\x7fELF of the lower layer")
    (first / "foreign.ko").write_bytes(sign_module(module, stranger.key, stranger.certificate))
    (first / "packed.ko.xz").write_bytes(lzma.compress(module, check=lzma.CHECK_CRC32))
    (first / "modules.dep").write_text("hello.ko:\n")
    (directory / "first" / "lib").symlink_to("opt/lib")
    (second / "hello.ko").write_bytes(module)
    return directory


@pytest.fixture(scope="session")
def unsigned(registry: OwnRegistry, buildah: Buildah, context: Path) -> ImageReference:
    image = f"{registry.address}/team/hello-unsigned:1"
    buildah.push(context, CONTAINERFILE, image)
    return ImageReference.parse(image)


def _target(registry: OwnRegistry) -> ImageReference:
    return ImageReference.parse(f"{registry.address}/team/hello:1")


async def _sign(
    client: RegistryClient,
    source: ImageReference,
    target: ImageReference,
    pair: SigningPair,
    *patterns: str,
    **more,
) -> SignedImage:
    return await sign_image(
        client,
        source=source,
        target=target,
        patterns=patterns or (f"{MODULES}/*.ko", f"{MODULES}/packed.ko.xz"),
        key=pair.key,
        certificate=pair.certificate,
        labels={"signed.by": "test"},
        **more,
    )


def _assert_openssl_accepts(signed: bytes, pair: SigningPair, bare: bytes, directory: Path) -> None:
    found = read_signature(signed)
    assert found is not None
    assert signed[: found.start] == bare
    for name, content in {
        "cms": signed[found.start : -len(MAGIC) - 12],
        "bare": bare,
        "pem": pair.certificate.public_bytes(Encoding.PEM),
    }.items():
        (directory / name).write_bytes(content)
    command = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", "cms", "-content", "bare"]
    command += ["-certfile", "pem", "-nointern", "-noverify", "-out", "verified"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert (directory / "verified").read_bytes() == bare


def _modinfo(path: Path, field: str) -> str:
    return subprocess.run(
        ["modinfo", "-F", field, str(path)], capture_output=True, text=True, timeout=20, check=True
    ).stdout.strip()


async def test_an_engine_sees_modules_that_openssl_and_modinfo_accept(
    client, registry, unsigned, signer, module, buildah, tmp_path
):
    target = _target(registry)
    result = await _sign(client, unsigned, target, signer)
    assert result.files == (
        SignedFile(path=f"{MODULES}/foreign.ko", already_signed=False),
        SignedFile(path=f"{MODULES}/hello.ko", already_signed=False),
        SignedFile(path=f"{MODULES}/packed.ko.xz", already_signed=False),
    )
    root = tmp_path / "root"
    root.mkdir()
    buildah.copy_root(str(at_digest(target, result.digest)), root)
    modules = root / MODULES[1:]
    for name in ("hello.ko", "foreign.ko"):
        _assert_openssl_accepts((modules / name).read_bytes(), signer, module, tmp_path)
        assert _modinfo(modules / name, "signer") == "fleet signing key"
        assert _modinfo(modules / name, "sig_hashalgo") == "sha256"
    packed = (modules / "packed.ko.xz").read_bytes()
    _assert_openssl_accepts(lzma.decompress(packed), signer, module, tmp_path)
    assert packed[6:8] == b"\x00\x01", "the kernel takes CRC32 alone"
    stat = (modules / "hello.ko").stat()
    assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (7, 8, 0o640)
    assert (modules / "modules.dep").read_text() == "hello.ko:\n"
    assert (root / "lib").is_symlink()


async def test_the_result_keeps_layers_and_adds_one_with_labels(client, registry, unsigned, signer):
    target = _target(registry)
    result = await _sign(client, unsigned, target, signer)
    before = await client.image(unsigned)
    after = await client.image(at_digest(target, result.digest))
    assert after.layers[:-1] == before.layers
    assert after.manifest.descriptor.media_type == OCI_MANIFEST
    config = json.loads(await client.config(target, after.config))
    assert config["config"]["Labels"].items() >= {"made.by": "test", "signed.by": "test"}.items()
    assert len(config["rootfs"]["diff_ids"]) == len(after.layers)
    assert "signed" in config["history"][-1]["created_by"]


async def test_signing_touches_no_tag_until_it_is_moved(client, registry, unsigned, signer):
    target = ImageReference.parse(f"{registry.address}/team/tagged:final")
    result = await _sign(client, unsigned, target, signer)
    assert await client.head(target) is None
    await client.tag(target, result.digest)
    head = await client.head(target)
    assert head is not None
    assert head.digest == result.digest


async def test_a_tag_cannot_be_moved_to_what_is_not_there(client, registry):
    with pytest.raises(ImageMissing):
        await client.tag(_target(registry), f"sha256:{hashlib.sha256(b'nothing').hexdigest()}")


async def test_the_same_input_gives_the_same_digest(client, registry, unsigned, signer):
    first = await _sign(client, unsigned, _target(registry), signer)
    assert await _sign(client, unsigned, _target(registry), signer) == first


async def test_a_signed_image_stays_as_it_is(client, registry, unsigned, signer):
    target = _target(registry)
    once = await _sign(client, unsigned, target, signer)
    again = await _sign(client, at_digest(target, once.digest), target, signer)
    assert again.digest == once.digest
    assert all(file.already_signed for file in again.files)
    elsewhere = ImageReference.parse(f"{registry.address}/other/place")
    moved = await _sign(client, at_digest(target, once.digest), elsewhere, signer)
    assert moved.digest == once.digest
    assert await client.head(at_digest(elsewhere, once.digest)) is not None


async def test_other_labels_alone_add_no_layer(client, registry, unsigned, signer):
    target = _target(registry)
    once = await _sign(client, unsigned, target, signer)
    again = await sign_image(
        client,
        source=at_digest(target, once.digest),
        target=target,
        patterns=[f"{MODULES}/hello.ko"],
        key=signer.key,
        certificate=signer.certificate,
        labels={"recipe": "2"},
    )
    before, after = [await client.image(at_digest(target, made.digest)) for made in (once, again)]
    assert after.layers == before.layers
    config = json.loads(await client.config(target, after.config))
    assert config["config"]["Labels"].items() >= {"signed.by": "test", "recipe": "2"}.items()


async def test_layers_that_the_configuration_does_not_name_are_refused(client, registry, unsigned, signer):
    image = await client.image(unsigned)
    config = json.loads(await client.config(unsigned, image.config))
    config["rootfs"]["diff_ids"].reverse()
    data = json.dumps(config).encode()
    document = json.loads(image.manifest.content)
    document["config"] |= {"digest": await client.upload_blob(unsigned, data), "size": len(data)}
    source = unsigned.with_tag("swapped")
    await client.put_manifest(source, json.dumps(document).encode(), OCI_MANIFEST)
    with pytest.raises(ImageUnreadable, match="diff_ids"):
        await _sign(client, source, _target(registry), signer)


async def test_another_keys_signature_is_replaced(
    client, registry, unsigned, signer, stranger, module, tmp_path
):
    target = _target(registry)
    foreign = await _sign(client, unsigned, target, stranger)
    ours = await _sign(client, at_digest(target, foreign.digest), target, signer)
    (file,) = await read_files(client, at_digest(target, ours.digest), [f"{MODULES}/hello.ko"], tmp_path)
    _assert_openssl_accepts(file.copy.read_bytes(), signer, module, tmp_path)


async def test_verification_names_what_is_unsigned(client, registry, unsigned, signer, stranger):
    target, patterns = _target(registry), [f"{MODULES}/*"]
    assert await verify_image(client, unsigned, patterns, stranger.certificate) == (
        f"{MODULES}/hello.ko",
        f"{MODULES}/packed.ko.xz",
    )
    result = await _sign(client, unsigned, target, signer)
    signed = at_digest(target, result.digest)
    assert await verify_image(client, signed, patterns, signer.certificate) == ()
    assert len(await verify_image(client, signed, patterns, stranger.certificate)) == 3


async def test_a_path_through_a_symbolic_link_signs_the_real_file(client, registry, unsigned, signer):
    result = await _sign(client, unsigned, _target(registry), signer, "/lib/modules/*/hello.ko")
    assert [file.path for file in result.files] == [f"{MODULES}/hello.ko"]


async def test_a_pattern_without_a_file_is_named_with_the_modules_there_are(
    client, registry, unsigned, signer
):
    with pytest.raises(
        FileToSignMissing, match=r"/opt/lib/modules/6\.6/\*\.ko.*foreign\.ko.*hello\.ko.*packed"
    ):
        await _sign(client, unsigned, _target(registry), signer, "/opt/lib/modules/6.6/*.ko")


async def test_a_listed_file_that_is_no_module_is_refused(client, registry, unsigned, signer):
    with pytest.raises(ModuleMalformed, match=r"modules\.dep"):
        await _sign(client, unsigned, _target(registry), signer, f"{MODULES}/modules.dep")


async def test_an_image_above_the_limits_is_refused(client, registry, unsigned, signer):
    for limits in (
        Limits(packed_bytes=100),
        Limits(unpacked_bytes=1000),
        Limits(entries=2),
        Limits(file_bytes=100),
    ):
        with pytest.raises(ImageUnreadable):
            await _sign(client, unsigned, _target(registry), signer, limits=limits)


@pytest.mark.parametrize(("form", "packing"), [("v2s2", "gzip"), ("oci", "zstd"), ("oci", "zstd:chunked")])
async def test_other_formats_and_packings_are_kept(
    client, registry, buildah, context, signer, module, tmp_path, form, packing
):
    name = f"{registry.address}/team/{form}-{packing.replace(':', '-')}"
    context = Path(shutil.copytree(context, tmp_path / "context", symlinks=True))
    for part in ("first", "second"):  # a layer that was pushed before would be taken as it was packed then
        (context / part / "packing").write_text(name)
    buildah.push(context, CONTAINERFILE, f"{name}:unsigned", form=form, packing=packing)
    source = ImageReference.parse(f"{name}:unsigned")
    before = await client.image(source)
    assert ("zstd" in packing) == any("zstd" in layer.media_type for layer in before.layers)
    result = await _sign(client, source, ImageReference.parse(name), signer)
    signed = at_digest(source, result.digest)
    after = await client.image(signed)
    assert after.manifest.descriptor.media_type == (DOCKER_MANIFEST if form == "v2s2" else OCI_MANIFEST)
    assert after.layers[:-1] == before.layers
    root = tmp_path / "root"
    root.mkdir()
    buildah.copy_root(str(signed), root)
    _assert_openssl_accepts((root / MODULES[1:] / "hello.ko").read_bytes(), signer, module, tmp_path)


async def test_one_platform_of_an_index_is_signed(client, registry, unsigned, signer):
    image = await client.image(unsigned)
    entry = {
        "mediaType": OCI_MANIFEST,
        "digest": image.manifest.descriptor.digest,
        "size": image.manifest.descriptor.size,
    }
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [entry | {"platform": {"os": "linux", "architecture": "arm64"}}],
    }
    source = unsigned.with_tag("index")
    await client.put_manifest(source, json.dumps(index).encode(), OCI_INDEX)
    result = await _sign(client, source, _target(registry), signer, architecture="arm64")
    assert result == await _sign(client, unsigned, _target(registry), signer)
    with pytest.raises(ImageUnreadable, match="linux/arm64"):
        await _sign(client, source, _target(registry), signer)


async def test_a_whiteout_hides_a_module(client, registry, buildah, context, signer):
    image = f"{registry.address}/team/whiteout:1"
    (context / "empty").mkdir(exist_ok=True)
    buildah.push(context, CONTAINERFILE, f"{registry.address}/team/whiteout:0")
    container = buildah.run("from", "--pull-never", f"{registry.address}/team/whiteout:0")
    mounted = Path(buildah.run("mount", container))
    (mounted / MODULES[1:] / "hello.ko").unlink()
    buildah.run("umount", container)
    buildah.run("commit", "--rm", container, image)
    buildah.run("push", "--tls-verify=false", image, f"docker://{image}")
    source = ImageReference.parse(image)
    with pytest.raises(FileToSignMissing, match=r"foreign\.ko"):
        await _sign(client, source, _target(registry), signer, f"{MODULES}/hello.ko")

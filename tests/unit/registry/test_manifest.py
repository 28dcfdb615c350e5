"""Manifests as registries may send them."""

import json

import pytest

from shared.domain.image import ImageReference
from shared.registry.content import digest_of
from shared.registry.errors import ImageUnreadable
from shared.registry.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    choose_platform,
    is_index,
    media_type_of,
    read_image,
)

IMAGE = ImageReference.parse("r.example/team/x:1")
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"config"), "size": 6}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest_of(b"layer"), "size": 5}


def _manifest(document: object, media_type: str = OCI_MANIFEST) -> Manifest:
    content = json.dumps(document).encode()
    descriptor = Descriptor(media_type=media_type, digest=digest_of(content), size=len(content))
    return Manifest(descriptor=descriptor, content=content)


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_an_image_names_its_configuration_and_layers(media_type):
    image = read_image(
        _manifest({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER, LAYER]}, media_type), IMAGE
    )
    assert image.config.digest == digest_of(b"config")
    assert [layer.size for layer in image.layers] == [5, 5]


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        ([], OCI_MANIFEST),
        ({}, OCI_MANIFEST),
        ({"schemaVersion": 1, "fsLayers": []}, "application/vnd.docker.distribution.manifest.v1+json"),
        ({"schemaVersion": 2, "layers": []}, OCI_MANIFEST),
        ({"schemaVersion": 2, "manifests": []}, OCI_INDEX),
        ({"schemaVersion": 2, "config": CONFIG | {"digest": "sha256:../../x"}, "layers": []}, OCI_MANIFEST),
        ({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER | {"size": -1}]}, OCI_MANIFEST),
        ({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER | {"digest": "md5:00"}]}, OCI_MANIFEST),
        ({"schemaVersion": 2, "config": CONFIG, "layers": {}}, OCI_MANIFEST),
    ],
)
def test_what_is_no_image_is_refused(document, media_type):
    with pytest.raises(ImageUnreadable):
        read_image(_manifest(document, media_type), IMAGE)


def test_the_platform_is_linux_on_the_architecture_and_never_an_attestation():
    def entry(name: str, system: str, architecture: str) -> dict[str, object]:
        platform = {"os": system, "architecture": architecture}
        return LAYER | {"mediaType": OCI_MANIFEST, "digest": digest_of(name.encode()), "platform": platform}

    index = _manifest(
        {
            "schemaVersion": 2,
            "manifests": [
                entry("windows", "windows", "amd64"),
                entry("attestation", "unknown", "unknown"),
                entry("arm", "linux", "arm64"),
                entry("wanted", "linux", "amd64"),
            ],
        },
        DOCKER_INDEX,
    )
    assert is_index(index)
    assert choose_platform(index, "amd64", IMAGE) == digest_of(b"wanted")
    with pytest.raises(ImageUnreadable, match=r"team/x:1 has no image for linux/ppc64le.*linux/arm64"):
        choose_platform(index, "ppc64le", IMAGE)


def test_the_media_type_comes_from_the_header_or_the_document():
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST}).encode()
    assert media_type_of(content, f"{DOCKER_MANIFEST}; charset=utf-8") == DOCKER_MANIFEST
    assert media_type_of(content, "text/plain") == OCI_MANIFEST
    with pytest.raises(ImageUnreadable):
        media_type_of(b"<html>", "text/html")

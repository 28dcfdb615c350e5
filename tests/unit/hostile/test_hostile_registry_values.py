"""Manifests, challenges, addresses and credentials of any form: read, or refused with a reason."""

import base64
import json
from typing import Any

import pytest
from hostile_budget import budget
from hostile_values import JSON, TEXTS, assert_reason, encoded, mutated, nested
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from shared.domain.errors import HubError, PermanentError
from shared.domain.image import ImageReference, InvalidImageReference
from shared.registry.access import ANONYMOUS, check_address, read_url, registry_url
from shared.registry.auth import _read_token, parse_challenge
from shared.registry.docker_config import DockerConfigInvalid, read_docker_config
from shared.registry.errors import ImageUnreadable, UnsafeAddress
from shared.registry.manifest import (
    MANIFEST_TYPES,
    Descriptor,
    Manifest,
    choose_platform,
    media_type_of,
    read_image,
)

IMAGE = ImageReference.parse("r.example/team/kmod:1")
DIGEST = "sha256:" + "a" * 64
PART = {"mediaType": "x", "digest": DIGEST, "size": 5, "platform": {"os": "linux", "architecture": "amd64"}}
MANIFEST = {"schemaVersion": 2, "mediaType": MANIFEST_TYPES[0], "config": PART, "layers": [PART]}
INDEX = {"schemaVersion": 2, "mediaType": MANIFEST_TYPES[2], "manifests": [PART]}


@budget(300)
@given(
    content=st.one_of(
        mutated(MANIFEST).map(encoded), mutated(INDEX).map(encoded), JSON.map(encoded), st.binary(max_size=60)
    ),
    header=st.sampled_from(["", "text/html", *MANIFEST_TYPES]) | st.text(max_size=30),
)
@example(content=json.dumps({"layers": nested(900)}).encode(), header="")
@example(content=b'{"layers":' + b"[" * 100_000, header=MANIFEST_TYPES[0])
@example(content=b'{"schemaVersion":2,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", header="")
def test_any_manifest_is_read_or_refused(content: bytes, header: str) -> None:
    try:
        media_type = media_type_of(content, header)
    except ImageUnreadable:
        return
    manifest = Manifest(
        descriptor=Descriptor(media_type=media_type, digest=DIGEST, size=len(content)), content=content
    )
    try:
        image = read_image(manifest, IMAGE)
        assert all(
            part.size >= 0 and part.digest.startswith("sha256:") for part in (image.config, *image.layers)
        )
    except ImageUnreadable as error:
        assert_reason(error)
    try:
        assert choose_platform(manifest, "amd64", IMAGE).startswith("sha256:")
    except ImageUnreadable as error:
        assert_reason(error)


def test_an_index_of_many_platforms_is_told_in_short() -> None:
    parts = [PART | {"platform": {"os": f"os{number}" * 50, "architecture": "x"}} for number in range(5000)]
    content = json.dumps(INDEX | {"manifests": parts}).encode()
    manifest = Manifest(
        descriptor=Descriptor(media_type=MANIFEST_TYPES[2], digest=DIGEST, size=1), content=content
    )
    with pytest.raises(ImageUnreadable, match=r"and 49.. more") as caught:
        choose_platform(manifest, "amd64", IMAGE)
    assert len(str(caught.value)) < 1500


QUOTES = st.text(alphabet="Bearerasic realm=\"=,\\' \t", max_size=40)


@budget(300)
@given(st.lists(st.text(max_size=60) | QUOTES | QUOTES.map("Bearer ".__add__), max_size=4))
@example(["Bearer realm="])
@example(['Bearer realm="'])
@example(["Bearer a=b,c="])
def test_any_challenge_is_read(headers: list[str]) -> None:
    challenge = parse_challenge(headers)
    assert challenge is None or challenge.scheme in {"bearer", "basic"}


def test_what_a_challenge_says_is_understood() -> None:
    challenge = parse_challenge(['Bearer realm="https://a.example/t,x",service="s p" , scope=  "a:b:c"'])
    assert challenge is not None
    assert challenge.parameters == {"realm": "https://a.example/t,x", "service": "s p", "scope": "a:b:c"}


ADDRESSES = st.one_of(
    st.text(max_size=40),
    st.tuples(
        st.sampled_from(["http://", "https://", "//", "", "file://", "https:"]),
        st.text(alphabet="a.:@[]%0-9/\\é\0", max_size=20),
    ).map("".join),
)


@budget(400)
@given(text=ADDRESSES, is_encoded=st.booleans())
@example(text="http://[::1", is_encoded=True)
@example(text="http://a:99999/", is_encoded=False)
@example(text="http://xn--/", is_encoded=True)
@example(text="http://169.254.169.254/latest", is_encoded=True)
def test_any_address_of_a_registry_is_checked_or_refused(text: str, is_encoded: bool) -> None:
    registry = URL("https://r.example/v2/")
    try:
        joined = registry.join(read_url(text, registry, encoded=is_encoded))
        check_address(joined, registry)
    except UnsafeAddress as error:
        assert_reason(error)
    else:
        assert joined.scheme == "https"
        assert "169.254." not in (joined.host or "")


@budget(200)
@given(status=st.integers(100, 599), body=st.binary(max_size=40) | JSON.map(encoded))
@example(status=200, body=b'{"token":"' + b"a" * 1000 + b'\\r\\nX: y"}')
@example(status=200, body=b'{"x":' * 20_000)
@example(status=200, body=b'{"token":"a","expires_in":-1e300}')
def test_any_answer_of_a_token_server_is_a_token_or_a_reason(status: int, body: bytes) -> None:
    try:
        header, seconds = _read_token(status, body, URL("https://a.example/t"))
    except HubError as error:
        assert_reason(error)
    else:
        assert header.startswith("Bearer ")
        assert header.isprintable()
        assert seconds == seconds


@budget(400)
@given(TEXTS | st.text(alphabet="a.:/@-_A0[]", max_size=30))
@example("a" * 100_000)
@example("a-" * 50_000 + "/")
@example("a." * 50_000 + ":/")
@example("-" * 100_000)
@example("r.example/" + "a__" * 30_000 + "!")
def test_any_image_reference_is_parsed_or_refused(text: str) -> None:
    try:
        image = ImageReference.parse(text)
    except InvalidImageReference as error:
        assert_reason(error)
    else:
        assert str(image) == text
        assert ImageReference.parse(image.lookup).manifest == image.manifest
        try:
            assert registry_url(image, ANONYMOUS).path == "/v2/"
        except PermanentError as error:
            assert_reason(error)


CONFIG = {
    "auths": {
        "r.example": {"auth": base64.b64encode(b"u:p").decode()},
        "*.b": {"username": "u", "password": "p"},
    }
}


@budget(300)
@given(mutated(CONFIG).map(encoded) | JSON.map(encoded) | st.binary(max_size=60))
@example(json.dumps({"auths": {"a": {"auth": "é"}}}).encode())
@example(json.dumps({"auths": {"a": {"auth": "=" * 7}}}).encode())
@example(
    json.dumps(
        {"auths": {"": {"auth": "dTpw"}, "/": {"auth": "dTpw"}, "https://": {"auth": "dTpw"}}}
    ).encode()
)
@example(b'{"x":' * 20_000)
@example(b'{"auths":{"a":{"auth":"\xff"}}}')
def test_any_docker_config_is_read_or_refused_and_never_quoted(data: bytes) -> None:
    try:
        config = read_docker_config(data)
    except DockerConfigInvalid as error:
        assert_reason(error)
    else:
        found = config.credentials_for(IMAGE)
        assert found is None or (found.username and found.password)


def test_a_docker_config_that_is_wrong_is_not_quoted() -> None:
    secret = "hunter2hunter2"
    for auth in (secret, base64.b64encode(secret.encode()).decode(), f"é{secret}"):
        data: dict[str, Any] = {"auths": {"r.example": {"auth": auth, "password": secret}}}
        with pytest.raises(DockerConfigInvalid) as caught:
            read_docker_config(json.dumps(data).encode())
        assert secret not in str(caught.value)
        assert auth not in str(caught.value)

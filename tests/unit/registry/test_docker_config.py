"""Credentials in `.dockerconfigjson`."""

import base64
import json

import pytest

from shared.domain.image import ImageReference
from shared.registry.access import Credentials
from shared.registry.docker_config import DockerConfigInvalid, read_docker_config


def _auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def _user_for(auths: dict[str, dict[str, str]], image: str) -> str | None:
    config = read_docker_config(json.dumps({"auths": auths}).encode())
    credentials = config.credentials_for(ImageReference.parse(image))
    return credentials.username if credentials else None


@pytest.mark.parametrize(
    ("key", "image", "matches"),
    [
        ("quay.example", "quay.example/a/b:1", True),
        ("https://quay.example", "quay.example/a/b", True),
        ("https://quay.example/v2/", "quay.example/a/b", True),
        ("quay.example:8443", "quay.example:8443/a/b", True),
        ("quay.example", "quay.example:8443/a/b", False),
        ("quay.example:8443", "quay.example/a/b", False),
        ("quay.example/a", "quay.example/a/b", True),
        ("quay.example/a/b", "quay.example/a/b", True),
        ("quay.example/a", "quay.example/ab/c", False),
        ("quay.example/a/b", "quay.example/a", False),
        ("*.example", "quay.example/a", True),
        ("*.example", "a.quay.example/a", False),
        ("quay.example", "other.example/a", False),
        ("https://index.docker.io/v1/", "busybox", True),
        ("docker.io", "docker.io/team/x", True),
        ("registry-1.docker.io", "index.docker.io/team/x", True),
        ("index.docker.io/v1/", "quay.example/a", False),
    ],
)
def test_which_key_is_for_which_image(key, image, matches):
    assert _user_for({key: _auth("robot:secret")}, image) == ("robot" if matches else None)


def test_the_longest_path_wins():
    auths = {"r.example": _auth("all:x"), "r.example/a/b": _auth("ab:x"), "r.example/a": _auth("a:x")}
    assert _user_for(auths, "r.example/a/b/c") == "ab"
    assert _user_for(auths, "r.example/a/c") == "a"
    assert _user_for(auths, "r.example/c") == "all"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (_auth("robot:with:colons"), ("robot", "with:colons")),
        (_auth("robot:line\n"), ("robot", "line")),
        ({"username": "u", "password": "p", "email": "x"}, ("u", "p")),
        ({"username": "u", "password": "p"} | _auth("robot:wins"), ("robot", "wins")),
    ],
)
def test_forms_of_an_entry(entry, expected):
    config = read_docker_config(json.dumps({"auths": {"r.example": entry}, "credsStore": "x"}).encode())
    credentials = config.credentials_for(ImageReference.parse("r.example/a"))
    assert credentials == Credentials(username=expected[0], password=expected[1])


def test_an_empty_entry_is_none():
    assert _user_for({"r.example": {}}, "r.example/a") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hunter2",
        b'"hunter2"',
        b'{"auths": "hunter2"}',
        b'{"auths": {"r.example": {"auth": ["hunter2"]}}}',
        json.dumps({"auths": {"r.example": {"auth": "hunter2!"}}}).encode(),
        json.dumps({"auths": {"r.example": _auth("hunter2")}}).encode(),
        json.dumps({"auths": {"r.example": {"username": "u"}}}).encode(),
        json.dumps({"auths": {"r.example": {"username": "u:v", "password": "hunter2"}}}).encode(),
    ],
)
def test_documents_that_are_refused_without_quoting_them(data):
    with pytest.raises(DockerConfigInvalid, match="dockerconfigjson") as caught:
        read_docker_config(data)
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"

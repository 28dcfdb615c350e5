"""Image references: parts, round trip, pinning, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.image import ImageReference, InvalidImageReference, parse_digest

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "name", "registry", "repository", "tag", "digest"),
    [
        ("alpine", "alpine", "docker.io", "library/alpine", None, None),
        ("alpine:3", "alpine", "docker.io", "library/alpine", "3", None),
        ("team/kmod:1", "team/kmod", "docker.io", "team/kmod", "1", None),
        ("docker.io/alpine", "docker.io/alpine", "docker.io", "library/alpine", None, None),
        ("localhost/a:1", "localhost/a", "localhost", "a", "1", None),
        ("r.example:5000/a/b:1.2-x", "r.example:5000/a/b", "r.example:5000", "a/b", "1.2-x", None),
        ("registry:5000/image", "registry:5000/image", "registry:5000", "image", None, None),
        ("[::1]:5000/a:1", "[::1]:5000/a", "[::1]:5000", "a", "1", None),
        ("r.example/a__b/c--d@" + DIGEST, "r.example/a__b/c--d", "r.example", "a__b/c--d", None, DIGEST),
        ("r.example/a:t@sha256:eeee", "r.example/a", "r.example", "a", "t", "sha256:eeee"),
    ],
)
def test_parse(
    text: str, name: str, registry: str, repository: str, tag: str | None, digest: str | None
) -> None:
    image = ImageReference.parse(text)
    assert (image.name, image.registry, image.repository) == (name, registry, repository)
    assert (image.tag, image.digest) == (tag, digest)
    assert str(image) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a:",
        "a@",
        "a@sha256:",
        "a@sha256:xyz",
        "a:-1",
        "a:" + "t" * 129,
        "A/b:1",
        "a b:1",
        "a/b:1\n",
        "r.example/:u",
        "r.example//a",
        "/a",
        "a/",
        "https://r.example/a:1",
        "user:pass@r.example/a:1",
        "r_x.example/a",
        "a___b",
        "a" * 256,
        "r.example/${X}:1",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(InvalidImageReference) as error:
        ImageReference.parse(text)
    assert "image " in str(error.value)


@pytest.mark.parametrize(
    ("text", "pinned", "lookup", "manifest"),
    [
        ("image-name", "image-name@" + DIGEST, "image-name:latest", "latest"),
        ("image-name:tag", "image-name@" + DIGEST, "image-name:tag", "tag"),
        ("r.example:5000/a/b:1", "r.example:5000/a/b@" + DIGEST, "r.example:5000/a/b:1", "1"),
        ("a@sha256:bbbb", "a@sha256:bbbb", "a@sha256:bbbb", "sha256:bbbb"),
        (
            "r.example/a:t@sha256:eeee",
            "r.example/a:t@sha256:eeee",
            "r.example/a:t@sha256:eeee",
            "sha256:eeee",
        ),
    ],
)
def test_pinning_and_lookup(text: str, pinned: str, lookup: str, manifest: str) -> None:
    image = ImageReference.parse(text)
    assert image.pinned(DIGEST) == pinned
    assert image.lookup == lookup
    assert image.manifest == manifest


def test_with_tag_replaces_tag_and_digest() -> None:
    image = ImageReference.parse("r.example/a:t@sha256:eeee")
    assert str(image.with_tag("new")) == "r.example/a:new"
    with pytest.raises(InvalidImageReference, match="1 to 128"):
        image.with_tag("a/b")


def test_parse_digest_wants_a_whole_sha256() -> None:
    assert parse_digest(DIGEST) == DIGEST
    for bad in ("", "sha256:aaaa", DIGEST.upper(), DIGEST + "0", DIGEST + "\n", "sha512:" + "a" * 128):
        with pytest.raises(InvalidImageReference, match="64"):
            parse_digest(bad)


WORD = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)
COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
HOST = st.from_regex(r"([a-z0-9]{1,8}\.[a-z]{2,5}|localhost)(:[0-9]{2,4}|:[1-5][0-9]{4})?", fullmatch=True)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,40}", fullmatch=True)


@given(
    st.one_of(st.none(), HOST),
    WORD.filter(lambda word: word != "localhost"),
    st.lists(COMPONENT, max_size=3),
    st.one_of(st.none(), TAG),
    st.one_of(st.none(), st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)),
)
def test_round_trip(
    host: str | None, first: str, path: list[str], tag: str | None, digest: str | None
) -> None:
    name = "/".join([*([host] if host else []), first, *path])
    text = name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    image = ImageReference.parse(text)
    assert str(image) == text
    assert (image.name, image.tag, image.digest) == (name, tag, digest)
    pinned = ImageReference.parse(image.pinned(DIGEST))
    assert (pinned.name, pinned.digest) == (name, digest or DIGEST)
    assert ImageReference.parse(image.lookup).manifest == image.manifest


@given(st.text(max_size=100))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        image = ImageReference.parse(text)
    except InvalidImageReference:
        return
    assert str(image) == text

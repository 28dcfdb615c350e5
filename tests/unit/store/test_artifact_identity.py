"""An artifact's identity: its key changes if and only if something of what was asked for changes."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.artifact import (
    Access,
    ArtifactRequest,
    ArtifactState,
    BuildRecipe,
    SignRecipe,
    Stage,
    request_from_json,
    request_to_json,
)
from shared.domain.canonical import canonical_json, content_hash, storable
from shared.domain.kernel import KernelVersion

texts = st.text(st.characters(codec="utf-8"), max_size=6)
pairs = st.lists(st.tuples(texts, texts), max_size=3).map(tuple)
accesses = st.builds(Access, insecure=st.booleans(), skip_tls_verify=st.booleans())
builds = st.builds(BuildRecipe, dockerfile=texts, args=pairs, secrets=pairs, base_access=accesses)
signs = st.builds(
    SignRecipe,
    files=st.lists(texts, max_size=3).map(tuple),
    key_secret=texts,
    key_version=texts,
    cert_secret=texts,
    cert_version=texts,
    source=st.none() | texts,
    source_access=accesses,
)
requests = st.builds(
    ArtifactRequest,
    target=texts,
    kernel=texts.map(KernelVersion),
    architecture=texts,
    build=st.none() | builds,
    sign=st.none() | signs,
    access=accesses,
    repo_secret=st.none() | texts,
    repo_secret_version=st.none() | texts,
    rebuild_trigger=st.none() | st.integers(0, 3),
)

FULL = ArtifactRequest(
    target="r.example/k:1",
    kernel=KernelVersion("5.1.1"),
    architecture="amd64",
    build=BuildRecipe(dockerfile="FROM a", args=(("A", "1"), ("B", "2")), secrets=(("s", "1"), ("t", "1"))),
    sign=SignRecipe(
        files=("/opt/a.ko", "/opt/b.ko"),
        key_secret="k",
        key_version="1",
        cert_secret="c",
        cert_version="1",
        source="r.example/u:1",
    ),
    repo_secret="pull",
    repo_secret_version="1",
    rebuild_trigger=1,
)
assert FULL.build is not None
assert FULL.sign is not None
BUILD, SIGN = FULL.build, FULL.sign
OTHER = Access(insecure=True)

CHANGES: dict[str, dict[str, Any]] = {
    "target": {"target": "r.example/k:2"},
    "kernel": {"kernel": KernelVersion("5.1.2")},
    "architecture": {"architecture": "arm64"},
    "no build": {"build": None},
    "no sign": {"sign": None},
    "access": {"access": OTHER},
    "access skip": {"access": Access(skip_tls_verify=True)},
    "repo secret": {"repo_secret": "other"},
    "repo secret version": {"repo_secret_version": "2"},
    "trigger up": {"rebuild_trigger": 2},
    "trigger down": {"rebuild_trigger": 0},
    "trigger gone": {"rebuild_trigger": None},
    "dockerfile": {"build": replace(BUILD, dockerfile="FROM b")},
    "argument": {"build": replace(BUILD, args=(("A", "1"), ("B", "3")))},
    "order of arguments": {"build": replace(BUILD, args=(("B", "2"), ("A", "1")))},
    "argument's border": {"build": replace(BUILD, args=(("A1", ""), ("B", "2")))},
    "secret's version": {"build": replace(BUILD, secrets=(("s", "2"), ("t", "1")))},
    "base access": {"build": replace(BUILD, base_access=OTHER)},
    "files": {"sign": replace(SIGN, files=("/opt/a.ko",))},
    "key": {"sign": replace(SIGN, key_secret="other")},
    "key version": {"sign": replace(SIGN, key_version="2")},
    "certificate": {"sign": replace(SIGN, cert_secret="other")},
    "certificate version": {"sign": replace(SIGN, cert_version="2")},
    "source": {"sign": replace(SIGN, source=None)},
    "source access": {"sign": replace(SIGN, source_access=OTHER)},
}
REBUILDS = {
    name for name in CHANGES if name in {"kernel", "architecture", "no build"} or name.startswith("trigger")
} | {
    "dockerfile",
    "argument",
    "order of arguments",
    "argument's border",
    "secret's version",
    "base access",
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_is_another_artifact(name: str) -> None:
    """Upstream knows images by their name alone, and never notices another Dockerfile once the image is there."""
    assert replace(FULL, **CHANGES[name]).key != FULL.key


@pytest.mark.parametrize("name", CHANGES)
def test_only_what_decides_the_unsigned_content_is_another_recipe(name: str) -> None:
    """Rotated credentials or keys must not rebuild an image."""
    assert (replace(FULL, **CHANGES[name]).recipe != FULL.recipe) is (name in REBUILDS)


def test_every_field_of_a_request_is_changed_by_some_row() -> None:
    changed = {field for change in CHANGES.values() for field in change}
    assert changed == {field.name for field in fields(ArtifactRequest)}


@given(requests)
def test_a_request_is_read_back_as_it_was(request: ArtifactRequest) -> None:
    through_database = json.loads(json.dumps(request_to_json(request)))
    again = request_from_json(through_database)
    assert again == request
    assert (again.key, again.recipe) == (request.key, request.recipe)


@given(requests, requests)
def test_keys_are_equal_if_and_only_if_requests_are(one: ArtifactRequest, other: ArtifactRequest) -> None:
    assert (one.key == other.key) is (one == other)


@given(requests)
def test_a_key_is_64_lower_case_hexadecimal_digits(request: ArtifactRequest) -> None:
    assert len(request.key) == 64
    assert set(request.key) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("stage", "waiting", "working"),
    [
        (Stage.BUILD, ArtifactState.WANTED, ArtifactState.BUILDING),
        (Stage.SIGN, ArtifactState.BUILT, ArtifactState.SIGNING),
    ],
)
def test_states_of_a_stage(stage: Stage, waiting: ArtifactState, working: ArtifactState) -> None:
    assert (stage.waiting, stage.working) == (waiting, working)


# ------------------------------------------------------------------------------------------------------ canonical JSON

leaves = st.none() | st.booleans() | st.integers(-9, 9) | texts
values: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(texts, values, max_size=4), st.randoms())
def test_the_order_of_members_changes_no_byte(value: dict[str, Any], random: Any) -> None:
    members = list(value.items())
    random.shuffle(members)
    assert canonical_json(dict(members)) == canonical_json(value)


@given(values, values)
def test_bytes_are_equal_if_and_only_if_values_are(one: Any, other: Any) -> None:
    assert (canonical_json(one) == canonical_json(other)) is (repr_of(one) == repr_of(other))


def repr_of(value: Any) -> Any:
    """A value to compare by in which, unlike in Python, true is not 1."""
    if isinstance(value, dict):
        return {key: repr_of(member) for key, member in value.items()}
    return [repr_of(member) for member in value] if isinstance(value, list) else (type(value), value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": [1, True, None], "a": "ä\n"}, '{"a":"ä\\n","b":[1,true,null]}'),
        ({"z": {"y": 1, "x": 2}}, '{"z":{"x":2,"y":1}}'),
        ("", '""'),
    ],
)
def test_canonical_form(value: Any, text: str) -> None:
    assert canonical_json(value) == text.encode()


def test_the_hash_is_sha256_of_the_canonical_form() -> None:
    assert content_hash({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@given(values)
def test_nothing_but_nul_is_taken_out(value: Any) -> None:
    """Postgres stores it neither in text nor in jsonb, and one spoke's claim must not stop the watcher for all."""
    assert "\\u0000" not in json.dumps(storable(value))
    if "\\u0000" not in json.dumps(value):
        assert storable(value) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\0b", storable("a\0b")),
        ({"k\0": ["\0", 1, None, True]}, {storable("k\0"): [storable("\0"), 1, None, True]}),
    ],
)
def test_nul_is_found_at_any_depth(value: Any, expected: Any) -> None:
    assert storable(value) == expected
    assert "\0" not in str(expected)

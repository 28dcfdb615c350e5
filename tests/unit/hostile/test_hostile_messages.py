"""Messages that nobody of ours sent: read, or refused as unreadable."""

import json
from typing import Any

import pytest
from hostile_budget import budget
from hostile_values import JSON, TEXTS, encoded, mutated
from hypothesis import example, given
from hypothesis import strategies as st

from shared.domain.artifact import ArtifactKey, Stage
from shared.domain.canonical import storable_text
from shared.events.messages import (
    Changed,
    Kind,
    Requested,
    UnreadableMessage,
    decode_changed,
    decode_requested,
    encode,
)

KEY = "a" * 64
CHANGED = {"type": "kmm.changed.v1", "kind": "module", "name": "m", "namespace": "c"}
REQUESTED = {"type": "kmm.requested.v1", "stage": "build", "artifact": KEY, "announcement": 1}


@budget(400)
@given(
    st.one_of(
        mutated(CHANGED).map(encoded),
        mutated(REQUESTED).map(encoded),
        JSON.map(encoded),
        st.binary(max_size=60),
        st.integers(0, 80).map(lambda length: encoded(REQUESTED)[:length]),
    )
)
@example(b"[" * 60_000)
@example(b'{"a":' * 10_000)
@example(b"\xff\xfe")
@example(b"{" + b" " * 1024 * 1024 + b"}")
def test_any_bytes_are_a_message_or_unreadable(payload: bytes) -> None:
    for decode in (decode_changed, decode_requested):
        try:
            message: Changed | Requested = decode(payload)
        except UnreadableMessage as error:
            told = str(error)
        else:
            told = "readable"
            assert decode(encode(message)) == message
            assert message.subject.isascii()
            assert not set(message.subject) & set("*> \0")
        assert 0 < len(told) < 8193
        assert told.encode()


@budget(200)
@given(name=TEXTS, namespace=st.none() | TEXTS, kind=st.sampled_from(Kind))
def test_names_that_no_store_can_hold_are_no_names(name: str, namespace: str | None, kind: Kind) -> None:
    payload = json.dumps({"kind": kind, "name": name, "namespace": namespace}).encode()
    try:
        message = decode_changed(payload)
    except UnreadableMessage:
        return
    assert storable_text(message.name) == message.name
    assert storable_text(message.namespace or "") == (message.namespace or "")


@pytest.mark.parametrize(
    "change",
    [
        {"type": "kmm.requested.v2"},
        {"type": None},
        {"stage": "load"},
        {"artifact": KEY + "\n"},
        {"artifact": KEY.upper()},
        {"artifact": "é" * 64},
        {"announcement": -1},
        {"announcement": 1.5},
        {"announcement": "1"},
        {"announcement": True},
        {"announcement": 2**63},
        {"announcement": 10**400},
    ],
    ids=str,
)
def test_what_is_no_request_is_unreadable(change: dict[str, Any]) -> None:
    with pytest.raises(UnreadableMessage):
        decode_requested(json.dumps(REQUESTED | change).encode())


def test_fields_of_a_later_version_are_left_alone() -> None:
    expected = Requested(stage=Stage.BUILD, artifact=ArtifactKey(KEY), announcement=1)
    assert decode_requested(json.dumps(REQUESTED | {"priority": {"x": [1]}}).encode()) == expected

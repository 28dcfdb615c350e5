"""The messages: what reaches a subject, what may be read, and that nothing else is."""

import contextlib
import re
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.bus.topology import BUILDS, CHANGES, QUEUES, SIGNATURES
from shared.domain.artifact import ArtifactKey, Stage
from shared.domain.errors import PermanentError
from shared.events.messages import (
    MAX_MESSAGE_BYTES,
    Changed,
    Kind,
    Requested,
    UnreadableMessage,
    decode_changed,
    decode_requested,
    encode,
)

KEY = ArtifactKey("0123456789abcdef" * 4)
SUBJECT = re.compile(r"kmm\.changed\.[a-z-]+\.[0-9a-f]{16}")
HOSTILE = ["*", ">", "a.b", "kmm.build.>", "a b", "a\r\nPUB x 0", "", ".", "ü", "$JS.API.>", "x" * 512]
characters = st.characters(codec="utf-8", exclude_characters="\0")
names = st.text(characters, max_size=512)
namespaces = st.none() | st.text(characters, max_size=253)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", Kind)
def test_a_name_never_reaches_a_subject(kind: Kind, name: str) -> None:
    change = Changed(kind=kind, name=name, namespace=name[:253])
    assert SUBJECT.fullmatch(change.subject)
    assert change.subject.split(".")[2] == kind.value
    assert decode_changed(encode(change)) == change


@given(st.sampled_from(Kind), names, namespaces)
def test_any_name_survives_in_the_payload(kind: Kind, name: str, namespace: str | None) -> None:
    change = Changed(kind=kind, name=name, namespace=namespace)
    assert SUBJECT.fullmatch(change.subject)
    assert len(encode(change)) <= MAX_MESSAGE_BYTES
    assert decode_changed(encode(change)) == change


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (Changed(kind=Kind.WORK, name="a"), Changed(kind=Kind.WORK, name="a"), True),
        (Changed(kind=Kind.WORK, name="a"), Changed(kind=Kind.WORK, name="b"), False),
        (Changed(kind=Kind.WORK, name="a"), Changed(kind=Kind.WORK, name="a", namespace="n"), False),
        (Changed(kind=Kind.WORK, name="a"), Changed(kind=Kind.MODULE, name="a"), False),
    ],
)
def test_a_subject_stands_for_a_key(one: Changed, other: Changed, is_same: bool) -> None:
    assert (one.subject == other.subject) is is_same
    assert (one == other) is is_same


@pytest.mark.parametrize(("stage", "subject"), [(Stage.BUILD, "kmm.build"), (Stage.SIGN, "kmm.sign")])
def test_a_request(stage: Stage, subject: str) -> None:
    request = Requested(stage=stage, artifact=KEY, announcement=3)
    assert request.subject == f"{subject}.{KEY[:16]}"
    assert request.message_id == f"{KEY}/{stage}/3"
    assert decode_requested(encode(request)) == request


def test_a_deliberate_repetition_has_another_message_id() -> None:
    """JetStream drops a message whose id it has seen within the stream's window."""
    ids = {
        Requested(stage=stage, artifact=key, announcement=number).message_id
        for stage in Stage
        for key in (KEY, ArtifactKey("f" * 64))
        for number in range(3)
    }
    assert len(ids) == 12


@pytest.mark.parametrize(
    "fields",
    [
        {"artifact": "a" * 63},
        {"artifact": "a" * 65},
        {"artifact": "A" * 64},
        {"artifact": "*" * 64},
        {"artifact": "a" * 64 + "\n"},
        {"artifact": "a" * 31 + "." + "a" * 32},
        {"announcement": -1},
        {"stage": "deploy"},
    ],
)
def test_what_is_no_request(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Requested(**{"stage": Stage.BUILD, "artifact": KEY, "announcement": 0, **fields})


@pytest.mark.parametrize(
    "fields", [{"name": "x" * 513}, {"namespace": "x" * 254}, {"kind": "Module"}, {"name": None}]
)
def test_what_is_no_change(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Changed(**{"kind": Kind.MODULE, "name": "m", **fields})


# ------------------------------------------------------------------------------------------------ unreadable messages


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="text"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no-fields"),
        pytest.param(b'{"kind":"module"}', id="no-name"),
        pytest.param(b'{"kind":"planet","name":"m"}', id="unknown-kind"),
        pytest.param(b'{"type":"kmm.changed.v2","kind":"module","name":"m"}', id="newer-version"),
        pytest.param(b'{"kind":"module","name":1}', id="wrong-type"),
        pytest.param(b'{"kind":"module","name":"\xff"}', id="no-utf-8"),
        pytest.param(b'{"kind":"module","name":"\\ud800"}', id="lone-surrogate"),
        pytest.param(b'{"kind":"module","name":"m\\u0000"}', id="nul"),
        pytest.param(b'{"kind":"work","name":"m","namespace":"\\u0000"}', id="nul-namespace"),
        pytest.param(b'{"kind":"module","name":"m"', id="cut-short"),
        pytest.param(b"[" * 60_000, id="deep"),
        pytest.param(encode(Requested(stage=Stage.BUILD, artifact=KEY, announcement=0)), id="other-message"),
    ],
)
def test_an_unreadable_change(payload: bytes) -> None:
    with pytest.raises(UnreadableMessage):
        decode_changed(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"stage":"build","artifact":"x","announcement":0}',
        b'{"stage":"build","announcement":0}',
        encode(Changed(kind=Kind.MODULE, name="m")),
    ],
)
def test_an_unreadable_request(payload: bytes) -> None:
    with pytest.raises(UnreadableMessage):
        decode_requested(payload)


@given(st.binary(max_size=200))
def test_bytes_are_read_or_unreadable_and_nothing_else(payload: bytes) -> None:
    for decode in (decode_changed, decode_requested):
        with contextlib.suppress(UnreadableMessage):
            assert encode(decode(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"hunter2",
        b'{"kind":"hunter2","name":1}',
        b'{"type":"hunter2","kind":"module","name":"m"}',
        b'{"hunter2":1}',
    ],
)
def test_what_is_wrong_is_said_without_what_stands_in_the_message(payload: bytes) -> None:
    with pytest.raises(UnreadableMessage, match=r"kind|type|message") as caught:
        decode_changed(payload)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_delivering_an_unreadable_message_again_cannot_help() -> None:
    assert issubclass(UnreadableMessage, PermanentError)


def padded(size: int) -> bytes:
    """A good message of that many bytes: what we do not know is ignored, so that newer senders may say more."""
    start, end = b'{"kind":"module","name":"m","more":"', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end


def test_a_message_may_be_as_long_as_the_limit() -> None:
    assert decode_changed(padded(MAX_MESSAGE_BYTES)) == Changed(kind=Kind.MODULE, name="m")


def test_a_longer_message_is_not_read() -> None:
    with pytest.raises(UnreadableMessage, match=f"{MAX_MESSAGE_BYTES + 1} bytes"):
        decode_changed(padded(MAX_MESSAGE_BYTES + 1))


# ------------------------------------------------------------------------------------------------------------ topology


def takes(pattern: str, subject: str) -> bool:
    """NATS: `>` at the end stands for one token or more."""
    return subject.startswith(pattern.removesuffix(">")) and len(subject) > len(pattern) - 1


@pytest.mark.parametrize(
    ("message", "queue"),
    [
        (Requested(stage=Stage.BUILD, artifact=KEY, announcement=0), BUILDS),
        (Requested(stage=Stage.SIGN, artifact=KEY, announcement=0), SIGNATURES),
        *((Changed(kind=kind, name="a.b"), CHANGES) for kind in Kind),
    ],
)
def test_each_message_lands_in_one_stream(message: Changed | Requested, queue: Any) -> None:
    landed = [one for one in QUEUES if any(takes(pattern, message.subject) for pattern in one.subjects)]
    assert landed == [queue]


@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: queue.stream)
def test_a_stream_refuses_what_we_would_not_read(queue: Any) -> None:
    assert queue.stream_config().max_msg_size == MAX_MESSAGE_BYTES
    assert queue.consumer_config().max_deliver == -1

"""Texts and JSON on their way into Postgres and into messages for people."""

import json
import time
from typing import Any

import orjson
import pytest
from hostile_budget import budget
from hostile_values import JSON, NUMBERS, TEXTS, nested
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.backoff import MAX_SECONDS, asked_delay
from shared.domain.canonical import is_deeper_than, shallow_json, storable, storable_text
from shared.domain.errors import MAX_MESSAGE_CHARACTERS, HubError, PermanentError


def texts_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in texts_in(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts_in(part)]
    return [value] if isinstance(value, str) else []


@budget(200)
@given(JSON)
def test_what_is_storable_fits_into_postgres_and_into_a_request(value: Any) -> None:
    kept = storable(value)
    assert all("\0" not in text for text in texts_in(kept))
    assert json.loads(json.dumps(kept)) == kept
    assert orjson.loads(orjson.dumps(kept)) is not None or kept is None
    assert storable(kept) == kept


@budget(100)
@given(TEXTS)
def test_a_text_that_can_be_stored_stays_as_it_is(text: str) -> None:
    clean = "".join(one for one in text if one != "\0" and not "\ud800" <= one <= "\udfff")
    assert storable_text(clean) == clean
    assert len(storable_text(text)) == len(text)


@budget(100)
@given(st.text() | TEXTS)
def test_an_error_can_be_stored_and_shown_whatever_it_quotes(text: str) -> None:
    message = str(PermanentError(f"{text} is wrong"))
    assert "\0" not in message
    assert message.encode()
    assert len(message) <= MAX_MESSAGE_CHARACTERS


def test_a_long_message_is_cut_and_says_so() -> None:
    message = str(HubError("x" * 100_000))
    assert len(message) == MAX_MESSAGE_CHARACTERS
    assert message.endswith("…")


@pytest.mark.parametrize("in_lists", [True, False])
def test_depth_is_measured_without_recursion(in_lists: bool) -> None:
    assert not is_deeper_than(100, nested(100, in_lists=in_lists))
    assert is_deeper_than(100, nested(101, in_lists=in_lists))
    assert is_deeper_than(100, nested(100_000, in_lists=in_lists))


@budget(200)
@given(JSON, st.integers(1, 6))
def test_json_that_is_flat_enough_is_not_cut(value: Any, levels: int) -> None:
    content = json.dumps(value).encode()
    cut = json.loads(shallow_json(content, levels))
    assert not is_deeper_than(levels, cut)
    if not is_deeper_than(levels, value):
        assert shallow_json(content, levels) == content


@budget(100)
@given(st.binary() | st.text(alphabet='"\\[]{}:,a').map(str.encode))
def test_bytes_that_are_no_json_are_cut_all_the_same(content: bytes) -> None:
    assert len(shallow_json(content, 3)) <= len(content) + 4 * len(content)


@pytest.mark.parametrize("evil", [b'"\\', b'"', b"[", b"\\", b'{"', b"]"])
def test_cutting_takes_linear_time(evil: bytes) -> None:
    started = time.process_time()
    shallow_json(evil * (1024 * 1024 // len(evil)), 200)
    assert time.process_time() - started < 5


@budget(100)
@given(TEXTS | NUMBERS.map(str) | st.text("0123456789٣²", max_size=500))
def test_a_server_never_makes_anybody_wait_for_ever(header: str) -> None:
    seconds = asked_delay(header)
    assert seconds is None or 0 <= seconds <= MAX_SECONDS

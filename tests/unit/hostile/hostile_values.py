"""What strangers send: texts and JSON of any kind, and valid objects with some of it in the wrong places."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

from shared.domain.errors import MAX_MESSAGE_CHARACTERS, HubError

Json = Any

NASTY_TEXTS = st.sampled_from(
    [
        "",
        "\0",
        "a\0b",
        "\ud800",
        "x\udfff",
        "\u202e\u2066",
        "../../etc/passwd",
        "a\nb",
        "\x1b[31m",
        "${",
        "${KERNEL_FULL_VERSION}",
        "${A:-${B:-${C}}}",
        "$$$",
        "${" * 50,
        "${X:-" * 9 + "}" * 9,
        "x" * 5000,
        "ß\u0301🧨",
        "(a+)+$",
        "(?P<n>a){1000}",
        "[[:alpha:]]{1,1000}",
        "\\C",
        "(?=x)",
        "a{1001}",
        "((a{100}){100}){100}",
        "-" * 300,
        "r.example/a@sha256:0",
        "r.example:99999/a:b",
        "R/UPPER",
        "r.example/k:" + "${KERNEL_FULL_VERSION}" * 180,
        "%s%n{}",
        "true",
        "1e999",
        "'; DROP TABLE modules; --",
    ]
)
TEXTS = st.one_of(NASTY_TEXTS, st.text(max_size=40))
NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**31 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**308]),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


def nested(depth: int, *, in_lists: bool = True) -> Json:
    """Lists or objects in one another, `depth` of them; built without recursion."""
    value: Json = [] if in_lists else {}
    for _ in range(depth - 1):
        value = [value] if in_lists else {"x": value}
    return value


def places(value: Json, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside of a JSON value, its own root left out."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in inside for found in ((*path, key), *places(child, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, base: Json, *, replacement: st.SearchStrategy[Json] = JSON) -> Json:
    """`base` with up to four of its parts replaced, taken away or joined by others."""
    value = copy.deepcopy(base)
    for _ in range(draw(st.integers(0, 4))):
        known = places(value)
        if not known:
            break
        *above, last = draw(st.sampled_from(known))
        holder = value
        for key in above:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "remove":
                del holder[last]
            case "replace":
                holder[last] = draw(replacement)
            case "add" if isinstance(holder, dict):
                holder[draw(TEXTS)] = draw(replacement)
            case _:
                holder.insert(last, draw(replacement))
    return value


def encoded(value: Json) -> bytes:
    """JSON text as a careless client sends it: halves of surrogate pairs as escapes."""
    return json.dumps(value).encode()


def assert_reason(error: HubError) -> None:
    """An error says why, in words that can be stored and shown."""
    assert str(error)
    assert str(error).encode()
    assert len(str(error)) <= MAX_MESSAGE_CHARACTERS
    assert error.reason.isalpha()

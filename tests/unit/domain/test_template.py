"""Template expansion: the dialect's rules one by one, and that no text can do harm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.template import MAX_NESTING, MAX_TEMPLATE_CHARACTERS, InvalidTemplate, expand

VARIABLES = {"A": "AAA", "B": "b", "E": "", "D": "$A"}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$A", "AAA"),
        ("${A}", "AAA"),
        ("${A}b$A.c", "AAAbAAA.c"),
        ("$A-$B_", "AAA-"),
        ("$A${B}_", "AAAb_"),
        ("x${NOPE}y$NOPE", "xy"),
        ("$D", "$A"),
        # dollars that start nothing
        ("a$", "a$"),
        ("$ A", "$ A"),
        ("$-$/", "$-$/"),
        ("$_", "$_"),
        ("${}", "${}"),
        # escapes
        ("$$A", "$A"),
        ("$$$A", "$AAA"),
        ("$${A}", "${A}"),
        ("$$", "$"),
        # defaults
        ("${A:-d}", "AAA"),
        ("${NOPE:-d}", "d"),
        ("${E:-d}", "d"),
        ("${A-d}", "AAA"),
        ("${NOPE-d}", "d"),
        ("${E-d}", ""),
        ("${NOPE:=d}", "d"),
        ("${E:=d}", "d"),
        ("${NOPE=d}", "d"),
        ("${E=d}", ""),
        ("${NOPE:-}", ""),
        ("${NOPE:-a-b:+c=d}", "a-b:+c=d"),
        ("${NOPE:--}", "-"),
        ("${NOPE:-{x}}", "{x}"),
        # alternatives
        ("${A:+x}", "x"),
        ("${A+x}", "x"),
        ("${NOPE:+x}", ""),
        ("${NOPE+x}", ""),
        ("${E+x}", "x"),
        ("${E:+x}", "x"),
        # words with variables
        ("${NOPE:-$A}", "AAA"),
        ("${NOPE:-${A}}", "AAA"),
        ("${NOPE:-x${NONE:-$B}y}z", "xbyz"),
        ("${NOPE:-$$A}", "$A"),
        ("${A:+$B}", "b"),
        # text after the name that is no operator known here
        ("${A%x}", "AAA"),
        ("${A:0:1}", "AAA"),
        ("${NOPE?oops}", ""),
        ("line\n$A\n", "line\nAAA\n"),
    ],
)
def test_expand(template: str, expected: str) -> None:
    assert expand(template, VARIABLES) == expected


@pytest.mark.parametrize(
    "template", ["${", "${A", "${A:-", "x${A:-d", "${A:-${B}", "${A\n}", "${A:-d\r}", "${NOPE:-${"]
)
def test_unclosed_braces_are_an_error(template: str) -> None:
    with pytest.raises(InvalidTemplate, match="not closed"):
        expand(template, VARIABLES)


def test_an_error_in_a_word_that_is_not_used_is_still_an_error() -> None:
    with pytest.raises(InvalidTemplate):
        expand("${A:-${B}", VARIABLES)


def test_nesting_and_length_are_bounded() -> None:
    def nested(levels: int) -> str:
        return "${X:-" * levels + "end" + "}" * levels

    assert expand(nested(MAX_NESTING), {}) == "end"
    with pytest.raises(InvalidTemplate, match="levels"):
        expand(nested(MAX_NESTING + 1), {})
    with pytest.raises(InvalidTemplate, match="levels"):
        expand("${X:-" * (MAX_TEMPLATE_CHARACTERS // 5), {})
    assert expand("x" * MAX_TEMPLATE_CHARACTERS, {}) == "x" * MAX_TEMPLATE_CHARACTERS
    with pytest.raises(InvalidTemplate, match="4097 characters"):
        expand("x" * (MAX_TEMPLATE_CHARACTERS + 1), {})


@given(st.text(alphabet="$${}:-=+ABN_x0 \n", max_size=60) | st.text(max_size=60))
def test_any_text_is_expanded_or_refused(template: str) -> None:
    try:
        expanded = expand(template, VARIABLES)
    except InvalidTemplate:
        return
    assert len(expanded) <= len(template) * 3 + 1


@given(st.text(max_size=60), st.dictionaries(st.sampled_from("ABC"), st.text(max_size=5)))
def test_text_without_dollars_stays_and_doubled_dollars_come_back(
    text: str, variables: dict[str, str]
) -> None:
    assert expand(text.replace("$", "$$"), variables) == text


@given(st.text(max_size=20), st.text(alphabet="abc-/.", max_size=10), st.text(alphabet="abc-/.", max_size=10))
def test_values_are_not_expanded_again(value: str, before: str, after: str) -> None:
    assert expand(f"{before}${{V}}{after}", {"V": value}) == before + value + after

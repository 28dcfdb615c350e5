"""Patterns mean what they mean in Go: where Python's `re` differs, RE2's answer counts; evil patterns end at once."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.pattern import MAX_PATTERN_CHARACTERS, BadPattern, Pattern, PatternSet


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("el9", "5.14.0-570.el9_6.x86_64", True),
        ("^el9$", "5.14.0-570.el9_6.x86_64", False),
        ("1.2.3", "1x2y3-1.2", True),
        (r"5\.10\.0-1\.x86_64$", "5.10.0-1.x86_64\n", False),
        (".", "\n", False),
        (r"[[:digit:]]+\z", "x12", True),
        (r"\Q5.1\E", "5.1", True),
        (r"\Q5.1\E", "5x1", False),
        (r"\QC\C\E", r"C\C", True),
        (r"\\C", r"\C", True),
        ("x(?i)ABC", "xabc", True),
        ("(?P<n>a)b", "ab", True),
        ("(?<n>a)b", "ab", True),
        (r"\d", "٣", False),
        (r"\w", "é", False),
        ("a{,3}", "a{,3}", True),
        ("a{,3}", "aa", False),
        (r"\pN", "7", True),
        ("EL9", "el9", False),
    ],
)
def test_re2_semantics(pattern: str, text: str, found: bool) -> None:
    assert Pattern(pattern).is_found_in(text) is found


def test_python_would_answer_otherwise() -> None:
    assert re.search(r"5\.10$", "5.10\n")
    assert not Pattern(r"5\.10$").is_found_in("5.10\n")
    assert re.search(r"\d", "٣")
    assert re.search("a{,3}b", "aab")
    assert not Pattern("a{,3}b").is_found_in("aab")


@pytest.mark.parametrize(
    "pattern",
    [
        "invalid)",
        "(",
        "[",
        "*",
        "a**",
        r"(a)\1",
        "(?=a)",
        "(?!a)",
        "(?<=a)b",
        "(?>a)",
        "a++",
        "a{1001}",
        "(?P=n)",
        r"\C",
        r"\Z",
        "(a{1000}){1000}",
        "x" * (MAX_PATTERN_CHARACTERS + 1),
        "\ud800",
    ],
)
def test_what_go_refuses_is_refused_with_a_reason(pattern: str) -> None:
    with pytest.raises(BadPattern) as error:
        Pattern(pattern)
    assert str(error.value)


@pytest.mark.parametrize("pattern", [r"(.*)*\.x86_64z", "^(a+)+$", "(a|a)*b", "((x+)+)+y"])
def test_patterns_that_hang_a_backtracking_engine_just_answer(pattern: str) -> None:
    assert not Pattern(pattern).is_found_in("5.14.0-427.13.1.el9_4.x86_64" + "a" * 200)
    assert PatternSet({0: Pattern(pattern)}).first("5.14.0-427.13.1.el9_4.x86_64" + "a" * 200) is None


def test_the_lowest_number_wins_whatever_order_it_came_in() -> None:
    patterns = {7: Pattern("b"), 2: Pattern("a"), 4: Pattern("a|b")}
    joined = PatternSet(patterns)
    assert joined.first("xa") == 2
    assert joined.first("xb") == 4
    assert joined.first("x") is None
    assert PatternSet({}).first("x") is None


def test_a_set_too_large_to_join_still_answers() -> None:
    patterns = {
        number: Pattern(f"(?:x{{{900 + number % 10}}}y|a.{{900}}{number % 10}$)") for number in range(200)
    }
    joined = PatternSet(patterns)
    assert joined._joined is None
    assert joined.first("a" * 901 + "3") == 3
    assert joined.first("nothing") is None


@given(
    st.lists(st.from_regex(r"[ab.]{1,3}[*+?]?(\|[ab]{1,2})?", fullmatch=True), max_size=6),
    st.text(alphabet="abc", max_size=8),
)
def test_a_set_answers_as_its_patterns_one_by_one(texts: list[str], subject: str) -> None:
    patterns = {number: Pattern(text) for number, text in enumerate(texts)}
    expected = next((number for number, text in enumerate(texts) if re.search(text, subject)), None)
    assert PatternSet(patterns).first(subject) == expected

"""The kernel claim: what a spoke writes and what the hub makes of it, good lines and bad."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.claim import CLAIM_NAME, find_claim, read_claim, split_claim, write_claim

RELEASES = st.from_regex(r"[1-9]\.[0-9]{1,2}\.[0-9]{1,3}(-[a-z0-9_.]{1,12})?", fullmatch=True)


@pytest.mark.parametrize(
    ("value", "kernels"),
    [
        ("6.9.1\n6.10.1\n5.1.1", ("5.1.1", "6.10.1", "6.9.1")),
        ("5.1.1\n5.1.1", ("5.1.1",)),
        ("5.10.0+\n5.10.0", ("5.10.0",)),
        ("5.11.0++", ("5.11.0+",)),
        (" 5.1.1\r\n5.2.2\t", ("5.1.1", "5.2.2")),
        ("\n\n5.1.1\n \n", ("5.1.1",)),
        ("", ()),
        ("\n", ()),
    ],
)
def test_read_claim_trims_sorts_and_merges(value: str, kernels: tuple[str, ...]) -> None:
    claim = read_claim(value)
    assert claim.kernels == kernels
    assert claim.invalid == ()
    assert not claim.near_limit


def test_bad_lines_are_reported_once_and_do_not_hold_back_the_others() -> None:
    claim = read_claim("5.1.1\ntest\n../../etc\n5.2.2\ntest")
    assert claim.kernels == ("5.1.1", "5.2.2")
    assert [entry.text for entry in claim.invalid] == ["test", "../../etc"]
    assert "three parts" in claim.invalid[0].reason
    assert "uname" in claim.invalid[1].reason


@pytest.mark.parametrize(("characters", "near"), [(921, False), (922, True), (1024, True)])
def test_near_limit_from_nine_tenths_of_1024_characters(characters: int, near: bool) -> None:
    value = "5.1.1\n".ljust(characters, "x")
    assert len(value) == characters
    assert read_claim(value).near_limit is near


def test_split_claim_is_raw() -> None:
    assert split_claim(" 5.1.1\r\n5.2.2") == (" 5.1.1\r", "5.2.2")
    assert split_claim("b\na\nb") == ("a", "b", "b")
    assert split_claim("") == ("",)


def test_find_claim_takes_the_first_of_the_name() -> None:
    other = {"name": "id.k8s.io", "value": "x"}
    first, second = ({"name": CLAIM_NAME, "value": value} for value in ("1.1.1", "2.2.2"))
    assert find_claim([other, first, second]) == "1.1.1"
    assert find_claim([{"name": CLAIM_NAME}]) == ""
    assert find_claim([other]) is None
    assert find_claim([]) is None


def test_write_claim_as_a_spoke_does() -> None:
    assert write_claim(["b", "a1", "a2", "b", "a1"]) == "a1\na2\nb"
    assert write_claim([]) == ""


@given(st.lists(RELEASES, max_size=20))
def test_what_a_spoke_writes_the_hub_reads(kernels: list[str]) -> None:
    claim = read_claim(write_claim(kernels))
    assert claim.kernels == tuple(sorted(set(kernels)))
    assert claim.invalid == ()


@given(st.text(max_size=400))
def test_any_value_is_read_without_an_error(value: str) -> None:
    claim = read_claim(value)
    assert list(claim.kernels) == sorted(set(claim.kernels))
    assert len(claim.kernels) + len(claim.invalid) <= len(value.split("\n"))

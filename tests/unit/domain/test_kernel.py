"""Kernel versions: what is accepted, cut, sanitised, and how the parts become variables."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.kernel import (
    InvalidKernel,
    architecture,
    cut_plus,
    dns_safe,
    kernel_variables,
    normalize,
    parse_kernel,
)


@pytest.mark.parametrize(
    "text",
    [
        "6.1.0",
        "5.14.0-570.el9_6.x86_64",
        "6.12.3-rt-amd64",
        "5.15.0-1051-azure-fips",
        "6.8.0~rc1-1",
        "5.11.0+",
        "1x2y3-1.2",
        "1.2-" + "3" * 251,
    ],
)
def test_parse_kernel_keeps_real_releases_unchanged(text: str) -> None:
    assert parse_kernel(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 255"),
        ("1.2.3\n", "1 to 255"),
        ("1.2.3 4", "1 to 255"),
        ("1.2.3/../..", "1 to 255"),
        ("1.2.3;reboot", "1 to 255"),
        ("1.2.3é", "1 to 255"),
        ("1.2." + "3" * 252, "1 to 255"),
        ("test", "three parts"),
        ("5.10", "three parts"),
        ("5_10_3", "three parts"),
        ("5..3", "is empty"),
        ("5.10-", "is empty"),
        ("..-..", "digit or letter"),
        ("-1.2.3", "digit or letter"),
    ],
)
def test_parse_kernel_refuses_nonsense_and_says_why(text: str, why: str) -> None:
    with pytest.raises(InvalidKernel, match=why) as error:
        parse_kernel(text)
    assert error.value.reason == "InvalidKernel"


def test_a_long_nonsense_is_quoted_in_part() -> None:
    with pytest.raises(InvalidKernel) as error:
        parse_kernel("x" * 100_000)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("kernel", "cut"),
    [
        ("5.10.0", "5.10.0"),
        ("5.10.0+", "5.10.0"),
        ("5.10.0++", "5.10.0+"),
        ("5.1.0+debug", "5.1.0+debug"),
        ("+", ""),
    ],
)
def test_cut_plus_cuts_exactly_one_at_the_end(kernel: str, cut: str) -> None:
    assert cut_plus(kernel) == cut


@pytest.mark.parametrize(
    ("text", "normalized", "dns"),
    [
        ("1.2.3-4", "1.2.3-4", "1-2-3-4"),
        ("1.2.3+4", "1.2.3_4", "1-2-3-4"),
        ("1.2.3_4", "1.2.3_4", "1-2-3-4"),
        ("1.2.3~rc1,x", "1.2.3_rc1_x", "1-2-3-rc1-x"),
        ("5.14.0-570.EL9.x86_64+debug", "5.14.0-570.EL9.x86_64_debug", "5-14-0-570-el9-x86-64-debug"),
        ("1.2.3+", "1.2.3_", "1-2-3"),
        ("ä/b", "__b", "b"),
    ],
)
def test_normalize_and_dns_safe(text: str, normalized: str, dns: str) -> None:
    assert normalize(text) == normalized
    assert dns_safe(text) == dns


@given(st.text(max_size=300))
def test_normalize_leaves_only_tag_characters_and_is_idempotent(text: str) -> None:
    result = normalize(text)
    assert set(result) <= set(string.ascii_letters + string.digits + "._-")
    assert len(result) == len(text)
    assert normalize(result) == result


@pytest.mark.parametrize(
    ("kernel", "xyz"),
    [
        ("6.0.15-300.fc37.x86_64", "6.0.15"),
        ("5-10,3", "5.10.3"),
        ("5.10-3.4", "5.10.3"),
        ("5.14.0+debug-1", "5.14.0+debug"),
        ("1x2y3-1.2", "1x2y3.1.2"),
    ],
)
def test_kernel_variables(kernel: str, xyz: str) -> None:
    variables = kernel_variables(kernel)
    assert variables["KERNEL_FULL_VERSION"] == variables["KERNEL_VERSION"] == kernel
    assert variables["KERNEL_XYZ"] == xyz
    assert [variables["KERNEL_X"], variables["KERNEL_Y"], variables["KERNEL_Z"]] == xyz.split(".")
    assert len(variables) == 6


@pytest.mark.parametrize("kernel", ["", "test", "5.10", "5_10_3"])
def test_kernel_variables_need_three_parts(kernel: str) -> None:
    with pytest.raises(InvalidKernel, match="three parts"):
        kernel_variables(kernel)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("5.14.0-570.el9_6.x86_64", "amd64"),
        ("6.1.0-18-amd64", "amd64"),
        ("6.1.0-18-rt-arm64", "arm64"),
        ("5.14.0-427.el9.aarch64", "arm64"),
        ("5.14.0-427.el9.aarch64+64k", "arm64"),
        ("5.14.0-427.el9.aarch64+64k-debug", "arm64"),
        ("5.14.0-427.el9.ppc64le", "ppc64le"),
        ("6.1.0-21-powerpc64le", "ppc64le"),
        ("5.14.0-427.el9.s390x", "s390x"),
        ("5.15.0-100-generic", "amd64"),
        ("5.15.0-notarm64", "amd64"),
        ("6.1.0-arm64-custom", "amd64"),
    ],
)
def test_architecture_is_read_from_the_suffix(kernel: str, expected: str) -> None:
    assert architecture(kernel) == expected

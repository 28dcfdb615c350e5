"""Kernel versions as nodes report them: checking, cutting, sanitising, and the variables templates see.

Rules: KMM `internal/kernel/kernel.go` (sanitising) and `internal/utils` (components as variables).
"""

import re
from typing import NewType

from shared.domain.errors import PermanentError

KernelVersion = NewType("KernelVersion", str)
"""A kernel release that passed `parse_kernel`, for instance `5.14.0-570.el9_6.x86_64`."""

_RELEASE = re.compile(r"[A-Za-z0-9._+~-]{1,255}")
_SEPARATOR = re.compile(r"[.,-]")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_ARCHITECTURE = re.compile(r"(?:^|[._+~-])(x86_64|amd64|aarch64|arm64|ppc64le|powerpc64le|s390x)(?=\+|$)")
_GO_ARCHITECTURE = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "ppc64le": "ppc64le",
    "powerpc64le": "ppc64le",
    "s390x": "s390x",
}


class InvalidKernel(PermanentError):
    """A text that is not a kernel release; the message quotes it."""

    reason = "InvalidKernel"


def parse_kernel(text: str) -> KernelVersion:
    """Return `text` as a kernel version, unchanged.

    Accepts what `uname -r` prints: 1 to 255 of `A-Z a-z 0-9 . _ + ~ -`, the first one a letter or digit, with
    three non-empty parts between dots and dashes. It keeps a spoke's nonsense out of tags, labels and paths.

    Raises:
        InvalidKernel: with what is wrong and the text.
    """
    shown = repr(text if len(text) <= 80 else text[:80] + "…")
    if not _RELEASE.fullmatch(text):
        raise InvalidKernel(
            f"kernel {shown}: expected 1 to 255 letters, digits and . _ + ~ -, as `uname -r` prints"
        )
    if not text[0].isalnum():
        raise InvalidKernel(f"kernel {shown}: must start with a digit or letter")
    if not all(_components(text)):
        raise InvalidKernel(f"kernel {shown}: one of its first three parts (x.y.z) is empty")
    return KernelVersion(text)


def cut_plus(kernel: str) -> str:
    """Return `kernel` without one trailing `+`, if there is one (the mark of a locally changed source tree).

    Exactly one is cut, as the spoke does before it compares its nodes with a mapping's literal.
    """
    return kernel.removesuffix("+")


def normalize(text: str) -> str:
    """Return `text` with every character outside `A-Za-z0-9._-` replaced by `_`: it then fits into a tag."""
    return _UNSAFE.sub("_", text)


def dns_safe(text: str) -> str:
    """Return `text` as part of a DNS name or label value: lower-case letters, digits and inner dashes only.

    Not injective: `5.1.2_3` and `5.1.2-3` give one name. Add a hash where that matters.
    """
    return normalize(text).lower().replace("_", "-").replace(".", "-").strip("-")


def kernel_variables(kernel: str) -> dict[str, str]:
    """Return the six `KERNEL_*` variables of `kernel`, which is used as given.

    `KERNEL_FULL_VERSION` and `KERNEL_VERSION` are the same text. For image templates pass
    `normalize(kernel)`; build arguments and literals keep the raw kernel. Parts split at `.`, `,` and `-`.

    Raises:
        InvalidKernel: `kernel` has fewer than three parts.
    """
    x, y, z = _components(kernel)
    return {
        "KERNEL_FULL_VERSION": kernel,
        "KERNEL_VERSION": kernel,
        "KERNEL_XYZ": f"{x}.{y}.{z}",
        "KERNEL_X": x,
        "KERNEL_Y": y,
        "KERNEL_Z": z,
    }


def architecture(kernel: str) -> str:
    """Return the CPU architecture of `kernel` in the OCI image specification's words (GOARCH).

    It is read from the end of the release, or from before a `+variant` (`…aarch64+64k`). A release that names
    none, such as Ubuntu's `5.15.0-100-generic`, counts as `amd64`.
    """
    found = _ARCHITECTURE.findall(kernel)
    return _GO_ARCHITECTURE[found[-1]] if found else "amd64"


def _components(kernel: str) -> tuple[str, str, str]:
    parts = _SEPARATOR.split(kernel, maxsplit=3)
    if len(parts) < 3:
        shown = repr(kernel if len(kernel) <= 80 else kernel[:80] + "…")
        raise InvalidKernel(f"kernel {shown}: expected at least three parts separated by . , or - (x.y.z)")
    return parts[0], parts[1], parts[2]

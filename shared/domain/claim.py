"""The cluster claim through which a spoke tells the hub which kernels its nodes run.

Format: KMM `internal/controllers/node_kernel_clusterclaim.go`: distinct kernels, sorted, joined by newlines.
The size limit of 1,024 characters is that of `ClusterClaim.spec.value` in the Open Cluster Management API.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.domain.kernel import InvalidKernel, KernelVersion, cut_plus, parse_kernel

CLAIM_NAME = "kernel-versions.kmm.node.kubernetes.io"
MAX_CLAIM_CHARACTERS = 1024
_NEAR_LIMIT_CHARACTERS = MAX_CLAIM_CHARACTERS * 9 / 10


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidEntry:
    """A line of the claim that is no kernel version: the line as sent, and why it was refused."""

    text: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a cluster says about its kernels.

    Attributes:
        kernels: distinct and sorted by code point, each without one trailing `+`.
        invalid: lines that are no kernel version, in the order sent; they never hold back the others.
        near_limit: the value has reached 90 % of what a claim can hold. Past it the spoke cannot write,
            and the hub goes on seeing the old list.
    """

    kernels: tuple[KernelVersion, ...]
    invalid: tuple[InvalidEntry, ...]
    near_limit: bool


def find_claim(cluster_claims: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the value of the kernel claim in `ManagedCluster.status.clusterClaims`, None if there is none.

    The first entry of the name wins.
    """
    for claim in cluster_claims:
        if claim.get("name") == CLAIM_NAME:
            return str(claim.get("value") or "")
    return None


def split_claim(value: str) -> tuple[str, ...]:
    """Return the raw lines of a claim's value in code point order: nothing trimmed, dropped or checked.

    This is how KMM's hub reads it (`internal/cluster/cluster.go`), kept for comparison; use `read_claim`.
    """
    return tuple(sorted(value.split("\n")))


def read_claim(value: str) -> Claim:
    """Return the kernels in a claim's value; bad lines are reported in the result, nothing is raised.

    Lines are trimmed, blank ones dropped, one trailing `+` is cut, duplicates merged.
    """
    kernels: set[KernelVersion] = set()
    invalid: dict[str, InvalidEntry] = {}
    for line in value.split("\n"):
        text = line.strip()
        if not text:
            continue
        try:
            kernels.add(parse_kernel(cut_plus(text)))
        except InvalidKernel as error:
            invalid[text] = InvalidEntry(text=text, reason=str(error))
    return Claim(
        kernels=tuple(sorted(kernels)),
        invalid=tuple(invalid.values()),
        near_limit=len(value) >= _NEAR_LIMIT_CHARACTERS,
    )


def write_claim(kernels: Iterable[str]) -> str:
    """Return the value that a spoke writes for the kernels of its nodes: distinct, sorted, as reported."""
    return "\n".join(sorted(set(kernels)))

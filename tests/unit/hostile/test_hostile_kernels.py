"""Claims and kernels of any text: what is no kernel is told, and two kernels are never taken for one."""

from hostile_budget import budget
from hostile_values import TEXTS, assert_reason
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_hostile_modules import CONFIGURATION, SPEC

from services.dispatcher.catalog import Catalog
from services.dispatcher.demand import Wanted
from services.dispatcher.stored import StoredModule
from services.watcher.facts import cluster_row
from services.watcher.kinds import ClusterClaim, ManagedCluster, ManagedClusterStatus
from shared.domain.claim import CLAIM_NAME, MAX_CLAIM_CHARACTERS, read_claim, write_claim
from shared.domain.image import ImageReference
from shared.domain.kernel import (
    InvalidKernel,
    architecture,
    cut_plus,
    dns_safe,
    kernel_variables,
    normalize,
    parse_kernel,
)
from shared.kube.reflector import Metadata

RELEASES = st.from_regex(r"[0-9]{1,2}[.][0-9]{1,2}[.-][A-Za-z0-9._+~-]{1,40}", fullmatch=True)
LINES = st.one_of(
    TEXTS,
    RELEASES,
    RELEASES.map(lambda text: f"{text}+"),
    st.text(alphabet=" \t\r\x0b\u2028\x85\0", max_size=4),
)


@budget(300)
@given(st.lists(LINES, max_size=20).map("\n".join) | st.text(max_size=2000))
@example("\n" * 100_000)
@example("5.1.1\r\n5.1.1+\n5.1.1++")
@example("k" * 5000)
def test_any_claim_is_read_and_nothing_in_it_is_lost_silently(value: str) -> None:
    claim = read_claim(value)
    assert list(claim.kernels) == sorted(set(claim.kernels))
    assert all(parse_kernel(kernel) == kernel for kernel in claim.kernels)
    told = {entry.text for entry in claim.invalid}
    for line in value.split("\n"):
        text = line.strip()
        assert not text or text in told or cut_plus(text) in claim.kernels
    assert all(entry.reason for entry in claim.invalid)
    assert claim.near_limit is (len(value) >= 0.9 * MAX_CLAIM_CHARACTERS)


@budget(200)
@given(st.lists(LINES, max_size=8).map("\n".join))
def test_any_claim_becomes_a_row_that_can_be_stored(value: str) -> None:
    cluster = ManagedCluster(
        metadata=Metadata(name="c", uid="u", resource_version="1"),
        status=ManagedClusterStatus(cluster_claims=[ClusterClaim(name=CLAIM_NAME, value=value)]),
    )
    row = cluster_row(cluster)
    assert str(row).encode()
    assert "\0" not in "".join(entry["text"] + entry["reason"] for entry in row["invalid_kernels"])


@budget(200)
@given(st.lists(RELEASES, max_size=10))
def test_what_a_spoke_writes_is_read_back(kernels: list[str]) -> None:
    claim = read_claim(write_claim(kernels))
    valid = set()
    for kernel in kernels:
        try:
            valid.add(parse_kernel(cut_plus(kernel)))
        except InvalidKernel:
            assert any(entry.text == kernel for entry in claim.invalid)
    assert set(claim.kernels) == valid


@budget(300)
@given(LINES)
def test_any_text_is_a_kernel_or_told_why_not(text: str) -> None:
    assert len(normalize(text)) == len(text)
    assert ImageReference.parse(f"r/x:a{normalize(text)[:100]}").tag
    assert set(dns_safe(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert architecture(text) in {"amd64", "arm64", "ppc64le", "s390x"}
    try:
        kernel = parse_kernel(text)
    except InvalidKernel as error:
        assert_reason(error)
    else:
        assert all(kernel_variables(normalize(kernel)).values())


@budget(100)
@given(
    RELEASES, st.sampled_from(["x86_64", "aarch64", "ppc64le", "s390x"]), st.sampled_from(["", "+64k", "+rt"])
)
def test_the_architecture_is_the_last_one_that_a_kernel_names(
    release: str, machine: str, variant: str
) -> None:
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    assert architecture(f"{release}.{machine}{variant}") == names.get(machine, machine)


SHARING = {
    **SPEC,
    "moduleSpec": {
        **SPEC["moduleSpec"],
        "moduleLoader": {
            "container": {
                **SPEC["moduleSpec"]["moduleLoader"]["container"],
                "kernelMappings": [{"regexp": "."}],
            }
        },
    },
}


@budget(200)
@given(RELEASES, RELEASES)
@example("6.1.0+x", "6.1.0~x")
@example("6.1.0+x", "6.1.0_x")
def test_kernels_whose_tags_are_alike_never_share_an_artifact(one: str, other: str) -> None:
    """`+`, `~` and `_` become one character in a tag: the image is found by tag, but shipped and built by kernel."""
    try:
        kernels = parse_kernel(one), parse_kernel(other)
    except InvalidKernel:
        return
    assume(one != other)
    module = StoredModule(
        name="m",
        uid="u",
        generation=1,
        spec=SHARING,
        status={},
        finalizers=(),
        is_deleting=False,
        resource_version=1,
    )
    read = Catalog().read(module)
    first, second = (read.demand(kernel, CONFIGURATION) for kernel in kernels)
    assert isinstance(first, Wanted)
    assert isinstance(second, Wanted)
    assert (first.request.target == second.request.target) is (normalize(one) == normalize(other))
    assert first.request.key != second.request.key
    assert first.request.recipe != second.request.recipe

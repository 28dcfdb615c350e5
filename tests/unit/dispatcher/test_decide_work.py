"""What happens to the work of one module on one cluster: one row per rule, then the rules as properties."""

import copy
from typing import Any

import pytest
from fleet_values import (
    BUILDING,
    FAILED,
    KERNELS,
    NAME,
    NO_MATCH,
    a_cluster,
    a_module,
    decided,
    mappings_of,
    posted,
    raw_spec,
    served_by,
    shipment,
    somebody_elses_work,
    without_loader,
)
from hypothesis import given
from hypothesis import strategies as st

from services.dispatcher.assemble import Shipment
from services.dispatcher.decide import (
    Cluster,
    Create,
    Decision,
    Delete,
    KernelOutcome,
    Leave,
    Module,
    Patch,
    Pending,
    Why,
    decide,
    decide_stray,
)
from shared.domain.kernel import KernelVersion
from shared.domain.work import MODULE_LABEL, ObservedWork

A, B, C = KERNELS[:3]
Outcomes = dict[KernelVersion, KernelOutcome]
DELETING = "2026-01-01T00:00:00Z"
UNREADABLE = Module(name=NAME, uid="uid-m", spec=None, is_deleting=False)


def gone(work: ObservedWork) -> ObservedWork:
    fields = {name: getattr(work, name) for name in ObservedWork.__slots__}
    return ObservedWork(**{**fields, "is_gone": True})


# ------------------------------------------------------------------------------------------- a work that is not there


@pytest.mark.parametrize(
    ("outcomes", "ships"),
    [
        pytest.param({A: shipment(A)}, [A], id="one-ready"),
        pytest.param({A: shipment(A), B: BUILDING}, [A], id="first-post-does-not-wait-for-all-kernels"),
        pytest.param({A: shipment(A), B: FAILED}, [A], id="one-failed-kernel-does-not-hold-back-the-others"),
        pytest.param({A: NO_MATCH, B: shipment(B)}, [B], id="unmatched-kernel-is-skipped"),
        pytest.param({A: shipment(A), B: shipment(B, 2)}, [A, B], id="all-ready"),
    ],
)
def test_a_work_is_first_posted_when_one_kernel_is_ready(outcomes: Outcomes, ships: list[str]) -> None:
    decision = decided(outcomes)
    assert isinstance(decision, Create)
    assert [mapping["literal"] for mapping in mappings_of(decision.work)] == ships


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        pytest.param({A: BUILDING}, Why.NOTHING_READY, id="nothing-ready"),
        pytest.param({A: FAILED, B: NO_MATCH}, Why.NOTHING_READY, id="the-only-match-failed"),
        pytest.param({A: NO_MATCH, B: NO_MATCH}, Why.NO_MATCH, id="upstream-would-ship-empty-mappings"),
        pytest.param({}, Why.NO_KERNELS, id="no-kernels-known"),
    ],
)
def test_nothing_is_posted_without_a_ready_kernel(outcomes: Outcomes, why: Why) -> None:
    assert decided(outcomes) == Leave(why=why)


def test_a_work_that_is_gone_is_posted_again() -> None:
    outcomes: Outcomes = {A: shipment(A)}
    assert isinstance(decided(outcomes, gone(posted([shipment(A)]))), Create)


def test_a_gone_work_that_was_somebody_elses_does_not_count() -> None:
    assert isinstance(decided({A: shipment(A)}, gone(somebody_elses_work())), Create)


@pytest.mark.parametrize("kernels", [(), (A,)])
def test_a_module_without_loader_is_shipped_as_it_is(kernels: tuple[KernelVersion, ...]) -> None:
    """Upstream's hub crashes on it; a device plugin needs no kernel."""
    module = a_module(without_loader())
    decision = decided(dict.fromkeys(kernels, NO_MATCH), module=module, cluster=a_cluster(*kernels))
    assert isinstance(decision, Create)
    (manifest,) = decision.work["spec"]["workload"]["manifests"]
    assert manifest["spec"] == without_loader()["moduleSpec"]


# ----------------------------------------------------------------------------------------------- a work that is there


def test_an_equal_work_is_not_written() -> None:
    work = posted([shipment(A)])
    assert decided({A: shipment(A)}, work, posted_hash=work.observed_hash) == Leave(why=Why.UP_TO_DATE)


def test_a_work_that_somebody_edited_is_put_right() -> None:
    work = posted([shipment(A)])
    assert isinstance(decided({A: shipment(A)}, work, posted_hash="as we wrote it"), Patch)


def test_a_work_whose_writing_was_not_noted_is_written_once_more() -> None:
    """Without `posted_hash` nobody can tell whether somebody edited it since."""
    assert isinstance(decided({A: shipment(A)}, posted([shipment(A)]), posted_hash=None), Patch)


@pytest.mark.parametrize(
    ("served", "outcomes", "ships"),
    [
        pytest.param([A], {A: shipment(A, 2)}, {A}, id="new-digest"),
        pytest.param([A], {A: shipment(A), B: shipment(B)}, {A, B}, id="new-kernel-joins"),
        pytest.param([A], {A: shipment(A, 2), B: BUILDING}, {A}, id="building-kernel-joins-later"),
        pytest.param([A], {A: shipment(A, 2), B: FAILED}, {A}, id="failed-kernel-holds-nothing-back"),
        pytest.param([A, B], {A: shipment(A)}, {A}, id="kernel-left-the-cluster"),
        pytest.param([A, B], {A: shipment(A), B: NO_MATCH}, {A}, id="user-took-the-mapping-out"),
        pytest.param([A], {B: shipment(B)}, {B}, id="all-nodes-moved-on"),
    ],
)
def test_a_work_is_patched_once_its_served_kernels_are_ready(
    served: list[KernelVersion], outcomes: Outcomes, ships: set[str]
) -> None:
    work = posted(map(shipment, served))
    decision = decided(outcomes, work, posted_hash=work.observed_hash)
    assert isinstance(decision, Patch)
    assert decision.uid == "uid-w"
    assert served_by(decision.work) == ships


@pytest.mark.parametrize(
    ("served", "outcomes", "why"),
    [
        pytest.param([A, B], {A: shipment(A, 2), B: BUILDING}, Why.HELD_BACK, id="one-served-kernel-builds"),
        pytest.param([A, B], {A: shipment(A, 2), B: FAILED}, Why.HELD_BACK, id="one-served-kernel-failed"),
        pytest.param([A], {A: BUILDING, B: shipment(B)}, Why.HELD_BACK, id="another-kernel-is-no-substitute"),
        pytest.param([A], {A: BUILDING}, Why.NOTHING_READY, id="nothing-ready"),
        pytest.param([A], {A: NO_MATCH}, Why.NO_MATCH, id="no-empty-work-is-shipped"),
        pytest.param([A], {}, Why.NO_KERNELS, id="claim-is-empty"),
    ],
)
def test_a_working_kernel_is_never_taken_away(
    served: list[KernelVersion], outcomes: Outcomes, why: Why
) -> None:
    assert decided(outcomes, posted(map(shipment, served))) == Leave(why=why)


def test_a_module_of_another_uid_takes_its_work_over() -> None:
    """Deleted and made again: the owner reference would let Kubernetes collect the work."""
    work = posted([shipment(A)])
    module = a_module(uid="uid-new")
    decision = decided({A: shipment(A)}, work, module=module, posted_hash=work.observed_hash)
    assert isinstance(decision, Patch)
    assert decision.work["metadata"]["ownerReferences"][0]["uid"] == "uid-new"


# -------------------------------------------------------------------------------------------- whose work, and for whom

EDGE = raw_spec(selector={"edge": "yes"})
OURS = posted([shipment(A)])
LEAVING = posted([shipment(A)], deletionTimestamp=DELETING)


@pytest.mark.parametrize(
    ("module", "cluster", "work", "expected"),
    [
        pytest.param(a_module(), a_cluster(A), somebody_elses_work(), Why.FOREIGN, id="no-label"),
        pytest.param(a_module(), a_cluster(A), somebody_elses_work("x"), Why.FOREIGN, id="other-label"),
        pytest.param(
            a_module(is_deleting=True), None, somebody_elses_work(), Why.FOREIGN, id="even-at-the-end"
        ),
        pytest.param(a_module(), a_cluster(A), LEAVING, Why.BEING_DELETED, id="deleting-work"),
        pytest.param(a_module(is_deleting=True), None, LEAVING, Why.BEING_DELETED, id="not-deleted-twice"),
        pytest.param(
            a_module(), a_cluster(A, is_deleting=True), OURS, Why.BEING_DELETED, id="deleting-cluster"
        ),
        pytest.param(
            a_module(), a_cluster(A, is_deleting=True), None, Why.BEING_DELETED, id="nor-made-again"
        ),
        pytest.param(UNREADABLE, a_cluster(A), OURS, Why.INVALID_MODULE, id="unreadable-changes-nothing"),
        pytest.param(UNREADABLE, None, OURS, Why.INVALID_MODULE, id="unreadable-deletes-nothing"),
        pytest.param(UNREADABLE, a_cluster(A), None, Why.INVALID_MODULE, id="unreadable-posts-nothing"),
        pytest.param(a_module(EDGE), a_cluster(A), None, Why.NOT_SELECTED, id="not-selected"),
        pytest.param(a_module(), None, None, Why.NOT_SELECTED, id="no-such-cluster"),
        pytest.param(a_module(is_deleting=True), a_cluster(A), None, Why.NOT_SELECTED, id="module-goes"),
    ],
)
def test_left_alone(
    module: Module, cluster: Cluster | None, work: ObservedWork | None, expected: Why
) -> None:
    assert outcome_for(module, cluster, work) == Leave(why=expected)


@pytest.mark.parametrize(
    ("module", "cluster"),
    [
        pytest.param(a_module(is_deleting=True), a_cluster(A), id="module-is-deleted"),
        pytest.param(a_module(is_deleting=True, spec=None), a_cluster(A), id="unreadable-module-is-deleted"),
        pytest.param(a_module(EDGE), a_cluster(A), id="cluster-is-deselected"),
        pytest.param(a_module(EDGE), a_cluster(A, is_deleting=True), id="deselected-while-it-goes"),
        pytest.param(a_module(), None, id="cluster-is-gone"),
    ],
)
def test_deleted(module: Module, cluster: Cluster | None) -> None:
    assert outcome_for(module, cluster, OURS) == Delete(uid="uid-w")


def outcome_for(module: Module, cluster: Cluster | None, work: ObservedWork | None) -> Decision:
    return decide(module=module, cluster=cluster, outcomes={A: shipment(A)}, work=work, posted_hash=None)


# --------------------------------------------------------------------------------------------- works of another name


@pytest.mark.parametrize(
    ("owner", "cluster", "expected"),
    [
        pytest.param(a_module(), a_cluster(A), Leave(why=Why.FOREIGN), id="selected"),
        pytest.param(a_module(EDGE), a_cluster(A), Delete(uid="uid-w"), id="deselected"),
        pytest.param(a_module(), None, Delete(uid="uid-w"), id="cluster-is-gone"),
        pytest.param(a_module(is_deleting=True), a_cluster(A), Delete(uid="uid-w"), id="module-is-deleted"),
        pytest.param(
            a_module(is_deleting=True, spec=None), None, Delete(uid="uid-w"), id="unreadable-and-deleted"
        ),
        pytest.param(UNREADABLE, None, Leave(why=Why.FOREIGN), id="unreadable-deletes-nothing"),
    ],
)
def test_a_work_with_our_label_under_another_name(
    owner: Module, cluster: Cluster | None, expected: Decision
) -> None:
    """Upstream owns works by the label alone (`internal/manifestwork`, GarbageCollect)."""
    assert decide_stray(owner=owner, cluster=cluster, work=OURS) == expected


@pytest.mark.parametrize("work", [LEAVING, gone(OURS)])
def test_one_that_goes_already_is_left(work: ObservedWork) -> None:
    decision = decide_stray(owner=a_module(is_deleting=True), cluster=None, work=work)
    assert decision == Leave(why=Why.BEING_DELETED)


# ---------------------------------------------------------------------------------------------------------- properties

some_kernels = st.sets(st.sampled_from(KERNELS))


def outcomes_for(kernels: set[KernelVersion]) -> st.SearchStrategy[Outcomes]:
    return st.fixed_dictionaries(
        {
            kernel: st.sampled_from([shipment(kernel, 1), shipment(kernel, 2), BUILDING, FAILED, NO_MATCH])
            for kernel in sorted(kernels)
        }
    )


some_outcomes = some_kernels.flatmap(outcomes_for)
some_works = some_kernels.map(lambda kernels: posted(map(shipment, sorted(kernels))))


def is_waiting(outcome: KernelOutcome) -> bool:
    return isinstance(outcome, Pending) and outcome.is_match


@given(some_kernels, some_outcomes, st.sampled_from([None, "edited"]))
def test_no_patch_drops_a_served_kernel_that_still_runs_and_that_a_mapping_takes(
    served: set[KernelVersion], outcomes: Outcomes, posted_hash: str | None
) -> None:
    decision = decided(outcomes, posted(map(shipment, sorted(served))), posted_hash=posted_hash)
    assert isinstance(decision, Patch | Leave)
    if isinstance(decision, Patch):
        still_needed = {
            kernel
            for kernel in served & outcomes.keys()
            if isinstance(outcomes[kernel], Shipment) or is_waiting(outcomes[kernel])
        }
        assert still_needed <= served_by(decision.work)


@given(some_kernels, some_outcomes)
def test_what_is_ready_is_shipped_as_soon_as_no_served_kernel_waits(
    served: set[KernelVersion], outcomes: Outcomes
) -> None:
    """The other half of the rule: holding back everything for ever would keep it, too."""
    ready = {kernel for kernel, outcome in outcomes.items() if isinstance(outcome, Shipment)}
    decision = decided(outcomes, posted(map(shipment, sorted(served))), posted_hash="edited")
    if ready and not any(is_waiting(outcomes[kernel]) for kernel in served & outcomes.keys()):
        assert isinstance(decision, Patch)
        assert served_by(decision.work) == ready
    else:
        assert isinstance(decision, Leave)


@given(
    some_outcomes,
    some_works,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["foreign", "unlabelled", "deleting"]),
    st.booleans(),
)
def test_foreign_and_deleting_works_are_always_left(
    outcomes: Outcomes,
    work: ObservedWork,
    module_goes: bool,
    cluster_goes: bool,
    kind: str,
    is_readable: bool,
) -> None:
    fields: dict[str, Any] = {name: getattr(work, name) for name in ObservedWork.__slots__}
    changes: dict[str, dict[str, Any]] = {
        "foreign": {"module": "somebody"},
        "unlabelled": {"module": None},
        "deleting": {"is_deleting": True},
    }
    module = (
        a_module(is_deleting=module_goes) if is_readable else a_module(is_deleting=module_goes, spec=None)
    )
    decision = decided(
        outcomes,
        ObservedWork(**{**fields, **changes[kind]}),
        module=module,
        cluster=a_cluster(*outcomes, is_deleting=cluster_goes),
    )
    assert decision == Leave(why=Why.BEING_DELETED if kind == "deleting" else Why.FOREIGN)


@given(some_outcomes, st.none() | some_works)
def test_a_decision_is_a_function_of_its_input_and_leaves_it_as_it_was(
    outcomes: Outcomes, work: ObservedWork | None
) -> None:
    raw = raw_spec(build={"dockerfileConfigMap": {"name": "df"}}, inTreeModulesToRemove=["old"])
    module, before = a_module(raw), copy.deepcopy((raw, outcomes, work))
    first = decided(outcomes, work, module=module)
    assert decided(outcomes, work, module=module) == first
    assert (raw, outcomes, work) == before


@given(some_outcomes)
def test_after_our_write_there_is_nothing_to_write(outcomes: Outcomes) -> None:
    decision = decided(outcomes)
    if isinstance(decision, Create):
        ready = [outcome for outcome in outcomes.values() if isinstance(outcome, Shipment)]
        work = posted(ready)
        assert decided(outcomes, work, posted_hash=work.observed_hash) == Leave(why=Why.UP_TO_DATE)
        assert decision.work["metadata"]["labels"] == {MODULE_LABEL: NAME}

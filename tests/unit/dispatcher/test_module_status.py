"""The status of a module: upstream's counters, and conditions that say what is wrong and where."""

from typing import Any

import pytest
from fleet_values import BUILDING, FAILED, KERNELS, NO_MATCH, as_stored, posted, shipment, somebody_elses_work

from services.dispatcher.decide import Create, Decision, Delete, KernelOutcome, Leave, Patch, Pending, Why
from services.dispatcher.status import MAX_MESSAGE, MAX_NAMED, Place, Survey, module_status
from shared.domain.kernel import KernelVersion
from shared.domain.work import MODULE_LABEL, ObservedWork, observe_work

A, B = KERNELS[:2]
Json = dict[str, Any]
NOW = "2026-03-01T00:00:00Z"
DONE = Leave(why=Why.UP_TO_DATE)


def place(decision: Decision = DONE, *, cluster: str = "c1", work: ObservedWork | None = None) -> Place:
    return Place(cluster=cluster, decision=decision, work=work)


def survey(
    *places: Place, outcomes: dict[KernelVersion, KernelOutcome] | None = None, **fields: Any
) -> Survey:
    return Survey(**{"generation": 4, "places": places, "outcomes": outcomes or {}, **fields})


def status_of(given: Survey, previous: Json | None = None, now: str = NOW) -> Json:
    return module_status(given, previous=previous or {}, now=now)


def conditions_of(given: Survey) -> dict[str, Json]:
    return {condition["type"]: condition for condition in status_of(given)["conditions"]}


def work_with(**conditions: str) -> ObservedWork:
    listed = [{"type": kind, "status": status} for kind, status in conditions.items()]
    metadata = {"name": "m", "namespace": "c1", "labels": {MODULE_LABEL: "m"}}
    return observe_work(as_stored({"metadata": metadata, "spec": {}, "status": {"conditions": listed}}))


# ------------------------------------------------------------------------------------------------------------ counters


@pytest.mark.parametrize(
    ("works", "counters"),
    [
        pytest.param([], (0, 0, 0), id="clusters-that-still-build-are-not-counted"),
        pytest.param([work_with(Applied="True", Degraded="False")], (1, 1, 0), id="applied"),
        pytest.param([work_with(Applied="True", Degraded="True")], (1, 1, 1), id="both"),
        pytest.param([work_with(Applied="False"), work_with(Applied="Unknown")], (2, 0, 0), id="neither"),
        pytest.param([work_with(Available="True"), work_with()], (2, 0, 0), id="available-is-not-read"),
    ],
)
def test_counters(works: list[ObservedWork], counters: tuple[int, int, int]) -> None:
    status = status_of(survey(*(place(work=work) for work in works)))
    assert (status["numberDesired"], status["numberApplied"], status["numberDegraded"]) == counters


def test_a_place_without_work_or_with_one_that_is_gone_counts_nothing() -> None:
    work = observe_work(as_stored({"metadata": {"name": "m", "namespace": "c1"}}), is_gone=True)
    assert status_of(survey(place(work=None), place(work=work)))["numberDesired"] == 0


def test_somebody_elses_work_is_not_counted() -> None:
    """Upstream counts works of its label only."""
    work = somebody_elses_work()
    assert status_of(survey(place(Leave(why=Why.FOREIGN), work=work)))["numberDesired"] == 0


# ---------------------------------------------------------------------------------------------------------- conditions

READY: dict[KernelVersion, KernelOutcome] = {A: shipment(A)}
CREATE, PATCH = Create(work={}), Patch(uid="u", work={})


@pytest.mark.parametrize(
    ("given", "ready", "artifacts", "dispatched", "degraded"),
    [
        pytest.param(
            survey(place(), outcomes=READY),
            ("True", "Ready"),
            ("True", "AllReady"),
            ("True", "AllDispatched"),
            ("False", "AsExpected"),
            id="all-is-well",
        ),
        pytest.param(
            survey(),
            ("True", "Ready"),
            ("True", "AllReady"),
            ("True", "NoClusterSelected"),
            ("False", "AsExpected"),
            id="no-cluster",
        ),
        pytest.param(
            survey(place(CREATE), place(PATCH, cluster="c2"), outcomes=READY),
            ("False", "Dispatching"),
            ("True", "AllReady"),
            ("False", "Dispatching"),
            ("False", "AsExpected"),
            id="being-written",
        ),
        pytest.param(
            survey(place(Leave(why=Why.NOTHING_READY)), outcomes={A: BUILDING}),
            ("False", "Building"),
            ("False", "Building"),
            ("False", "NothingReady"),
            ("False", "AsExpected"),
            id="building",
        ),
        pytest.param(
            survey(place(), outcomes={A: shipment(A), B: BUILDING}),
            ("False", "Building"),
            ("False", "Building"),
            ("True", "AllDispatched"),
            ("False", "AsExpected"),
            id="one-kernel-joins-later",
        ),
        pytest.param(
            survey(place(Leave(why=Why.HELD_BACK)), outcomes={A: FAILED, B: BUILDING}),
            ("False", "BuildFailed"),
            ("False", "BuildFailed"),
            ("False", "HeldBack"),
            ("True", "BuildFailed"),
            id="a-failure-before-what-is-under-way",
        ),
        pytest.param(
            survey(place(Leave(why=Why.NO_MATCH)), outcomes={A: NO_MATCH}),
            ("False", "NoMatchingKernel"),
            ("True", "AllReady"),
            ("False", "NoMatchingKernel"),
            ("True", "NoMatchingKernel"),
            id="no-match-upstream-ships-empty-mappings",
        ),
        pytest.param(
            survey(place(Leave(why=Why.NO_KERNELS))),
            ("False", "ClaimMissing"),
            ("True", "AllReady"),
            ("False", "ClaimMissing"),
            ("False", "AsExpected"),
            id="no-claim-upstream-says-nothing",
        ),
        pytest.param(
            survey(place(Leave(why=Why.FOREIGN))),
            ("False", "WorkNotOurs"),
            ("True", "AllReady"),
            ("False", "WorkNotOurs"),
            ("True", "WorkNotOurs"),
            id="foreign-work",
        ),
        pytest.param(
            survey(place(), outcomes=READY, bad_kernels=[("c1", "kernel 'x': no")]),
            ("False", "InvalidKernel"),
            ("True", "AllReady"),
            ("True", "AllDispatched"),
            ("True", "InvalidKernel"),
            id="bad-kernel-is-reported-the-others-go-on",
        ),
        pytest.param(
            survey(
                place(Leave(why=Why.INVALID_MODULE)),
                problem=("InvalidModule", "spec.x: no"),
                is_readable=False,
            ),
            ("False", "InvalidModule"),
            ("Unknown", "InvalidModule"),
            ("Unknown", "InvalidModule"),
            ("True", "InvalidModule"),
            id="unreadable",
        ),
        pytest.param(
            survey(place(), outcomes=READY, problem=("InvalidPattern", "spec.x: no")),
            ("False", "InvalidPattern"),
            ("True", "AllReady"),
            ("True", "AllDispatched"),
            ("True", "InvalidPattern"),
            id="broken-pattern-that-no-kernel-reaches",
        ),
    ],
)
def test_conditions(
    given: Survey,
    ready: tuple[str, str],
    artifacts: tuple[str, str],
    dispatched: tuple[str, str],
    degraded: tuple[str, str],
) -> None:
    found = {kind: (one["status"], one["reason"]) for kind, one in conditions_of(given).items()}
    assert found == {
        "Ready": ready,
        "ArtifactsReady": artifacts,
        "Dispatched": dispatched,
        "Degraded": degraded,
    }


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (survey(place(Leave(why=Why.NO_KERNELS))), "Dispatched", ["c1", "KMM_MANAGED=1"]),
        (survey(place(Leave(why=Why.FOREIGN))), "Degraded", ["c1", "rename"]),
        (survey(outcomes={A: FAILED, B: BUILDING}), "Degraded", ["1 of 2", A, "the compiler said no"]),
        (survey(outcomes={A: FAILED, B: BUILDING}), "ArtifactsReady", ["2 of 2", A]),
        (
            survey(bad_kernels=[("c7", "kernel 'x'"), ("c8", "y")]),
            "Degraded",
            ["2 entries", "c7", "kernel 'x'"],
        ),
        (
            survey(problem=("R", "spec.selector: missing"), is_readable=False),
            "Degraded",
            ["spec.selector: missing"],
        ),
        (survey(place(CREATE), place(cluster="c2")), "Dispatched", ["1 of 2"]),
    ],
)
def test_messages_say_what_and_where(given: Survey, kind: str, words: list[str]) -> None:
    message = conditions_of(given)[kind]["message"]
    assert [word for word in words if word not in message] == []


def test_the_most_frequent_failure_is_named() -> None:
    outcomes: dict[KernelVersion, KernelOutcome] = dict.fromkeys(KERNELS[:3], FAILED)
    outcomes[KERNELS[3]] = Pending(reason="AnotherFailure", message="rare")
    degraded = conditions_of(survey(outcomes=outcomes))["Degraded"]
    assert degraded["reason"] == "BuildFailed"
    assert "4 of 4" in degraded["message"]


def test_a_message_names_a_few_and_counts_all() -> None:
    places = [place(Leave(why=Why.FOREIGN), cluster=f"c{number:04}") for number in range(3500)]
    message = conditions_of(survey(*places))["Dispatched"]["message"]
    assert "3500 of 3500" in message
    assert f"and {3500 - MAX_NAMED} more" in message
    assert len(message) < 500


def test_a_message_is_cut() -> None:
    outcomes: dict[KernelVersion, KernelOutcome] = {A: Pending(reason="BuildFailed", message="x" * 100_000)}
    assert len(conditions_of(survey(outcomes=outcomes))["Degraded"]["message"]) == MAX_MESSAGE


def test_the_order_of_places_and_kernels_changes_nothing() -> None:
    whys = (Why.NO_MATCH, Why.NO_KERNELS, Why.NO_KERNELS)
    places = [place(Leave(why=why), cluster=f"c{number}") for number, why in enumerate(whys)]
    outcomes: dict[KernelVersion, KernelOutcome] = {A: FAILED, B: NO_MATCH}
    other = survey(*reversed(places), outcomes=dict(reversed(outcomes.items())))
    assert status_of(survey(*places, outcomes=outcomes)) == status_of(other)


@pytest.mark.xfail(strict=True, reason="a work that is still to be deleted counts as one that is current")
def test_a_work_that_is_still_to_be_deleted_is_not_current() -> None:
    given = survey(place(), place(Delete(uid="u"), cluster="c2", work=posted([shipment(A)], cluster="c2")))
    assert "2 clusters have their current ManifestWork" not in conditions_of(given)["Dispatched"]["message"]


# --------------------------------------------------------------------------------------------------- times, generation


def test_every_condition_bears_the_generation_that_was_looked_at() -> None:
    status = status_of(survey(generation=9))
    assert status["observedGeneration"] == 9
    assert {condition["observedGeneration"] for condition in status["conditions"]} == {9}


def test_a_transition_time_moves_only_with_the_status() -> None:
    before = status_of(survey(outcomes={A: BUILDING}))
    signing = Pending(reason="Signing", message="is being signed")
    later = status_of(survey(outcomes={A: signing}), before, "2026-03-02T00:00:00Z")
    done = status_of(survey(outcomes=READY), later, "2026-03-03T00:00:00Z")
    times = [
        {one["type"]: one["lastTransitionTime"] for one in status["conditions"]}
        for status in (before, later, done)
    ]
    assert [time["ArtifactsReady"] for time in times] == [NOW, NOW, "2026-03-03T00:00:00Z"]
    assert [time["Degraded"] for time in times] == [NOW, NOW, NOW]


@pytest.mark.parametrize("previous", [{}, {"conditions": None}, {"conditions": []}, {"numberDesired": 3}])
def test_a_first_status(previous: Json) -> None:
    assert {one["lastTransitionTime"] for one in status_of(survey(), previous)["conditions"]} == {NOW}


def test_an_unchanged_survey_gives_the_stored_status() -> None:
    """Whoever writes the status compares: equal means no write."""
    given = survey(place(work=work_with(Applied="True")), outcomes=READY)
    stored = status_of(given)
    assert status_of(given, stored, "2027-01-01T00:00:00Z") == stored

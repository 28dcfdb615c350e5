"""The status of a module: upstream's counters, and conditions that say what is wrong and where."""

from typing import Any

import pytest
from fleet_values import BUILDING, FAILED, KERNELS, NO_MATCH, as_stored, posted, shipment, somebody_elses_work

from services.dispatcher.decide import Create, Decision, Delete, KernelOutcome, Leave, Patch, Pending, Why
from services.dispatcher.report import Phase, Place
from services.dispatcher.status import MAX_ATTENTION, MAX_MESSAGE, MAX_NAMED, Survey, module_status
from shared.domain.kernel import KernelVersion
from shared.domain.work import MODULE_LABEL, ObservedWork, observe_work

A, B = KERNELS[:2]
Json = dict[str, Any]
NOW = "2026-03-01T00:00:00Z"
DONE = Leave(why=Why.UP_TO_DATE)


def place(
    decision: Decision = DONE,
    *kernels: KernelVersion,
    cluster: str = "c1",
    work: ObservedWork | None = None,
    **fields: Any,
) -> Place:
    return Place(cluster=cluster, decision=decision, work=work, kernels=kernels, **fields)


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
FAILING = place(Leave(why=Why.NOTHING_READY), A, B)
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
            survey(place(Leave(why=Why.NOTHING_READY), A), outcomes={A: BUILDING}),
            ("False", "Building"),
            ("False", "Building"),
            ("False", "Building"),
            ("False", "AsExpected"),
            id="building",
        ),
        pytest.param(
            survey(place(DONE, A, B), outcomes={A: shipment(A), B: BUILDING}),
            ("False", "Building"),
            ("False", "Building"),
            ("True", "AllDispatched"),
            ("False", "AsExpected"),
            id="one-kernel-joins-later",
        ),
        pytest.param(
            survey(place(Leave(why=Why.HELD_BACK), A, B), outcomes={A: FAILED, B: BUILDING}),
            ("False", "BuildFailed"),
            ("False", "BuildFailed"),
            ("False", "BuildFailed"),
            ("True", "BuildFailed"),
            id="a-failure-before-what-is-under-way",
        ),
        pytest.param(
            survey(place(Leave(why=Why.NO_MATCH), A), outcomes={A: NO_MATCH}),
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
            survey(place(DONE, A, bad_kernels=("kernel 'x': no",)), outcomes=READY),
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
    del found["Available"]  # has its own table
    assert found == {
        "Ready": ready,
        "ArtifactsReady": artifacts,
        "Dispatched": dispatched,
        "Degraded": degraded,
    }


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (survey(place(Leave(why=Why.NO_KERNELS), has_claim=False)), "Dispatched", ["c1", "KMM_MANAGED=1"]),
        (
            survey(place(Leave(why=Why.NO_KERNELS))),
            "Dispatched",
            ["c1", "names none", "what was posted stays"],
        ),
        (survey(place(Leave(why=Why.FOREIGN))), "Degraded", ["c1", "rename"]),
        (survey(FAILING, outcomes={A: FAILED, B: BUILDING}), "Degraded", ["c1", A, "the compiler said no"]),
        (survey(outcomes={A: FAILED, B: BUILDING}), "ArtifactsReady", ["2 of 2", A]),
        (
            survey(place(cluster="c7", bad_kernels=("kernel 'x'",)), place(cluster="c8", bad_kernels=("y",))),
            "Degraded",
            ["2 of 2", "c7", "c8", "kernel 'x'"],
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
    conditions = conditions_of(survey(place(Leave(why=Why.NOTHING_READY), *KERNELS[:4]), outcomes=outcomes))
    assert conditions["Degraded"]["reason"] == conditions["ArtifactsReady"]["reason"] == "BuildFailed"
    assert "4 of 4" in conditions["ArtifactsReady"]["message"]


def test_clusters_in_trouble_for_other_reasons_are_counted_too() -> None:
    conditions = conditions_of(
        survey(
            place(Leave(why=Why.FOREIGN), cluster="c1"),
            place(Leave(why=Why.NO_MATCH), A, cluster="c2"),
            place(cluster="c3"),
            outcomes={A: NO_MATCH},
        )
    )
    assert conditions["Degraded"]["message"].startswith(f"2 of 3 clusters are in trouble; c2 (kernel {A}): ")


def test_a_message_names_a_few_and_counts_all() -> None:
    places = [place(Leave(why=Why.FOREIGN), cluster=f"c{number:04}") for number in range(3500)]
    message = conditions_of(survey(*places))["Dispatched"]["message"]
    assert "3500 of 3500" in message
    assert f"and {3500 - MAX_NAMED} more" in message
    assert len(message) < 500
    assert len(status_of(survey(*places))["attention"]) == MAX_ATTENTION


def test_a_message_is_cut() -> None:
    outcomes: dict[KernelVersion, KernelOutcome] = {A: Pending(reason="BuildFailed", message="x" * 100_000)}
    assert len(conditions_of(survey(place(DONE, A), outcomes=outcomes))["Degraded"]["message"]) == MAX_MESSAGE


def test_the_order_of_places_and_kernels_changes_nothing() -> None:
    whys = (Why.NO_MATCH, Why.NO_KERNELS, Why.NO_KERNELS)
    places = [place(Leave(why=why), cluster=f"c{number}") for number, why in enumerate(whys)]
    outcomes: dict[KernelVersion, KernelOutcome] = {A: FAILED, B: NO_MATCH}
    other = survey(*reversed(places), outcomes=dict(reversed(outcomes.items())))
    assert status_of(survey(*places, outcomes=outcomes)) == status_of(other)


def test_a_work_that_is_still_to_be_deleted_is_not_current() -> None:
    given = survey(place(), place(Delete(uid="u"), cluster="c2", work=posted([shipment(A)], cluster="c2")))
    assert "2 clusters have their current ManifestWork" not in conditions_of(given)["Dispatched"]["message"]


# ------------------------------------------------------------------------------------------------------- the spoke side


def applied(status: str, *, problem: str = "", **counted: int) -> ObservedWork:
    """A work of ours that an agent has looked at; `counted` are moduleLoader's counters."""
    values = [
        {"name": f"moduleLoader.{name}", "fieldValue": {"type": "Integer", "integer": number}}
        for name, number in counted.items()
    ]
    manifest = {
        "conditions": [
            {"type": "Applied", "status": status, "reason": "AppliedManifestFailed", "message": problem}
        ],
        "statusFeedback": {"values": values},
    }
    metadata = {"name": "m", "namespace": "c1", "labels": {MODULE_LABEL: "m"}}
    conditions = [{"type": "Applied", "status": status, "reason": "r"}]
    stored = {"conditions": conditions, "resourceStatus": {"manifests": [manifest]}}
    return observe_work(as_stored({"metadata": metadata, "spec": {}, "status": stored}))


FORBIDDEN = 'modules.kmm.sigs.x-k8s.io "m" is forbidden: User "system:serviceaccount:a:b" cannot get resource "modules"'


@pytest.mark.parametrize(
    ("work", "phase", "available"),
    [
        pytest.param(None, Phase.DISPATCHED, ("False", "NotAppliedYet"), id="just-posted"),
        pytest.param(applied("Unknown"), Phase.DISPATCHED, ("False", "NotAppliedYet"), id="unknown"),
        pytest.param(applied("True"), Phase.AVAILABLE, ("True", "Available"), id="zero-arrives-as-no-value"),
        pytest.param(
            applied("True", desiredNumber=3, availableNumber=2),
            Phase.LOADING,
            ("False", "Loading"),
            id="loading",
        ),
        pytest.param(
            applied("True", desiredNumber=3, availableNumber=3),
            Phase.AVAILABLE,
            ("True", "Available"),
            id="loaded",
        ),
        pytest.param(
            applied("False", problem=FORBIDDEN), Phase.FAILED, ("False", "SpokeForbidden"), id="rights"
        ),
        pytest.param(
            applied("False", problem='the server doesn\'t have a resource type "Module"'),
            Phase.FAILED,
            ("False", "KmmNotInstalledOnSpoke"),
            id="no-kmm",
        ),
        pytest.param(
            applied("False", problem='namespaces "spoke" not found'),
            Phase.FAILED,
            ("False", "SpokeNamespaceMissing"),
            id="no-namespace",
        ),
        pytest.param(
            applied("False", problem='Module.kmm.sigs.x-k8s.io "m" is invalid: spec'),
            Phase.FAILED,
            ("False", "SpokeRefused"),
            id="schema",
        ),
        pytest.param(
            applied("False", problem="?"), Phase.FAILED, ("False", "NotApplied"), id="something-else"
        ),
    ],
)
def test_what_the_agent_says(work: ObservedWork | None, phase: Phase, available: tuple[str, str]) -> None:
    given = survey(place(DONE, A, work=work), outcomes=READY)
    status = status_of(given)
    assert {name for name, count in status["phases"].items() if count} == {phase.value}
    found = conditions_of(given)
    assert (found["Available"]["status"], found["Available"]["reason"]) == available
    assert found["Dispatched"]["status"] == "True"
    is_failed = phase is Phase.FAILED
    assert (found["Degraded"]["status"] == "True") is is_failed
    assert [one["reason"] for one in status["attention"]] == ([available[1]] if is_failed else [])


def test_a_module_that_is_gone_from_the_spoke_is_not_available() -> None:
    """Its last feedback stays in the work until the agent puts it back (OCM: at its resync)."""
    work = work_with(Applied="True", Available="False")
    found = conditions_of(survey(place(DONE, A, work=work), outcomes=READY))
    assert (found["Available"]["status"], found["Available"]["reason"]) == ("False", "ModuleMissing")


def test_feedback_is_summed_up_over_the_fleet() -> None:
    one = applied("True", nodesMatchingSelectorNumber=4, desiredNumber=3, availableNumber=3)
    two = applied("True", nodesMatchingSelectorNumber=2, desiredNumber=2)
    status = status_of(survey(place(DONE, work=one), place(DONE, cluster="c2", work=two)))
    assert status["moduleLoader"] == {
        "nodesMatchingSelectorNumber": 6,
        "desiredNumber": 5,
        "availableNumber": 3,
    }
    assert status["dra"]["desiredNumber"] == 0


def test_a_claim_that_went_away_is_stale_and_said() -> None:
    given = survey(place(DONE, A, has_claim=False), outcomes=READY)
    assert conditions_of(given)["Degraded"]["reason"] == "ClaimStale"
    assert status_of(given)["attention"][0]["reason"] == "ClaimStale"


def test_a_claim_that_nears_its_limit_needs_attention_but_has_not_failed() -> None:
    given = survey(place(DONE, A, claim_is_near_limit=True), outcomes=READY)
    assert conditions_of(given)["Ready"]["status"] == "True"
    assert status_of(given)["attention"][0]["reason"] == "ClaimNearLimit"


def test_a_refused_write_is_said() -> None:
    given = survey(place(CREATE, A, refusal=("ClusterNamespaceMissing", "namespace 'c1'")), outcomes=READY)
    assert conditions_of(given)["Dispatched"]["reason"] == "ClusterNamespaceMissing"
    assert conditions_of(given)["Degraded"]["reason"] == "ClusterNamespaceMissing"


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

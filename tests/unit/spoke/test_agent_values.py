"""The stand-in agent's pure parts: conditions, feedback, aggregated rights, what is stored on an update."""

from __future__ import annotations

from typing import Any

import pytest
from spoke.aggregation import aggregated_rules
from spoke.conditions import (
    condition,
    find,
    manifest_statuses,
    with_condition,
    work_applied,
    work_available,
)
from spoke.feedback import configuration, feedback
from spoke.manifests import updated

EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
META: dict[str, Any] = {
    "ordinal": 0,
    "group": "",
    "version": "v1",
    "kind": "ConfigMap",
    "resource": "configmaps",
    "name": "a",
}


def rules(**paths: str) -> list[dict[str, Any]]:
    return [{"type": "JSONPaths", "jsonPaths": [{"name": key, "path": path} for key, path in paths.items()]}]


@pytest.mark.parametrize(
    ("status", "is_fresh", "time"),
    [
        pytest.param("True", False, EARLY, id="the same status keeps its time"),
        pytest.param("False", False, LATE, id="another status gets a new time"),
        pytest.param("True", True, LATE, id="another generation gets a new time where asked for"),
    ],
)
def test_transition_times(status: str, is_fresh: bool, time: str) -> None:
    before = with_condition([], condition("Applied", "True", "Yes", observedGeneration=1), now=EARLY)

    after = with_condition(
        before, condition("Applied", status, "Yes", observedGeneration=2), now=LATE, is_fresh=is_fresh
    )

    (entry,) = after
    assert (entry["lastTransitionTime"], entry["observedGeneration"]) == (time, 2)


def test_applying_keeps_other_conditions_and_feedback_of_the_same_object_alone() -> None:
    available: dict[str, Any] = {**condition("Available", "True", "ResourceAvailable")}
    available["lastTransitionTime"] = EARLY
    old: dict[str, Any] = {"resourceMeta": META, "conditions": [available], "statusFeedback": {"values": [1]}}
    gone = {**old, "resourceMeta": {**META, "name": "b"}}

    (status,) = manifest_statuses([gone, old], [({**META, "ordinal": 3}, None)], generation=2, now=LATE)

    assert status["resourceMeta"]["ordinal"] == 3
    assert status["statusFeedback"] == {"values": [1]}
    assert find(status["conditions"], "Available") == available


def test_a_work_is_applied_when_all_is_and_available_when_all_is_there() -> None:
    def manifest(applied: str, available: str) -> dict[str, Any]:
        return {"conditions": [condition("Applied", applied, "x"), condition("Available", available, "x")]}

    def states(*manifests: dict[str, Any]) -> tuple[str, str]:
        return work_applied(manifests, 1)["reason"], work_available(manifests, 1)["reason"]

    good, lost, unknown = manifest("True", "True"), manifest("True", "False"), manifest("False", "Unknown")
    assert states(good) == ("AppliedManifestWorkComplete", "ResourcesAvailable")
    assert states(good, lost) == ("AppliedManifestWorkComplete", "ResourcesNotAvailable")
    assert states(good, unknown) == ("AppliedManifestWorkFailed", "ResourcesStatusUnknown")
    assert states(unknown, lost) == ("AppliedManifestWorkFailed", "ResourcesNotAvailable")
    assert "1 of 2" in work_available([unknown, lost], 1)["message"]


def test_feedback_is_typed_and_absent_values_are_left_out() -> None:
    item = {"status": {"count": 0, "name": "", "ready": False, "nothing": None}}
    paths = {key: f".status.{key}" for key in ("count", "name", "ready", "nothing", "missing")}

    values, said = feedback(rules(**paths, deep=".status.count.deeper"), item)

    assert values == [
        {"name": "count", "fieldValue": {"type": "Integer", "integer": 0}},
        {"name": "name", "fieldValue": {"type": "String", "string": ""}},
        {"name": "ready", "fieldValue": {"type": "Boolean", "boolean": False}},
    ]
    assert (said["status"], said["reason"]) == ("True", "StatusFeedbackSynced")


@pytest.mark.parametrize("path", [".status.list", ".status.fraction", "status.count", ".status.list[0]"])
def test_feedback_that_cannot_be_sent_is_an_error_and_the_rest_is_sent(path: str) -> None:
    item = {"status": {"list": [1], "fraction": 0.5, "count": 1}}

    values, said = feedback(rules(bad=path, good=".status.count"), item)

    assert [value["name"] for value in values] == ["good"]
    assert (said["status"], said["reason"]) == ("False", "StatusFeedbackSyncFailed")


def test_the_first_configuration_of_an_object_counts_and_names_may_have_stars() -> None:
    configs = [
        {"resourceIdentifier": {"group": "", "resource": "secrets", "name": "*"}, "feedbackRules": [1]},
        {"resourceIdentifier": {"group": "", "resource": "configmaps", "name": "a*"}, "feedbackRules": [2]},
        {"resourceIdentifier": {"resource": "configmaps", "name": "a"}, "feedbackRules": [3]},
    ]

    assert configuration({"spec": {"manifestConfigs": configs}}, META)["feedbackRules"] == [2]
    assert configuration({"spec": {"manifestConfigs": configs}}, {**META, "name": "b"}) == {}


def test_an_update_keeps_what_others_wrote_into_the_metadata_and_replaces_the_rest() -> None:
    stored = {
        "metadata": {
            "name": "a",
            "uid": "1",
            "labels": {"theirs": "1", "ours": "old"},
            "finalizers": ["hold"],
        },
        "spec": {"old": True, "default": 1},
        "status": {"count": 1},
    }
    manifest = {"metadata": {"name": "a", "labels": {"ours": "new"}}, "spec": {"new": True}, "status": {}}

    assert updated(stored, manifest) == {
        "metadata": {
            "name": "a",
            "uid": "1",
            "labels": {"theirs": "1", "ours": "new"},
            "finalizers": ["hold"],
        },
        "spec": {"new": True},
        "status": {"count": 1},
    }


def test_an_aggregated_role_has_the_rules_of_labelled_roles_once_each() -> None:
    def role(name: str, *verbs: str, labelled: bool = True) -> dict[str, Any]:
        labels = {"aggregate": "true"} if labelled else {}
        return {"metadata": {"name": name, "labels": labels}, "rules": [{"verbs": [verb]} for verb in verbs]}

    selectors = [{"matchLabels": {"aggregate": "true"}}]
    whole = {**role("whole", "stale"), "aggregationRule": {"clusterRoleSelectors": selectors}}

    found = aggregated_rules(
        whole, [whole, role("b", "get"), role("a", "list", "get"), role("c", "*", labelled=False)]
    )

    assert found == [{"verbs": ["list"]}, {"verbs": ["get"]}]

"""Events: told when a reason changes, once."""

from dataclasses import replace
from typing import Any

import pytest
from fleet_values import stored_module

from services.dispatcher.module_events import EVENT_NAMESPACE, ModuleEvent, event_body, events_between

Json = dict[str, Any]


def status(**conditions: tuple[str, str]) -> Json:
    return {
        "conditions": [
            {"type": kind, "status": state, "reason": reason, "message": f"about {reason}"}
            for kind, (state, reason) in conditions.items()
        ]
    }


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param({}, {}, [], id="nothing"),
        pytest.param(
            {},
            status(Degraded=("True", "BuildFailed"), Ready=("False", "BuildFailed")),
            [("BuildFailed", True)],
            id="a-failure-is-told-once",
        ),
        pytest.param(
            status(Degraded=("True", "BuildFailed")),
            status(Degraded=("True", "BuildFailed")),
            [],
            id="no-repetition",
        ),
        pytest.param(
            status(Degraded=("True", "BuildFailed")),
            status(Degraded=("True", "SignFailed")),
            [("SignFailed", True)],
            id="another-failure",
        ),
        pytest.param(
            status(Degraded=("True", "BuildFailed"), Ready=("False", "BuildFailed")),
            status(Degraded=("False", "AsExpected"), Ready=("True", "Ready")),
            [("Recovered", False), ("Ready", False)],
            id="recovered",
        ),
        pytest.param({}, status(Degraded=("False", "AsExpected")), [], id="never-failed"),
        pytest.param({}, status(ArtifactsReady=("False", "Building")), [("Building", False)], id="building"),
        pytest.param({}, status(ArtifactsReady=("False", "BuildPending")), [], id="waiting-is-no-news"),
        pytest.param({}, status(Available=("False", "NotAppliedYet")), [], id="not-available-is-no-news"),
    ],
)
def test_what_is_told(before: Json, after: Json, told: list[tuple[str, bool]]) -> None:
    assert [(event.reason, event.is_warning) for event in events_between(before, after)] == told


def test_the_same_event_has_the_same_name() -> None:
    event = ModuleEvent(reason="BuildFailed", message="no", is_warning=True)
    one = event_body(stored_module(), event, now="2026-01-01T00:00:00Z")
    two = event_body(stored_module(), event, now="2026-01-02T00:00:00Z")
    other = event_body(stored_module(uid="another"), event, now="2026-01-01T00:00:00Z")
    more = replace(event, message="no, on two clusters")
    assert event_body(stored_module(), more, now="2026-01-01T00:00:00Z")["metadata"] == one["metadata"]
    assert one["metadata"] == two["metadata"] != other["metadata"]
    assert one["metadata"]["namespace"] == EVENT_NAMESPACE
    assert one["type"] == "Warning"

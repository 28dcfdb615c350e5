"""What has not come to rest is named."""

from dataclasses import replace
from typing import Any

import pytest

from chaos.calm import Need, Sight, differences, to_retry
from chaos.inputs import Cluster, Inputs, Module, ModuleKind

INPUTS = Inputs(
    clusters={"c1": Cluster(label="east", kernels=("k1",)), "c2": Cluster(label="west", kernels=("k2",))},
    modules={
        "m1": Module(kind=ModuleKind.BUILT, select="east", version=1),
        "m2": Module(kind=ModuleKind.BROKEN, select="west", version=1),
    },
)


def module(ready: str, reason: str, *, observed: int = 1) -> dict[str, Any]:
    condition = {
        "type": "Ready",
        "status": ready,
        "reason": reason,
        "message": "",
        "observedGeneration": observed,
    }
    return {"metadata": {"generation": 1}, "status": {"conditions": [condition]}}


def need(
    module: str, kernel: str, state: str, *, digest: str | None = None, reason: str | None = None
) -> Need:
    return Need(module=module, kernel=kernel, state=state, digest=digest, reason=reason)


CALM = Sight(
    works={("m1", "c1"): {"k1": "registry/m1@sha256:1"}},
    permissions=frozenset({"c1", "c2"}),
    others=frozenset({("c1", "foreign")}),
    modules={"m1": module("True", "Ready"), "m2": module("False", "BuildFailed")},
    needs=[need("m1", "k1", "ready", digest="sha256:1"), need("m2", "k2", "failed", reason="BuildFailed")],
    unfinished=[],
    outbox=0,
    queued=0,
)


def test_a_hub_at_rest() -> None:
    assert differences(INPUTS, CALM) == []
    assert to_retry(INPUTS, CALM) == []


def test_permissions_of_a_cluster_that_went_are_left_to_ocm() -> None:
    assert differences(INPUTS, replace(CALM, permissions=frozenset({"c1", "c2", "gone"}))) == []


@pytest.mark.parametrize(
    ("sight", "words"),
    [
        (replace(CALM, works={}), "work c1/m1 is missing"),
        (replace(CALM, works={**CALM.works, ("m2", "c2"): {}}), "work c2/m2 is left over"),
        (replace(CALM, works={("m1", "c1"): {}}), "serves [], not ['k1']"),
        (replace(CALM, works={("m1", "c1"): {"k1": "registry/m1@sha256:0"}}), "its artifact is sha256:1"),
        (replace(CALM, modules={**CALM.modules, "m3": module("True", "Ready")}), "module m3 is left over"),
        (replace(CALM, modules={"m2": CALM.modules["m2"]}), "module m1 is missing"),
        (replace(CALM, permissions=frozenset({"c1"})), "permissions of c2"),
        (replace(CALM, others=frozenset()), "somebody else's work"),
        (replace(CALM, unfinished=["m1:k1 building"]), "m1:k1 building"),
        (replace(CALM, outbox=2), "2 rows are in the outbox"),
        (replace(CALM, queued=3), "3 messages are queued"),
        (
            replace(CALM, modules={**CALM.modules, "m2": module("False", "Other")}),
            "does not show BuildFailed",
        ),
        (replace(CALM, modules={**CALM.modules, "m1": module("True", "R", observed=0)}), "no current status"),
        (replace(CALM, modules={**CALM.modules, "m1": module("False", "Wait")}), "m1 is not ready: Wait"),
        (replace(CALM, needs=[CALM.needs[0]]), "m2 cannot be built, and its artifacts have not failed"),
    ],
)
def test_what_is_not_at_rest_is_named(sight: Sight, words: str) -> None:
    found = differences(INPUTS, sight)
    assert any(words in problem for problem in found), found


def test_what_faults_made_fail_is_tried_again_and_what_cannot_be_built_is_not() -> None:
    failed = replace(CALM, needs=[need("m1", "k1", "failed", reason="BuildFailed"), CALM.needs[1]])
    assert to_retry(INPUTS, failed) == ["m1"]

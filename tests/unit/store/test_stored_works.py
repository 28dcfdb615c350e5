"""ManifestWorks: as the API server answers them, as values, and as rows."""

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest

from shared.domain.artifact import ArtifactState, Stage
from shared.domain.lease import stage_of
from shared.domain.work import (
    HASH_ANNOTATION,
    IMAGES_ANNOTATION,
    MAX_PROBLEM,
    MODULE_LABEL,
    ObservedWork,
    WorkCondition,
    observe_work,
)
from shared.store.work_rows import _row, _work

Json = dict[str, Any]


def work(
    *, spec: Any = None, status: Json | None = None, labels: Json | None = None, **metadata: Any
) -> Json:
    return {
        "metadata": {
            "name": "m",
            "namespace": "c1",
            "uid": "u",
            "resourceVersion": "12",
            "generation": 3,
            "labels": {MODULE_LABEL: "m"} if labels is None else labels,
            "annotations": {HASH_ANNOTATION: "h", IMAGES_ANNOTATION: "{}"},
            **metadata,
        },
        "spec": {} if spec is None else spec,
        "status": status or {},
    }


def module_with(*mappings: Json, **changes: Any) -> Json:
    loader = {"container": {"kernelMappings": list(mappings)}}
    return {
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1",
        "kind": "Module",
        "spec": {"moduleLoader": loader},
        **changes,
    }


def shipping(*manifests: Json) -> Json:
    return {"workload": {"manifests": list(manifests)}}


OWNER = {"kind": "ManagedClusterModule", "name": "m", "uid": "uid-m", "controller": True}

FULL = work(
    spec=shipping(module_with({"literal": "5.1.1", "containerImage": "a@sha256:1"})),
    status={
        "conditions": [
            {"type": "Applied", "status": "True", "reason": "R", "message": "m", "observedGeneration": 3},
        ],
        "resourceStatus": {
            "manifests": [
                {
                    "statusFeedback": {
                        "values": [
                            {
                                "name": "moduleLoader.desiredNumber",
                                "fieldValue": {"type": "Integer", "integer": 2},
                            },
                            {"name": "s", "fieldValue": {"type": "String", "string": "x"}},
                            {"name": "b", "fieldValue": {"type": "Boolean", "boolean": False}},
                            {"name": "j", "fieldValue": {"type": "JsonRaw", "jsonRaw": "{}"}},
                            {"name": "none", "fieldValue": {}},
                        ]
                    }
                }
            ]
        },
    },
)


def test_everything_that_is_read() -> None:
    observed = observe_work(FULL)
    assert observed == ObservedWork(
        cluster="c1",
        name="m",
        uid="u",
        resource_version=12,
        module="m",
        content_hash="h",
        observed_hash=observed.observed_hash,
        served={"5.1.1": "a@sha256:1"},
        conditions={"Applied": WorkCondition(status="True", reason="R", message="m", observed_generation=3)},
        feedback={"moduleLoader.desiredNumber": 2, "s": "x", "b": False, "j": "{}", "none": None},
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({"conditions": None}, {}, id="none"),
        pytest.param(
            {"conditions": [{"type": "A", "status": "True"}]}, {"A": "True"}, id="without-generation"
        ),
        pytest.param(
            {"conditions": [{"type": "A", "status": "True", "observedGeneration": 2}]}, {}, id="stale"
        ),
        pytest.param(
            {"conditions": [{"type": "A", "status": "False", "observedGeneration": 4}]},
            {"A": "False"},
            id="newer",
        ),
    ],
)
def test_a_condition_of_an_older_generation_is_not_trusted(given: Json, expected: Json) -> None:
    found = observe_work(work(status=given)).conditions
    assert {kind: condition.status for kind, condition in found.items()} == expected


@pytest.mark.parametrize(
    ("spec", "served"),
    [
        pytest.param({}, {}, id="empty"),
        pytest.param({"workload": None}, {}, id="null"),
        pytest.param(shipping(module_with()), {}, id="no-mapping"),
        pytest.param(
            shipping(module_with({"regexp": ".", "containerImage": "a:1"})),
            {},
            id="pattern-serves-nobody-known",
        ),
        pytest.param(shipping(module_with({"literal": "k"})), {"k": ""}, id="inherited-image"),
        pytest.param(
            shipping(module_with({"literal": "k", "containerImage": "a:1"}, kind="Pod")), {}, id="other-kind"
        ),
        pytest.param(shipping({"kind": "Module", "spec": {"moduleLoader": None}}), {}, id="no-loader"),
        pytest.param(
            shipping(
                module_with({"literal": "k", "containerImage": "a"}),
                module_with({"literal": "l", "containerImage": "b"}),
            ),
            {"k": "a", "l": "b"},
            id="several-manifests",
        ),
    ],
)
def test_kernels_that_a_work_serves(spec: Json, served: dict[str, str]) -> None:
    assert observe_work(work(spec=spec)).served == served


def applied(status: str, **fields: str) -> Json:
    return {
        "conditions": [
            {"type": "Available", "status": "False"},
            {"type": "Applied", "status": status, **fields},
        ]
    }


@pytest.mark.parametrize(
    ("manifests", "problem"),
    [
        pytest.param([], "", id="nothing-said"),
        pytest.param([applied("True", message="fine")], "", id="applied"),
        pytest.param(
            [applied("False", reason="R", message="namespaces not found")], "namespaces not found", id="why"
        ),
        pytest.param(
            [applied("False", reason="AppliedManifestFailed")], "AppliedManifestFailed", id="reason-only"
        ),
        pytest.param(
            [applied("True"), applied("False", message="b"), applied("False", message="c")], "b", id="first"
        ),
        pytest.param([applied("False", message="x" * 9999)], "x" * MAX_PROBLEM, id="cut"),
    ],
)
def test_what_the_agent_could_not_apply(manifests: list[Json], problem: str) -> None:
    assert observe_work(work(status={"resourceStatus": {"manifests": manifests}})).problem == problem


STRANGE = [
    pytest.param({"kind": "Module", "spec": "text"}, id="spec"),
    pytest.param({"kind": "Module", "spec": {"moduleLoader": "text"}}, id="loader"),
    pytest.param({"kind": "Module", "spec": {"moduleLoader": {"container": ["x"]}}}, id="container"),
    pytest.param(
        {"kind": "Module", "spec": {"moduleLoader": {"container": {"kernelMappings": "xy"}}}}, id="mappings"
    ),
    pytest.param(
        {"kind": "Module", "spec": {"moduleLoader": {"container": {"kernelMappings": ["x"]}}}}, id="mapping"
    ),
    pytest.param(module_with({"literal": ["k"], "containerImage": "a"}), id="literal"),
]


@pytest.mark.parametrize("manifest", STRANGE)
def test_a_manifest_of_somebody_elses_module_kind_may_look_as_it_likes(manifest: Json) -> None:
    """A work may carry any `kind: Module` of any group; the hub's API server knows none of their schemas."""
    assert observe_work(work(spec=shipping(manifest), labels={})).served == {}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda it: it["spec"].update(executor={}), id="spec"),
        pytest.param(lambda it: it["metadata"]["labels"].clear(), id="label"),
        pytest.param(lambda it: it["metadata"]["annotations"].pop(HASH_ANNOTATION), id="hash"),
        pytest.param(lambda it: it["metadata"]["annotations"].pop(IMAGES_ANNOTATION), id="images"),
        pytest.param(lambda it: it["metadata"].update(ownerReferences=[OWNER]), id="owner"),
    ],
)
def test_an_edit_of_what_we_write_is_seen(change: Any) -> None:
    edited = copy.deepcopy(FULL)
    change(edited)
    assert observe_work(edited).observed_hash != observe_work(FULL).observed_hash


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda it: it["metadata"].update(resourceVersion="99", finalizers=["x"]), id="metadata"),
        pytest.param(lambda it: it["metadata"]["annotations"].update(other="x"), id="other-annotation"),
        pytest.param(
            lambda it: it["metadata"].update(ownerReferences=[{**OWNER, "kind": "Team"}]), id="other-owner"
        ),
        pytest.param(lambda it: it.update(status={}), id="status"),
    ],
)
def test_what_others_write_is_no_edit(change: Any) -> None:
    edited = copy.deepcopy(FULL)
    change(edited)
    assert observe_work(edited).observed_hash == observe_work(FULL).observed_hash


@pytest.mark.parametrize(
    ("metadata", "is_deleting"), [({}, False), ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, True)]
)
def test_deletion(metadata: Json, is_deleting: bool) -> None:
    assert observe_work(work(**metadata)).is_deleting is is_deleting
    assert observe_work(work(**metadata), is_gone=True).is_gone


@pytest.mark.parametrize(
    ("labels", "owner", "module"),
    [
        pytest.param({}, OWNER, "m", id="label-taken-off"),
        pytest.param({MODULE_LABEL: "other"}, OWNER, "m", id="label-changed"),
        pytest.param({}, {**OWNER, "kind": "Team"}, None, id="another-kind-of-owner"),
        pytest.param({}, {**OWNER, "name": "other"}, None, id="owned-by-a-module-of-another-name"),
        pytest.param({MODULE_LABEL: "other"}, {**OWNER, "name": "other"}, "other", id="stray"),
    ],
)
def test_a_work_belongs_to_the_module_that_owns_it_whatever_became_of_its_label(
    labels: Json, owner: Json, module: str | None
) -> None:
    assert observe_work(work(labels=labels, ownerReferences=[owner])).module == module


def test_a_work_without_labels_and_annotations_is_nobodys() -> None:
    observed = observe_work(work(labels={}, annotations=None))
    assert (observed.module, observed.content_hash) == (None, None)


@pytest.mark.parametrize("posted", [None, "hash"])
@pytest.mark.parametrize("given", [FULL, work(), work(labels={}, deletionTimestamp="2026-01-01T00:00:00Z")])
def test_a_work_is_read_back_from_its_row(given: Json, posted: str | None) -> None:
    observed = observe_work(given)
    row = json.loads(json.dumps(_row(observed, posted=posted)))
    assert row["posted_hash"] == posted
    assert _work(SimpleNamespace(**row)) == observed


@pytest.mark.parametrize(
    ("state", "stage"),
    [
        (ArtifactState.WANTED, Stage.BUILD),
        (ArtifactState.BUILDING, Stage.BUILD),
        (ArtifactState.BUILT, Stage.SIGN),
        (ArtifactState.SIGNING, Stage.SIGN),
    ],
)
def test_whom_an_overdue_artifact_is_announced_to(state: ArtifactState, stage: Stage) -> None:
    assert stage_of(state) is stage

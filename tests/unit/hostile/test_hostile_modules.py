"""Any spec, from the bytes of the API server to the status that goes back: a decision, and a status that says why."""

import dataclasses
import json
import time
from typing import Any

import msgspec
import orjson
import pytest
from hostile_budget import budget
from hostile_values import JSON, TEXTS, encoded, mutated, nested
from hypothesis import example, given
from hypothesis import strategies as st

from services.dispatcher.assemble import Owner, patch_of
from services.dispatcher.catalog import Catalog, names_used, outcome_of
from services.dispatcher.decide import Cluster, Create, Decision, Leave, Module, Patch, Pending, Why, decide
from services.dispatcher.demand import Configuration, SecretFact, Wanted
from services.dispatcher.module_events import event_body, events_between
from services.dispatcher.permissions import PERMISSIONS_WORK
from services.dispatcher.report import Place
from services.dispatcher.spoke_problem import problem_of
from services.dispatcher.status import Survey, module_status
from services.dispatcher.stored import StoredModule
from services.watcher.facts import module_row
from services.watcher.kinds import ManagedClusterModule
from shared.api.managed_cluster_module import ManagedClusterModuleStatus
from shared.domain.artifact import (
    Artifact,
    ArtifactState,
    request_from_json,
    request_to_json,
)
from shared.domain.canonical import storable
from shared.domain.kernel import KernelVersion
from shared.domain.work import ObservedWork, observe_work

Json = dict[str, Any]
KERNELS = tuple(
    KernelVersion(kernel)
    for kernel in ("5.14.0-570.el9.x86_64", "6.1.0-rt~x.aarch64+64k", "4.1.2", "k" * 100 + ".1.2")
)
CONFIGURATION = Configuration(
    namespace="kmm",
    dockerfiles={"df": "FROM scratch\n", "empty": None},
    secrets={"s": SecretFact(version="1", keys=frozenset({"key", "cert", ".dockerconfigjson"}))},
)
NAME = "m"
SPEC: Json = {
    "spokeNamespace": "kmm-modules",
    "selector": {"a": "b"},
    "moduleSpec": {
        "selector": {"role": "gpu"},
        "imageRepoSecret": {"name": "s"},
        "imageRebuildTriggerGeneration": 1,
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "moduleLoader": {
            "container": {
                "modprobe": {"moduleName": "kmod", "dirName": "/opt", "parameters": ["a=1"]},
                "containerImage": "r.example/k:${KERNEL_FULL_VERSION}",
                "registryTLS": {"insecure": False, "insecureSkipTLSVerify": True},
                "inTreeModulesToRemove": ["x"],
                "build": {
                    "dockerfileConfigMap": {"name": "df"},
                    "buildArgs": [{"name": "A", "value": "b"}],
                    "secrets": [{"name": "s"}],
                },
                "sign": {
                    "keySecret": {"name": "s"},
                    "certSecret": {"name": "s"},
                    "filesToSign": ["/opt/lib/modules/${KERNEL_FULL_VERSION}/k.ko"],
                },
                "kernelMappings": [
                    {"literal": "4.1.2", "containerImage": "r.example/k:literal"},
                    {"regexp": "^5[.]", "sign": {"unsignedImage": "r.example/u:1"}},
                    {"regexp": ".*"},
                ],
            }
        },
        "devicePlugin": {
            "container": {"image": "r.example/p:1"},
            "volumes": [{"hostPath": {"path": "/dev"}}],
        },
    },
}


def stored(spec: Any, status: Any = None, generation: int = 3) -> StoredModule | None:
    """The module as it is after the API server's JSON, the watcher and Postgres; None if it cannot even be decoded."""
    metadata = {"name": NAME, "uid": "u", "resourceVersion": "5", "generation": generation}
    content = encoded({"metadata": metadata, "spec": spec, "status": status})
    try:
        module = msgspec.json.decode(content, type=ManagedClusterModule)
    except (ValueError, RecursionError):
        return None  # the reflector says so and leaves it as it was last known
    row = json.loads(json.dumps(module_row(module)))
    assert "\\u0000" not in json.dumps(row)
    return StoredModule(**row | {"finalizers": tuple(row["finalizers"])})


def judged(module: StoredModule, work: ObservedWork | None = None) -> tuple[Decision, Json]:
    """The decision and the status for a cluster that runs all kernels, with every image that is wanted ready."""
    catalog = Catalog()
    read = catalog.read(module)
    labels = {"a": "b"}
    cluster = Cluster(name="c", labels=labels, kernels=KERNELS, has_claim=True, is_deleting=False)
    outcomes: dict[KernelVersion, Any] = {}
    if read.module.spec is not None:
        names_used(read.module.spec)
        for kernel in KERNELS:
            need = read.demand(kernel, CONFIGURATION)
            known = {}
            if isinstance(need, Wanted):
                again = request_from_json(json.loads(json.dumps(request_to_json(need.request))))
                assert again.key == need.request.key
                known = {need.request.key: ready(need)}
            outcomes[kernel] = outcome_of(need, known)
    else:
        outcomes = {kernel: Pending(reason="InvalidModule", message="cannot be read") for kernel in KERNELS}
    decision = decide(module=read.module, cluster=cluster, outcomes=outcomes, work=work, posted_hash=None)
    places = [Place(cluster="c", decision=decision, work=work, kernels=KERNELS)]
    survey = Survey(
        generation=module.generation,
        places=places,
        outcomes=outcomes,
        problem=read.problem,
        is_readable=read.module.spec is not None,
    )
    return decision, module_status(survey, previous=module.status, now="2026-01-01T00:00:00Z")


def ready(need: Wanted) -> Artifact:
    return Artifact(
        key=need.request.key,
        request=need.request,
        state=ArtifactState.READY,
        attempts=1,
        source=None,
        digest="sha256:" + "a" * 64,
        signed_by=None,
        reason=None,
        message=None,
    )


def assert_sendable(decision: Decision) -> None:
    """What is to be written can be written: JSON in UTF-8, of numbers that fit."""
    match decision:
        case Create(work=work):
            orjson.dumps(work)
        case Patch(work=work, uid=uid):
            orjson.dumps(patch_of(work, uid=uid))
        case Leave(why=why):
            assert why.value


def assert_sayable(status: Json, previous: Any) -> None:
    """The status is one that the CRD takes, and Events about it can be made."""
    content = orjson.dumps(status)
    read = ManagedClusterModuleStatus.from_manifest(json.loads(content))
    assert read.conditions is not None
    assert {condition.type for condition in read.conditions} >= {"Ready", "Degraded", "ArtifactsReady"}
    assert all(condition.message for condition in read.conditions)
    for event in events_between(previous, status):
        orjson.dumps(event_body(StoredModule(**_ROW), event, now="2026-01-01T00:00:00Z"))
    ready_one = next(condition for condition in read.conditions if condition.type == "Ready")
    assert ready_one.reason
    assert len(content) < 256 * 1024


_ROW: Json = {
    "name": NAME,
    "uid": "u",
    "generation": 1,
    "spec": {},
    "status": {},
    "finalizers": (),
    "is_deleting": False,
    "resource_version": 1,
}


@budget(300)
@given(spec=mutated(SPEC) | mutated(SPEC, replacement=TEXTS) | JSON)
@example(spec=None)
@example(spec={})
@example(spec=SPEC | {"x": nested(90)})
@example(spec=SPEC | {"x": nested(101)})
@example(spec=SPEC | {"x": 2**70})
def test_any_spec_gets_a_decision_and_a_status_with_a_reason(spec: Any) -> None:
    module = stored(spec)
    if module is None:
        return
    decision, status = judged(module)
    assert_sendable(decision)
    assert_sayable(status, {})


def test_the_spec_that_the_others_are_made_from_is_shipped() -> None:
    module = stored(SPEC)
    assert module is not None
    decision, status = judged(module)
    assert isinstance(decision, Create)
    assert (
        len(
            decision.work["spec"]["workload"]["manifests"][0]["spec"]["moduleLoader"]["container"][
                "kernelMappings"
            ]
        )
        > 1
    )
    assert_sayable(status, {})


@budget(150)
@given(
    status=JSON,
    other=mutated({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "x"}]}),
)
def test_a_status_that_somebody_wrote_is_replaced(status: Any, other: Any) -> None:
    for previous in (status, other):
        module = stored(SPEC, status=previous)
        if module is not None:
            _, made = judged(module)
            made["conditions"] = [
                one | {"lastTransitionTime": "2026-01-01T00:00:00Z"} for one in made["conditions"]
            ]
            assert_sayable(made, module.status)


WORK: Json = {
    "metadata": {
        "name": NAME,
        "namespace": "c",
        "uid": "w",
        "resourceVersion": "7",
        "generation": 2,
        "labels": {"kmm.node.kubernetes.io/managedclustermodule.name": NAME},
        "annotations": {},
        "ownerReferences": [{"kind": "ManagedClusterModule", "name": NAME, "uid": "u", "controller": True}],
    },
    "spec": {
        "workload": {
            "manifests": [
                {
                    "kind": "Module",
                    "spec": {
                        "moduleLoader": {
                            "container": {"kernelMappings": [{"literal": "4.1.2", "containerImage": "r/k@x"}]}
                        }
                    },
                }
            ]
        }
    },
    "status": {
        "conditions": [
            {
                "type": "Applied",
                "status": "False",
                "reason": "R",
                "message": "is forbidden: User",
                "observedGeneration": 2,
            },
            {"type": "Available", "status": "True", "reason": "R", "message": "m"},
        ],
        "resourceStatus": {
            "manifests": [
                {
                    "conditions": [{"type": "Applied", "status": "False", "message": "no"}],
                    "statusFeedback": {
                        "values": [
                            {
                                "name": "moduleLoader.desiredNumber",
                                "fieldValue": {"type": "Integer", "integer": 3},
                            }
                        ]
                    },
                }
            ]
        },
    },
}


@budget(300)
@given(spec=mutated(WORK["spec"]) | JSON, status=mutated(WORK["status"]) | JSON)
@example(
    spec={},
    status={
        "resourceStatus": {
            "manifests": [
                {
                    "statusFeedback": {
                        "values": [{"name": "dra.desiredNumber", "fieldValue": {"integer": 10**30}}]
                    }
                }
            ]
        }
    },
)
@example(spec=[], status="x")
def test_any_work_gets_a_decision_and_a_status_with_a_reason(spec: Any, status: Any) -> None:
    work = observe_work(WORK | storable({"spec": spec, "status": status}))
    json.dumps(storable([work.served, work.feedback, work.problem, [*work.conditions]]))
    problem = problem_of(work)
    assert problem is None or (problem.reason.isalpha() and len(problem.message) < 1000)
    module = stored(SPEC)
    assert module is not None
    decision, made = judged(module, work)
    assert_sendable(decision)
    assert_sayable(storable(made), {})


@pytest.mark.parametrize("depth", [100, 500, 950])
def test_a_deep_work_is_observed(depth: int) -> None:
    deep = {"workload": {"manifests": nested(depth)}}
    assert observe_work(WORK | {"spec": deep, "status": {"conditions": nested(depth)}}).cluster == "c"


def test_counts_of_spokes_never_outgrow_the_status() -> None:
    values = [
        {"name": f"{part}.{counter}", "fieldValue": {"integer": number}}
        for part, counter, number in [
            ("moduleLoader", "desiredNumber", 2**62),
            ("devicePlugin", "desiredNumber", -5),
            ("dra", "desiredNumber", True),
        ]
    ]
    applied = {"type": "Applied", "status": "True"}
    status = {
        "conditions": [applied],
        "resourceStatus": {"manifests": [{"statusFeedback": {"values": values}}]},
    }
    module = stored(SPEC)
    assert module is not None
    _, made = judged(module, observe_work(WORK | {"status": status}))
    assert made["moduleLoader"]["desiredNumber"] == 2**31 - 1
    assert made["devicePlugin"]["desiredNumber"] == made["dra"]["desiredNumber"] == 0
    assert_sayable(made, {})


def test_a_spec_that_is_nested_too_deep_says_so() -> None:
    module = stored(SPEC | {"x": nested(101)})
    assert module is not None
    _, status = judged(module)
    degraded = next(one for one in status["conditions"] if one["type"] == "Degraded")
    assert degraded["reason"] == "InvalidModule"
    assert "nested" in degraded["message"]


PATTERNS = [
    "(\\pL{1,50}){1,19}",
    "(((((a?){50}){50}){10}){2})",
    "[[:word:]]{1,1000}",
    "(?i)" + "|".join(f"x{number}y" for number in range(150)),
    "(x+x+)+y",
    "^(.*)*$",
    ".{0,1000}.{0,1000}",
    "\\pN{500}\\pL{500}",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_very_many_hostile_patterns_cost_little(pattern: str) -> None:
    """As many mappings as the CRD allows; a module is read, and asked for all kernels, in seconds."""
    mappings = [{"regexp": f"{pattern}{number}", "containerImage": "r.example/k:1"} for number in range(1024)]
    spec = json.loads(json.dumps(SPEC))
    spec["moduleSpec"]["moduleLoader"]["container"]["kernelMappings"] = mappings
    module = stored(spec)
    assert module is not None
    started = time.process_time()
    decision, status = judged(module)
    assert time.process_time() - started < 4
    assert_sendable(decision)
    assert_sayable(status, {})


def test_ten_thousand_mappings_of_every_kind_are_walked() -> None:
    kinds = [
        lambda number: {"literal": f"5.{number}.0-1.x86_64"},
        lambda number: {"regexp": f"^6[.]{number}[.]"},
        lambda number: {"literal": f"7.{number}", "regexp": f"^8.{number}$"},
        lambda number: {},
    ]
    mappings = [kinds[number % 4](number) | {"containerImage": "${A:-x}"} for number in range(9_999)]
    spec = json.loads(json.dumps(SPEC))
    spec["moduleSpec"]["moduleLoader"]["container"]["kernelMappings"] = [*mappings, {"literal": "4.1.2"}]
    module = stored(spec)
    assert module is not None
    started = time.process_time()
    decision, status = judged(module)
    assert time.process_time() - started < 10
    assert_sendable(decision)
    assert_sayable(status, {})


@budget(100)
@given(name=st.text(max_size=5), uid=st.text(max_size=5))
def test_an_owner_of_any_name_has_a_work(name: str, uid: str) -> None:
    module = Module(name=name, uid=uid, spec=None, is_deleting=False)
    assert decide(module=module, cluster=None, outcomes={}, work=None, posted_hash=None)
    assert Owner(name=name, uid=uid)


def test_a_module_with_the_name_of_our_own_works_ships_nothing_and_says_so() -> None:
    module = stored(SPEC)
    assert module is not None
    reserved = dataclasses.replace(module, name=PERMISSIONS_WORK)
    decision, status = judged(reserved)
    assert decision == Leave(why=Why.INVALID_MODULE)
    degraded = next(one for one in status["conditions"] if one["type"] == "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "InvalidModule")
    assert PERMISSIONS_WORK in degraded["message"]


def test_one_is_told_from_many() -> None:
    module = stored(SPEC)
    assert module is not None
    _, status = judged(module)
    messages = {one["type"]: one["message"] for one in status["conditions"]}
    assert messages["Available"].startswith("1 of 1 cluster is behind; ")
    assert messages["Dispatched"].startswith("1 of 1 cluster waits; ")

"""The work agent's rights: given ahead, kept until the last module is gone, never taken from somebody else."""

import itertools

import pytest
from fleet_values import as_stored

from services.dispatcher.assemble import patch_of
from services.dispatcher.decide import Cluster, Create, Decision, Delete, Leave, Module, Patch, Why
from services.dispatcher.main import DispatcherSettings
from services.dispatcher.permissions import (
    PERMISSIONS_WORK,
    Grant,
    assemble_permissions,
    decide_permissions,
    namespaces_needed,
)
from shared.domain.module import parse_module
from shared.domain.work import ObservedWork, observe_work
from shared.runtime.settings import read_settings

CLUSTER = Cluster(name="c1", labels={"a": "b"}, kernels=(), has_claim=True, is_deleting=False)
GOING = Cluster(name="c1", labels={"a": "b"}, kernels=(), has_claim=True, is_deleting=True)


def stored(*namespaces: str, **changes: object) -> ObservedWork:
    work = as_stored(assemble_permissions("c1", namespaces))
    work["metadata"].update(changes)
    return observe_work(work)


def decided(
    work: ObservedWork | None = None,
    *,
    cluster: Cluster | None = CLUSTER,
    namespaces: tuple[str, ...] = ("kmm",),
    grant: Grant = Grant.AGGREGATE,
    posted_hash: str | None = None,
    has_modules: bool = True,
) -> Decision:
    return decide_permissions(
        cluster=cluster,
        namespaces=namespaces,
        grant=grant,
        work=work,
        posted_hash=posted_hash,
        has_modules=has_modules,
    )


def test_they_hold_the_rights_and_the_namespaces_and_go_last() -> None:
    work = assemble_permissions("c1", ["b", "a", "b"])
    kinds = [(one["kind"], one["metadata"]["name"]) for one in work["spec"]["workload"]["manifests"]]
    assert kinds[:2] == [("Namespace", "a"), ("Namespace", "b")]
    role = work["spec"]["workload"]["manifests"][2]
    assert role["metadata"]["labels"] == {"open-cluster-management.io/aggregate-to-work": "true"}
    assert role["rules"][0]["resources"] == ["modules"]
    assert work["metadata"]["name"] == PERMISSIONS_WORK
    assert work["metadata"]["annotations"]["open-cluster-management.io/cleanup-priority"] == "100"
    orphans = work["spec"]["deleteOption"]["selectivelyOrphans"]["orphaningRules"]
    assert [(rule["resource"], rule["name"]) for rule in orphans] == [
        ("namespaces", "a"),
        ("namespaces", "b"),
    ]


def test_older_ocm_gets_a_binding_to_the_agent_s_account() -> None:
    work = assemble_permissions("c1", ["kmm"], Grant.BIND)
    role, binding = work["spec"]["workload"]["manifests"][1:]
    assert binding["kind"] == "ClusterRoleBinding"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == "klusterlet-work-sa"
    assert work != assemble_permissions("c1", ["kmm"])


@pytest.mark.parametrize(
    ("value", "grant"),
    [("true", Grant.AGGREGATE), ("False", Grant.OFF), ("bind", Grant.BIND), ("off", Grant.OFF)],
)
def test_the_setting(monkeypatch: pytest.MonkeyPatch, value: str, grant: Grant) -> None:
    for name, text in {
        "NATS_URL": "nats://h",
        "DATABASE_URL": "postgresql://h/d",
        "KMMHUB_SPOKE_PERMISSIONS": value,
    }.items():
        monkeypatch.setenv(name, text)
    assert read_settings(DispatcherSettings).spoke_permissions is grant


def test_the_order_of_namespaces_changes_nothing() -> None:
    works = [assemble_permissions("c1", names) for names in itertools.permutations(["a", "b", "c"])]
    assert all(work == works[0] for work in works)


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        pytest.param(decided(), Create, id="ahead-of-the-first-module"),
        pytest.param(decided(stored("kmm")), Why.UP_TO_DATE, id="as-it-should-be"),
        pytest.param(decided(stored("other")), Patch, id="another-namespace"),
        pytest.param(decided(stored("kmm"), posted_hash="edited"), Patch, id="somebody-edited-it"),
        pytest.param(
            decided(stored("kmm"), namespaces=()), Why.NOT_SELECTED, id="kept-while-modules-are-left"
        ),
        pytest.param(
            decided(stored("kmm"), namespaces=(), has_modules=False), Delete, id="gone-with-the-last-one"
        ),
        pytest.param(decided(stored("kmm"), grant=Grant.OFF, has_modules=False), Delete, id="switched-off"),
        pytest.param(decided(grant=Grant.OFF), Why.NOT_SELECTED, id="never-switched-on"),
        pytest.param(decided(cluster=None), Why.BEING_DELETED, id="no-such-cluster"),
        pytest.param(decided(cluster=GOING), Why.BEING_DELETED, id="cluster-goes"),
        pytest.param(decided(stored("kmm"), cluster=GOING), Why.BEING_DELETED, id="ocm-removes-them-last"),
        pytest.param(decided(stored("kmm", annotations={})), Why.FOREIGN, id="somebody-elses"),
        pytest.param(
            decided(stored("kmm", annotations={}), posted_hash="as we wrote it"),
            Patch,
            id="ours-without-mark",
        ),
        pytest.param(
            decided(stored("other", deletionTimestamp="2026-01-01T00:00:00Z")),
            Why.BEING_DELETED,
            id="being-deleted",
        ),
    ],
)
def test_decisions(decision: Decision, expected: type | Why) -> None:
    if isinstance(expected, Why):
        assert decision == Leave(why=expected)
    else:
        assert isinstance(decision, expected)


def test_a_patch_keeps_the_delete_option() -> None:
    patch = patch_of(assemble_permissions("c1", ["kmm"]), uid="u")
    assert patch["spec"]["deleteOption"]["propagationPolicy"] == "SelectivelyOrphan"
    assert patch["spec"]["executor"] is None


def test_namespaces_are_those_of_the_modules_that_select_the_cluster() -> None:
    def module(name: str, namespace: str, selector: dict[str, str], *, is_deleting: bool = False) -> Module:
        spec = parse_module({"spokeNamespace": namespace, "selector": selector, "moduleSpec": {}})
        return Module(name=name, uid=name, spec=spec, is_deleting=is_deleting)

    modules = [
        module("m1", "one", {"a": "b"}),
        module("m2", "two", {}),
        module("m3", "three", {"a": "x"}),
        module("m4", "four", {}, is_deleting=True),
        Module(name="m5", uid="m5", spec=None, is_deleting=False),
    ]
    assert namespaces_needed(CLUSTER, modules) == {"one", "two"}

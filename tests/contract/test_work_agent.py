"""How a work agent applies and reports: our stand-in, and OCM's own where OCM_WORK_BIN names it, pass the same."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import pytest
from agent_fixtures import bench
from running_services import eventually
from spoke.client import KMM_MODULES
from spoke.rights import AGENT_USER, AGGREGATE_LABEL
from work_bench import AGENT_SECONDS, Bench, condition, config_map, configured, manifests, module, values

from shared.kube.client import CONFIG_MAPS, NAMESPACES

__all__ = ["bench"]  # a fixture

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

FINALIZER = "cluster.open-cluster-management.io/manifest-work-cleanup"


def gadget_crd(version: str) -> dict[str, Any]:
    """A resource that nobody gave the agent rights to; each version of it is one of its kinds."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    names = {"kind": "Gadget", "plural": "gadgets", "singular": "gadget", "listKind": "GadgetList"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.test.example"},
        "spec": {
            "group": "test.example",
            "names": names,
            "scope": "Namespaced",
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }


def gadget(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "test.example/v1",
        "kind": "Gadget",
        "metadata": {"name": name, "namespace": "default"},
    }


def counters(manifest: dict[str, Any]) -> dict[str, Any]:
    paths = {name: f".status.moduleLoader.{name}" for name in ("availableNumber", "desiredNumber")}
    paths |= {"name": ".metadata.name", "nothing": ".status.nothing.at.all"}
    rule = {"type": "JSONPaths", "jsonPaths": [{"name": key, "path": path} for key, path in paths.items()]}
    return configured(manifest, "modules", feedbackRules=[rule])


async def test_a_work_gets_a_finalizer_and_its_objects_an_owner(bench: Bench) -> None:
    name = bench.new_name()

    await bench.post(module(name), name=name)

    work = await bench.applied(name)
    assert FINALIZER in work["metadata"]["finalizers"]
    noted = (await bench.lane.applied_works())[name]
    hub_hash = hashlib.sha256(bench.lane.hub_url.encode()).hexdigest()
    assert noted["metadata"]["name"] == f"{hub_hash}-{name}"
    assert noted["spec"] == {"hubHash": hub_hash, "manifestWorkName": name, "agentID": "agent1"}
    stored = await bench.module(name)
    assert stored is not None
    assert stored["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "work.open-cluster-management.io/v1",
            "kind": "AppliedManifestWork",
            "name": noted["metadata"]["name"],
            "uid": noted["metadata"]["uid"],
        }
    ]
    tracked = ("modules", "kmm", stored["metadata"]["uid"])

    async def is_tracked() -> bool:
        (entry,) = (await bench.lane.applied_works())[name]["status"]["appliedResources"]
        return (entry["resource"], entry["namespace"], entry["uid"]) == tracked

    await eventually(is_tracked, what="the agent notes the object", seconds=AGENT_SECONDS)


async def test_each_manifest_says_where_it_is_and_how_it_went(bench: Bench) -> None:
    name = bench.new_name()

    await bench.post(module(name), config_map(name, {"a": "1"}), name=name)

    first, second = manifests(await bench.applied(name))
    meta = {**first["resourceMeta"], "ordinal": first["resourceMeta"].get("ordinal", 0)}
    assert meta == {
        "ordinal": 0,
        "group": "kmm.sigs.x-k8s.io",
        "version": "v1beta1",
        "kind": "Module",
        "resource": "modules",
        "name": name,
        "namespace": "kmm",
    }
    assert second["resourceMeta"]["ordinal"] == 1
    for manifest in (first, second):
        reasons = {one["type"]: (one["status"], one["reason"]) for one in manifest["conditions"]}
        assert reasons["Applied"] == ("True", "AppliedManifestComplete")
        assert reasons["Available"] == ("True", "ResourceAvailable")
        assert reasons["StatusFeedbackSynced"] == ("True", "NoStatusFeedbackSynced")
        assert condition(manifest["conditions"], "Applied")["observedGeneration"] == 1


async def test_an_agent_without_rights_says_so_until_a_work_gives_them(bench: Bench) -> None:
    name = bench.new_name()
    await bench.lane.install_crd(gadget_crd("v1"))
    await bench.post(gadget(name), name=name)

    message = await bench.refused(name)

    assert f'gadgets.test.example "{name}" is forbidden: User "{AGENT_USER}" cannot get resource' in message
    (manifest,) = manifests(await bench.shows(name, "Available", "Unknown", "ResourcesStatusUnknown"))
    assert condition(manifest["conditions"], "Available")["reason"] == "FetchingResourceFailed"
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name, "labels": {AGGREGATE_LABEL: "true"}},
        "rules": [{"apiGroups": ["test.example"], "resources": ["gadgets"], "verbs": ["*"]}],
    }
    await bench.applied(await bench.post(role))
    await bench.applied(name)


async def test_a_kind_that_the_spoke_does_not_know_is_named(bench: Bench) -> None:
    name = bench.new_name()
    unknown = module(name) | {"apiVersion": "kmm.sigs.x-k8s.io/v1unknown"}
    await bench.post(unknown, name=name)

    message = await bench.refused(name)

    assert 'the server doesn\'t have a resource type "Module"' in message
    (manifest,) = manifests(await bench.shows(name, "Available", "Unknown", "ResourcesStatusUnknown"))
    assert not manifest["resourceMeta"].get("resource")
    assert condition(manifest["conditions"], "Available")["reason"].startswith("Incomplete")


async def test_a_missing_namespace_is_named_and_waited_for(bench: Bench) -> None:
    name = bench.new_name()
    await bench.post(module(name, namespace=name), name=name)

    message = await bench.refused(name)

    assert f'namespaces "{name}" not found' in message
    await bench.shows(name, "Available", "False", "ResourcesNotAvailable")
    await bench.lane.add_namespace(name)
    await bench.applied(name)


async def test_touching_a_label_makes_the_agent_try_again_at_once(bench: Bench) -> None:
    name = bench.new_name()
    await bench.post(config_map(name, {}, namespace=name), name=name)
    await bench.refused(name)
    await asyncio.sleep(12)  # from now on its pauses are longer than the wait below
    await bench.lane.add_namespace(name)

    await bench.patch(name, {"metadata": {"labels": {"retry": "1"}}})

    await bench.shows(name, "Applied", "True", "AppliedManifestWorkComplete", seconds=4)


async def test_what_the_spokes_schema_refuses_is_quoted(bench: Bench) -> None:
    name = bench.new_name()
    bad = module(name)
    bad["spec"]["moduleLoader"]["container"]["kernelMappings"] = "many"
    await bench.post(bad, name=name)

    message = await bench.refused(name)

    assert f'Module.kmm.sigs.x-k8s.io "{name}" is invalid: ' in message
    assert "kernelMappings" in message


async def test_one_bad_manifest_holds_up_no_other(bench: Bench) -> None:
    name = bench.new_name()

    await bench.post(config_map(name, {}, namespace="nowhere"), config_map(name, {"a": "1"}), name=name)

    bad, good = manifests(await bench.shows(name, "Applied", "False", "AppliedManifestWorkFailed"))
    assert condition(bad["conditions"], "Applied")["status"] == "False"
    assert condition(good["conditions"], "Applied")["status"] == "True"
    assert await bench.map(name) is not None
    await bench.delete(name)
    await bench.gone(name)


async def test_feedback_has_types_and_what_is_absent_has_no_value(bench: Bench) -> None:
    name = bench.new_name()
    manifest = module(name)
    await bench.post(manifest, name=name, manifestConfigs=[counters(manifest)])
    assert values(await bench.applied(name)) == {"name": {"type": "String", "string": name}}

    async def sends(**expected: Any) -> dict[str, Any]:
        async def look() -> dict[str, Any]:
            work = await bench.work(name)
            assert work is not None
            assert values(work) == {"name": {"type": "String", "string": name}, **expected}
            return work

        return await eventually(look, what=f"feedback {expected}", seconds=AGENT_SECONDS)

    await bench.lane.report(name, desiredNumber=3, availableNumber=0)
    await sends(desiredNumber={"type": "Integer", "integer": 3})
    await bench.lane.report(name, desiredNumber=3, availableNumber=2)
    work = await sends(
        availableNumber={"type": "Integer", "integer": 2}, desiredNumber={"type": "Integer", "integer": 3}
    )
    (said,) = manifests(work)
    assert condition(said["conditions"], "StatusFeedbackSynced")["reason"] == "StatusFeedbackSynced"
    assert work["metadata"]["generation"] == 1


async def test_a_changed_work_is_applied_and_says_of_which_generation(bench: Bench) -> None:
    name = bench.new_name()
    await bench.post(module(name), name=name)
    await bench.applied(name)
    before = await bench.module(name)

    await bench.change(name, module(name, selector={"kernel": "new"}))

    work = await bench.applied(name)
    assert work["metadata"]["generation"] == 2
    (manifest,) = manifests(work)
    assert condition(manifest["conditions"], "Applied")["observedGeneration"] == 2
    after = await bench.module(name)
    assert before is not None
    assert after is not None
    assert after["spec"]["selector"] == {"kernel": "new"}
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


async def test_what_others_write_into_metadata_and_status_stays(bench: Bench) -> None:
    name = bench.new_name()
    await bench.post(module(name), name=name)
    await bench.applied(name)
    theirs = {"labels": {"theirs": "1"}, "annotations": {"theirs": "2"}, "finalizers": ["test.example/hold"]}
    await bench.edit(KMM_MODULES, name, {"metadata": theirs}, namespace="kmm")
    await bench.lane.report(name, desiredNumber=3)

    await bench.change(name, module(name, selector={"kernel": "new"}))

    await bench.applied(name)
    stored = await bench.module(name)
    assert stored is not None
    assert {key: stored["metadata"][key] for key in theirs} == theirs
    assert stored["status"]["moduleLoader"]["desiredNumber"] == 3
    await bench.edit(KMM_MODULES, name, {"metadata": {"finalizers": []}}, namespace="kmm")


async def test_drift_is_put_right_at_the_next_resync_and_an_equal_object_is_not_written(bench: Bench) -> None:
    name, quiet = bench.new_name(), bench.new_name()
    for one in (name, quiet):
        await bench.post(module(one), name=one)
        await bench.applied(one)
    untouched = await bench.module(quiet)

    await bench.edit(KMM_MODULES, name, {"spec": {"selector": {"edited": "yes"}}}, namespace="kmm")

    async def is_right() -> bool:
        stored = await bench.module(name)
        return stored is not None and stored["spec"]["selector"] == {}

    await eventually(is_right, what="the edit is undone", seconds=bench.lane.agent.resync_seconds)
    stored = await bench.module(quiet)
    assert untouched is not None
    assert stored is not None
    assert stored["metadata"]["resourceVersion"] == untouched["metadata"]["resourceVersion"]


async def test_an_object_deleted_on_the_spoke_is_missed_and_made_again(bench: Bench) -> None:
    name = bench.new_name()
    await bench.post(module(name), name=name)
    await bench.applied(name)

    await bench.lane.kube.delete(KMM_MODULES, name, namespace="kmm")

    await bench.shows(name, "Available", "False", "ResourcesNotAvailable")
    work = await bench.shows(
        name, "Available", "True", "ResourcesAvailable", seconds=bench.lane.agent.resync_seconds
    )
    assert condition(work["status"]["conditions"], "Applied")["status"] == "True"


async def test_server_side_apply_leaves_fields_to_their_managers_unless_forced(bench: Bench) -> None:
    name = bench.new_name()
    await bench.lane.kube.apply(
        CONFIG_MAPS, name, config_map(name, {"a": "theirs"}), manager="somebody", namespace="default"
    )
    ours = config_map(name, {"a": "ours"})
    strategy = {"type": "ServerSideApply", "serverSideApply": {"force": False}}
    await bench.post(
        ours, name=name, manifestConfigs=[configured(ours, "configmaps", updateStrategy=strategy)]
    )

    message = await bench.refused(name)

    assert 'conflict with "somebody"' in message
    strategy = {"type": "ServerSideApply", "serverSideApply": {"force": True}}
    forced = {"manifestConfigs": [configured(ours, "configmaps", updateStrategy=strategy)]}
    await bench.patch(name, {"spec": forced})
    await bench.applied(name)
    stored = await bench.map(name)
    assert stored is not None
    assert stored["data"] == {"a": "ours"}


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        pytest.param("CreateOnly", {"a": "1"}, id="what is only created is never changed"),
        pytest.param("Update", {"a": "2"}, id="what is updated is"),
    ],
)
async def test_update_strategies(bench: Bench, strategy: str, expected: dict[str, str]) -> None:
    name = bench.new_name()
    first = config_map(name, {"a": "1"})
    config = configured(first, "configmaps", updateStrategy={"type": strategy})
    await bench.post(first, name=name, manifestConfigs=[config])
    await bench.applied(name)

    await bench.change(name, config_map(name, {"a": "2"}))

    await bench.applied(name)
    stored = await bench.map(name)
    assert stored is not None
    assert stored["data"] == expected


async def test_an_agent_reads_the_works_of_its_own_cluster_alone(bench: Bench) -> None:
    namespace = f"{bench.lane.cluster}-other"
    await bench.hub.create(NAMESPACES, {"metadata": {"name": namespace}})
    other = replace(bench, lane=replace(bench.lane, cluster=namespace))
    name = await other.post(config_map("theirs", {}))

    await bench.applied(await bench.post(config_map(bench.new_name(), {})))

    work = await other.work(name)
    assert work is not None
    assert not work["metadata"].get("finalizers")
    assert await bench.map("theirs") is None
    await other.delete(name)

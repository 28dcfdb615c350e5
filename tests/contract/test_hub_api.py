"""What services rely on in the hub's API: the same cases on a real API server and on the simulated one."""

import asyncio

import pytest
from hub_api_bench import OTHER_UID, Bench, kubeconfig_with_modules, on_both, run_case, work, workload

from shared.kube.client import (
    CONFIG_MAPS,
    EVENTS,
    MANAGED_CLUSTERS,
    MANIFEST_WORKS,
    MODULES,
    NAMESPACES,
    SECRETS,
    Resource,
)
from shared.kube.errors import ApiUnavailable, Conflict, Forbidden, NotFound, Refused

__all__ = ["kubeconfig_with_modules", "run_case"]

CONDITIONS = [
    {
        "type": "Applied",
        "status": "True",
        "reason": "R",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
]


# Objects


@on_both
async def test_an_object_gets_its_metadata_from_the_server(bench: Bench) -> None:
    made = await bench.add("a", labels={"a": "b"}, uid=OTHER_UID, generation=7, annotations={})
    metadata = made["metadata"]
    assert made["kind"] == "ManifestWork"
    assert (metadata["name"], metadata["namespace"], metadata["generation"]) == ("a", bench.namespace, 1)
    assert metadata["labels"] == {"a": "b"}
    assert metadata["uid"] != OTHER_UID
    assert int(metadata["resourceVersion"]) > 0
    assert metadata["creationTimestamp"].endswith("Z")
    assert "annotations" not in metadata
    assert await bench.get("a") == made


@on_both
async def test_names_are_taken_until_the_object_is_gone(bench: Bench) -> None:
    first = await bench.add("a")
    with pytest.raises(Conflict, match="already exists"):
        await bench.add("a")
    await bench.delete("a")
    second = await bench.add("a")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"]) + 1


@on_both
async def test_what_is_not_there_is_not_found(bench: Bench) -> None:
    kube = bench.kube
    unknown = Resource(group="x.example", version="v1", plural="foos")
    with pytest.raises(NotFound):
        await bench.get("none")
    with pytest.raises(NotFound):
        await bench.patch("none", spec=workload())
    with pytest.raises(NotFound):
        await bench.delete("none")
    with pytest.raises(NotFound, match="namespaces"):
        await kube.create(MANIFEST_WORKS, work("a"), namespace="no-such-namespace")
    with pytest.raises(NotFound):
        await kube.get(unknown, "a")
    with pytest.raises(NotFound):
        await kube.list_page(unknown)
    with pytest.raises(NotFound):
        async for _ in kube.watch(unknown, resource_version="1"):
            pass


@on_both
async def test_a_create_request_must_fit_its_path(bench: Bench) -> None:
    with pytest.raises(Refused, match="namespace"):
        await bench.add("a", namespace="other")
    with pytest.raises(ApiUnavailable, match="resourceVersion should not be set"):
        await bench.add("a", resourceVersion="5")


@on_both
async def test_nothing_new_comes_into_a_namespace_that_ends(bench: Bench) -> None:
    await bench.add("a")
    await bench.kube.delete(NAMESPACES, bench.namespace)
    namespace = await bench.kube.get(NAMESPACES, bench.namespace)
    assert namespace["status"]["phase"] == "Terminating"
    with pytest.raises(Forbidden, match="being terminated"):
        await bench.add("b")
    await bench.patch("a", metadata={"labels": {"x": "y"}})
    await bench.delete("a")


@on_both
async def test_kinds_of_the_core_group(bench: Bench) -> None:
    kube, namespace = bench.kube, bench.namespace
    kind = {"apiVersion": "v1", "kind": "ConfigMap"}
    note = await kube.create(
        CONFIG_MAPS, kind | {"metadata": {"name": "n"}, "data": {"a": "1", "b": "2"}}, namespace=namespace
    )
    assert "generation" not in note["metadata"]
    changed = await kube.merge_patch(CONFIG_MAPS, "n", {"data": {"a": None}}, namespace=namespace)
    assert changed["data"] == {"b": "2"}
    again = await kube.merge_patch(CONFIG_MAPS, "n", {"data": {"b": "2"}}, namespace=namespace)
    assert again["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"]
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "stringData": {"x": "y"},
        "data": {"z": "eg=="},
    }
    stored = await kube.create(SECRETS, secret, namespace=namespace)
    assert stored["data"] == {"x": "eQ==", "z": "eg=="}
    assert stored["type"] == "Opaque"
    assert "stringData" not in stored
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": namespace},
        "involvedObject": {"kind": "ConfigMap", "name": "n", "namespace": namespace},
        "type": "Normal",
        "reason": "R",
        "message": "m",
        "count": 1,
    }
    await kube.create(EVENTS, event, namespace=namespace)
    counted = await kube.merge_patch(EVENTS, "e", {"count": 2}, namespace=namespace)
    assert counted["count"] == 2
    with pytest.raises(Conflict):
        await kube.create(EVENTS, event, namespace=namespace)


@on_both
async def test_a_namespace_carries_its_name_as_a_label(bench: Bench) -> None:
    namespace = await bench.kube.get(NAMESPACES, bench.namespace)
    assert namespace["metadata"]["labels"] == {"kubernetes.io/metadata.name": bench.namespace}
    assert namespace["status"] == {"phase": "Active"}


# Patches


@on_both
async def test_a_merge_patch_takes_away_adds_and_replaces(bench: Bench) -> None:
    await bench.add("a", labels={"a": "1", "b": "2"}, annotations={"x": "y"}, manifests=2)
    labels = {"a": None, "c": "3"}
    patched = await bench.patch("a", metadata={"labels": labels, "annotations": {"x": None}}, spec=workload())
    assert patched["metadata"]["labels"] == {"b": "2", "c": "3"}
    assert "annotations" not in patched["metadata"]
    assert patched["spec"]["workload"]["manifests"] == []
    assert await bench.get("a") == patched


@on_both
async def test_the_generation_moves_with_the_spec_alone(bench: Bench) -> None:
    made = await bench.add("a")
    labelled = await bench.patch("a", metadata={"labels": {"a": "b"}, "generation": 9})
    changed = await bench.patch("a", spec=work("a", manifests=1)["spec"])
    applied = await bench.patch("a", "status", status={"conditions": CONDITIONS})
    versions = [int(one["metadata"]["resourceVersion"]) for one in (made, labelled, changed, applied)]
    assert versions == sorted(set(versions))
    assert [one["metadata"]["generation"] for one in (made, labelled, changed, applied)] == [1, 1, 2, 2]


@on_both
async def test_a_patch_that_changes_nothing_writes_nothing(bench: Bench) -> None:
    await bench.add("a", labels={"a": "b"}, manifests=1)
    stored = await bench.patch("a", "status", status={"conditions": CONDITIONS})
    spec = work("a", manifests=1)["spec"]
    for same in (
        await bench.patch("a", metadata={"labels": {"a": "b"}}, spec=spec),
        await bench.patch("a", "status", status={"conditions": CONDITIONS}),
        await bench.patch("a", metadata={"finalizers": [], "labels": {"none": None}}),
        await bench.patch("a", metadata={"uid": stored["metadata"]["uid"]}),
    ):
        assert same == stored


@on_both
async def test_status_is_written_by_its_subresource_alone(bench: Bench) -> None:
    made = await bench.kube.create(
        MANIFEST_WORKS, work("a") | {"status": {"conditions": CONDITIONS}}, namespace=bench.namespace
    )
    assert "status" not in made
    plain = await bench.patch("a", status={"conditions": CONDITIONS})
    assert "status" not in plain
    metadata = {"labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["a.example/b"]}
    spec = work("a", manifests=2)["spec"]
    applied = await bench.patch(
        "a", "status", metadata=metadata, spec=spec, status={"conditions": CONDITIONS}
    )
    assert applied["status"] == {"conditions": CONDITIONS}
    assert applied["spec"] == made["spec"]
    assert not {"labels", "annotations", "finalizers"} & applied["metadata"].keys()
    kept = await bench.patch("a", spec=spec, status={"conditions": []})
    assert kept["status"] == {"conditions": CONDITIONS}
    cleared = await bench.patch("a", "status", status=None)
    assert "status" not in cleared


@on_both
async def test_clusters_and_modules_have_a_status_subresource_too(bench: Bench) -> None:
    cluster = {
        "apiVersion": "cluster.open-cluster-management.io/v1",
        "kind": "ManagedCluster",
        "metadata": {"name": bench.namespace},
        "spec": {"hubAcceptsClient": True},
    }
    container = {
        "modprobe": {"moduleName": "m"},
        "kernelMappings": [{"regexp": "^.+$", "containerImage": "a/b:c"}],
    }
    spec = {
        "selector": {},
        "spokeNamespace": "kmm",
        "moduleSpec": {"selector": {}, "moduleLoader": {"container": container}},
    }
    module = {
        "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
        "kind": "ManagedClusterModule",
        "metadata": {"name": bench.namespace},
        "spec": spec,
    }
    claims = {"clusterClaims": [{"name": "a", "value": "b"}], "conditions": []}
    status = {"conditions": CONDITIONS, "observedGeneration": 1}
    for resource, body, said in ((MANAGED_CLUSTERS, cluster, claims), (MODULES, module, status)):
        await bench.kube.create(resource, body)
        await bench.kube.merge_patch(resource, bench.namespace, {"metadata": {"labels": {"a": "b"}}})
        told = await bench.kube.merge_patch(resource, bench.namespace, {"status": said}, subresource="status")
        assert said.items() <= told["status"].items()
        assert told["metadata"]["generation"] == 1
        await bench.kube.merge_patch(resource, bench.namespace, {"status": {"conditions": []}})
        assert (await bench.kube.get(resource, bench.namespace))["status"] == told["status"]
        await bench.kube.delete(resource, bench.namespace)


@on_both
async def test_a_patch_holds_only_for_the_version_it_names(bench: Bench) -> None:
    made = await bench.add("a")
    version = made["metadata"]["resourceVersion"]
    first = await bench.patch("a", metadata={"resourceVersion": version, "labels": {"a": "1"}})
    for subresource in (None, "status"):
        with pytest.raises(Conflict, match="modified"):
            await bench.patch(
                "a", subresource, metadata={"resourceVersion": version}, status={"conditions": []}
            )
    assert await bench.get("a") == first
    version = first["metadata"]["resourceVersion"]
    await bench.patch("a", "status", metadata={"resourceVersion": version}, status={"conditions": CONDITIONS})


@on_both
async def test_a_patch_holds_only_for_the_uid_it_names_unless_it_is_of_the_status(bench: Bench) -> None:
    made = await bench.add("a")
    with pytest.raises(Refused, match=r"metadata\.uid"):
        await bench.patch("a", metadata={"uid": OTHER_UID, "labels": {"a": "b"}})
    assert await bench.get("a") == made
    written = await bench.patch("a", "status", metadata={"uid": OTHER_UID}, status={"conditions": CONDITIONS})
    assert written["metadata"]["uid"] == made["metadata"]["uid"]
    assert written["status"] == {"conditions": CONDITIONS}


@on_both
async def test_a_patch_cannot_rename(bench: Bench) -> None:
    await bench.add("a")
    with pytest.raises(Refused, match="name of the object"):
        await bench.patch("a", metadata={"name": "b"})


# Deletion


@on_both
async def test_a_deletion_holds_only_for_the_uid_it_names(bench: Bench) -> None:
    made = await bench.add("a")
    with pytest.raises(Conflict, match="UID"):
        await bench.delete("a", uid=OTHER_UID)
    await bench.delete("a", uid=made["metadata"]["uid"])
    with pytest.raises(NotFound):
        await bench.get("a")


@on_both
async def test_finalizers_hold_an_object_until_the_last_one_is_off(bench: Bench) -> None:
    made = await bench.add("a", finalizers=["a.example/x", "a.example/y"])
    assert made["metadata"]["generation"] == 1
    await bench.delete("a")
    held = await bench.get("a")
    assert held["metadata"]["deletionTimestamp"]
    assert held["metadata"]["generation"] == 2
    await bench.delete("a")
    assert await bench.get("a") == held
    with pytest.raises(Refused, match="no new finalizers"):
        await bench.patch("a", metadata={"finalizers": ["a.example/x", "a.example/y", "a.example/z"]})
    changed = await bench.patch("a", metadata={"deletionTimestamp": None, "labels": {"a": "b"}})
    assert changed["metadata"]["deletionTimestamp"] == held["metadata"]["deletionTimestamp"]
    assert changed["metadata"]["labels"] == {"a": "b"}
    with pytest.raises(Conflict, match="already exists"):
        await bench.add("a")
    last = await bench.patch("a", metadata={"finalizers": ["a.example/x"]})
    answer = await bench.patch("a", metadata={"finalizers": []})
    assert "finalizers" not in answer["metadata"]
    assert answer["metadata"]["resourceVersion"] == last["metadata"]["resourceVersion"]
    with pytest.raises(NotFound):
        await bench.get("a")
    ended = (await bench.events(last["metadata"]["resourceVersion"], 1))[0]
    assert ended["type"] == "DELETED"
    assert ended["object"]["metadata"]["finalizers"] == ["a.example/x"]
    assert int(ended["object"]["metadata"]["resourceVersion"]) > int(last["metadata"]["resourceVersion"])


@on_both
async def test_of_many_who_create_one_wins(bench: Bench) -> None:
    answers = await asyncio.gather(*(bench.add("a") for _ in range(10)), return_exceptions=True)
    assert len([answer for answer in answers if isinstance(answer, Conflict)]) == 9

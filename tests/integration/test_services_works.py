"""The life of works: selected, edited, deleted, foreign, held by agents; and silence where nothing changed."""

import asyncio
from typing import Any

import pytest
from fleet import Fleet, served
from running_services import eventually
from services_fixtures import fleet

from shared.domain.work import HASH_ANNOTATION
from shared.kube.client import MANAGED_CLUSTERS, MANIFEST_WORKS, MODULES

__all__ = ["fleet"]  # a fixture

pytestmark = pytest.mark.integration

KERNEL, NEWER = "6.1.0-13-amd64", "6.1.0-14-amd64"


async def posted_module(fleet: Fleet, clusters: int = 1) -> tuple[str, list[str]]:
    """A module with a work on so many clusters. Returns its name and theirs."""
    name = fleet.new_name()
    for tag in (KERNEL, NEWER):
        await fleet.push(name, tag)
    names = [f"{name}-{number}" for number in range(clusters)]
    for cluster in names:
        await fleet.add_cluster(cluster, label=name, kernels=[KERNEL])
    await fleet.add_module(name)
    for cluster in names:
        await fleet.posted(cluster, name)
    await fleet.ready(name)
    return name, names


def foreign_work(name: str) -> dict[str, Any]:
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "theirs", "namespace": "default"},
    }
    return {
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "ManifestWork",
        "metadata": {"name": name},
        "spec": {"workload": {"manifests": [manifest]}},
    }


async def report_applied(fleet: Fleet, cluster: str, name: str, *, is_applied: bool) -> None:
    """What the spoke's agent writes after it has applied a work."""
    work = await fleet.posted(cluster, name)
    condition = {
        "type": "Applied",
        "status": "True" if is_applied else "False",
        "reason": "AppliedManifestWorkComplete",
        "message": "",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
        "observedGeneration": work["metadata"]["generation"],
    }
    patch = {"status": {"conditions": [condition]}}
    await fleet.kube.merge_patch(MANIFEST_WORKS, name, patch, namespace=cluster, subresource="status")


async def test_deselecting_a_cluster_removes_its_work_alone_and_selecting_brings_it_back(
    fleet: Fleet,
) -> None:
    name, (left, right) = await posted_module(fleet, clusters=2)
    kept = await fleet.posted(right, name)

    await fleet.label(left, "elsewhere")
    await fleet.gone(left, name)
    await fleet.label(left, name)

    await fleet.posted(left, name)
    await fleet.ready(name)
    assert (await fleet.posted(right, name))["metadata"]["resourceVersion"] == kept["metadata"][
        "resourceVersion"
    ]


async def test_deleting_a_module_removes_its_works_and_then_the_module(fleet: Fleet) -> None:
    name, clusters = await posted_module(fleet, clusters=3)
    module = await fleet.module(name)
    assert module is not None
    assert module["metadata"]["finalizers"] == ["hub.kmm.sigs.x-k8s.io/manifestworks"]

    await fleet.kube.delete(MODULES, name)

    await fleet.module_gone(name)
    assert [await fleet.work(cluster, name) for cluster in clusters] == [None] * 3


async def test_a_deleted_module_stays_until_the_agent_lets_its_last_work_go(fleet: Fleet) -> None:
    name, (away, here) = await posted_module(fleet, clusters=2)
    await fleet.hold_work(away, name)

    await fleet.kube.delete(MODULES, name)

    await fleet.gone(here, name)
    await asyncio.sleep(1.5)
    module, work = await fleet.module(name), await fleet.work(away, name)
    assert module is not None
    assert module["metadata"]["deletionTimestamp"]
    assert work is not None
    assert work["metadata"]["deletionTimestamp"]
    await fleet.hold_work(away, name, is_held=False)
    await fleet.module_gone(name)


async def test_a_module_made_again_under_its_name_owns_its_works(fleet: Fleet) -> None:
    name, (cluster,) = await posted_module(fleet)
    await fleet.kube.delete(MODULES, name)
    await fleet.module_gone(name)

    module = await fleet.add_module(name)

    work = await fleet.posted(cluster, name)
    assert [owner["uid"] for owner in work["metadata"]["ownerReferences"]] == [module["metadata"]["uid"]]


async def test_a_foreign_work_of_our_name_is_left_alone_and_reported(fleet: Fleet) -> None:
    name = fleet.new_name()
    await fleet.push(name, KERNEL)
    for cluster in (f"{name}-theirs", f"{name}-ours"):
        await fleet.add_cluster(cluster, label=name, kernels=[KERNEL])
    theirs = await fleet.kube.create(MANIFEST_WORKS, foreign_work(name), namespace=f"{name}-theirs")
    await fleet.add_module(name)

    message = await fleet.shows(name, "Degraded", "True", "WorkNotOurs")

    assert f"{name}-theirs" in message
    await fleet.posted(f"{name}-ours", name)
    assert await fleet.work(f"{name}-theirs", name) == theirs
    await fleet.kube.delete(MODULES, name)
    await fleet.module_gone(name)
    assert await fleet.work(f"{name}-theirs", name) == theirs


async def test_a_foreign_work_that_goes_makes_room_for_ours(fleet: Fleet) -> None:
    name, cluster = fleet.new_name(), f"{fleet.new_name()}-c"
    await fleet.push(name, KERNEL)
    await fleet.add_cluster(cluster, label=name, kernels=[KERNEL])
    await fleet.kube.create(MANIFEST_WORKS, foreign_work(name), namespace=cluster)
    await fleet.add_module(name)
    await fleet.shows(name, "Degraded", "True", "WorkNotOurs")

    await fleet.kube.delete(MANIFEST_WORKS, name, namespace=cluster)

    await fleet.posted(cluster, name)
    await fleet.ready(name)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param({"spec": {"workload": {"manifests": []}}}, id="manifests"),
        pytest.param({"spec": {"deleteOption": {"propagationPolicy": "Orphan"}}}, id="delete option"),
        pytest.param({"metadata": {"annotations": {HASH_ANNOTATION: "0"}}}, id="annotation"),
    ],
)
async def test_an_edit_of_our_work_is_put_right(fleet: Fleet, edit: dict[str, Any]) -> None:
    name, (cluster,) = await posted_module(fleet)
    before = await fleet.posted(cluster, name)

    await fleet.kube.merge_patch(MANIFEST_WORKS, name, edit, namespace=cluster)

    async def is_right() -> bool:
        work = await fleet.posted(cluster, name)
        assert work["spec"] == before["spec"]
        return bool(work["metadata"]["annotations"] == before["metadata"]["annotations"])

    await eventually(is_right, what="the work is as it was")


async def test_a_work_deleted_by_hand_is_made_again(fleet: Fleet) -> None:
    name, (cluster,) = await posted_module(fleet)
    before = await fleet.posted(cluster, name)

    await fleet.kube.delete(MANIFEST_WORKS, name, namespace=cluster)

    async def is_new() -> bool:
        work = await fleet.work(cluster, name)
        return work is not None and work["metadata"]["uid"] != before["metadata"]["uid"]

    await eventually(is_new, what="another work of the same content")
    assert (await fleet.posted(cluster, name))["spec"] == before["spec"]


async def test_a_cluster_whose_namespace_comes_late_gets_its_work_then(fleet: Fleet) -> None:
    name, cluster = fleet.new_name(), f"{fleet.new_name()}-late"
    await fleet.push(name, KERNEL)
    await fleet.add_cluster(cluster, label=name, kernels=[KERNEL], has_namespace=False)
    await fleet.add_module(name)
    assert cluster in await fleet.shows(name, "Dispatched", "False", "ClusterNamespaceMissing")

    await fleet.add_namespace(cluster)

    await fleet.posted(cluster, name)
    await fleet.ready(name)


async def test_a_claim_that_vanishes_takes_nothing_away_and_a_new_one_counts(fleet: Fleet) -> None:
    name, (cluster,) = await posted_module(fleet)
    before = await fleet.posted(cluster, name)

    await fleet.claim(cluster, None)
    await asyncio.sleep(1.5)

    assert await fleet.work(cluster, name) == before
    query = "SELECT kernels FROM clusters WHERE NOT claim_is_present AND name = $1"
    assert await fleet.database.fetchval(query, cluster) == [KERNEL]
    await fleet.claim(cluster, [NEWER])

    async def is_newer() -> bool:
        return set(served(await fleet.posted(cluster, name))) == {NEWER}

    await eventually(is_newer, what="the kernel of the new claim is served")


async def test_a_cluster_without_a_claim_is_named_until_it_sends_one(fleet: Fleet) -> None:
    name, cluster = fleet.new_name(), f"{fleet.new_name()}-c"
    await fleet.push(name, KERNEL)
    await fleet.add_cluster(cluster, label=name, kernels=None)
    await fleet.add_module(name)
    assert cluster in await fleet.shows(name, "Dispatched", "False", "ClaimMissing")

    await fleet.claim(cluster, [KERNEL])

    await fleet.ready(name)


async def test_a_kernel_that_is_not_ready_takes_no_working_one_away(fleet: Fleet) -> None:
    name, (cluster,) = await posted_module(fleet)
    await fleet.claim(cluster, [KERNEL, NEWER])
    repository = fleet.image(name).partition(":$")[0]
    moved = {NEWER: f"{repository}@{await fleet.push(name, f'moved-{NEWER}')}"}
    mappings = [{"regexp": ".+", "containerImage": fleet.image(name, "moved-${KERNEL_FULL_VERSION}")}]

    async def serves_both() -> bool:
        return set(served(await fleet.posted(cluster, name))) == {KERNEL, NEWER}

    await eventually(serves_both, what="both kernels are served")
    before = await fleet.posted(cluster, name)

    await fleet.change_module(name, kernelMappings=mappings)

    message = await fleet.shows(name, "Dispatched", "False", "ImageMissing")
    assert f"moved-{KERNEL}" in message
    assert "the posted work stays" in message
    assert await fleet.work(cluster, name) == before
    moved[KERNEL] = f"{repository}@{await fleet.push(name, f'moved-{KERNEL}')}"
    await fleet.serves(cluster, name, moved)


async def test_a_kernel_whose_image_is_missing_joins_later(fleet: Fleet) -> None:
    name, (cluster,) = await posted_module(fleet)

    await fleet.claim(cluster, [KERNEL, "6.9.9-none"])

    await fleet.shows(name, "Degraded", "True", "ImageMissing")
    await fleet.shows(name, "Dispatched", "True", "AllDispatched")
    assert set(served(await fleet.posted(cluster, name))) == {KERNEL}


async def test_a_cluster_that_leaves_takes_its_work_along(fleet: Fleet) -> None:
    name, (leaving, staying) = await posted_module(fleet, clusters=2)

    await fleet.kube.delete(MANAGED_CLUSTERS, leaving)

    await fleet.gone(leaving, name)
    await fleet.ready(name)
    assert await fleet.work(staying, name) is not None


async def test_counters_follow_the_agents_and_an_unchanged_status_is_not_written(fleet: Fleet) -> None:
    name, clusters = await posted_module(fleet, clusters=3)

    async def counters() -> tuple[int, int, int]:
        status = (await fleet.module(name) or {})["status"]
        return status["numberDesired"], status["numberApplied"], status["numberDegraded"]

    async def are(expected: tuple[int, int, int]) -> None:
        async def look() -> bool:
            now = await counters()
            assert now == expected
            return True

        await eventually(look, what=f"counters {expected}")

    await are((3, 0, 0))
    for cluster in clusters[:2]:
        await report_applied(fleet, cluster, name, is_applied=True)
    await are((3, 2, 0))
    await report_applied(fleet, clusters[0], name, is_applied=False)
    await are((3, 1, 0))
    await asyncio.sleep(0.5)
    before = (await fleet.module(name) or {})["metadata"]["resourceVersion"]
    await fleet.label(clusters[0], name)
    await fleet.claim(clusters[0], [KERNEL])
    await asyncio.sleep(2)
    assert (await fleet.module(name) or {})["metadata"]["resourceVersion"] == before


async def test_users_may_change_a_module_while_services_write_to_it(fleet: Fleet) -> None:
    name, (cluster,) = await posted_module(fleet)

    for number in range(20):
        with_conflict = {"metadata": {"annotations": {"edit": str(number)}}}
        await fleet.kube.merge_patch(MODULES, name, with_conflict)
        await fleet.change_module(name, inTreeModulesToRemove=[f"old{number}"])

    async def has_last() -> bool:
        work = await fleet.posted(cluster, name)
        manifest = work["spec"]["workload"]["manifests"][0]
        mapping = manifest["spec"]["moduleLoader"]["container"]["kernelMappings"][0]
        return bool(mapping["inTreeModulesToRemove"] == ["old19"])

    await eventually(has_last, what="the last edit is dispatched")
    await fleet.kube.delete(MODULES, name)
    await fleet.module_gone(name)


async def test_a_module_created_and_deleted_at_once_leaves_nothing(fleet: Fleet) -> None:
    name = fleet.new_name()
    await fleet.push(name, KERNEL)
    await fleet.add_cluster(f"{name}-c", label=name, kernels=[KERNEL])
    for pause in (0.0, 0.05, 0.2, 0.4, 0.8):
        await fleet.add_module(name)
        await asyncio.sleep(pause)
        await fleet.kube.delete(MODULES, name)
        await fleet.module_gone(name)
        await fleet.gone(f"{name}-c", name)


async def test_the_hub_is_silent_in_the_end(fleet: Fleet) -> None:
    """Runs last: whatever the tests before did, and though an image is still missing, nothing is written."""

    async def is_still() -> bool:
        before = await fleet.versions()
        await asyncio.sleep(1)
        return await fleet.versions() == before

    await eventually(is_still, what="no work and no module changes any more")
    versions, requests = await fleet.versions(), fleet.write_requests()

    await asyncio.sleep(4)

    assert await fleet.versions() == versions
    assert fleet.write_requests() == requests
    assert await fleet.database.fetchval("SELECT count(*) FROM outbox") == 0

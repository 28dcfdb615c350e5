"""What becomes of works while clusters, claims, people and modules change under them."""

import asyncio
from typing import Any

import pytest
from fleet import Fleet, served
from running_services import eventually
from services_fixtures import fleet

from shared.domain.claim import CLAIM_NAME, MAX_CLAIM_CHARACTERS
from shared.domain.work import MODULE_LABEL
from shared.kube.client import MANAGED_CLUSTERS, MANIFEST_WORKS, MODULES
from shared.kube.errors import Refused

__all__ = ["fleet"]  # a fixture

pytestmark = pytest.mark.integration

Json = dict[str, Any]
KERNEL, NEWER = "6.1.0-13-amd64", "6.1.0-14-amd64"
NAMES_LIMIT = 41
"""Characters that a module's name and its spokeNamespace may have together."""


async def one_image_for_all(fleet: Fleet, name: str) -> list[Json]:
    """Mappings that give every kernel the same image, which is there."""
    await fleet.push(name, "all")
    return [{"regexp": ".+", "containerImage": fleet.image(name, "all")}]


async def served_module(fleet: Fleet, kernels: tuple[str, ...] = (KERNEL,)) -> tuple[str, str, Json]:
    """A module with a work on one cluster: its name, the cluster's, and the work."""
    name = fleet.new_name()
    cluster = f"{name}-c"
    await fleet.add_cluster(cluster, label=name, kernels=kernels)
    await fleet.add_module(name, mappings=await one_image_for_all(fleet, name))
    await fleet.ready(name)
    return name, cluster, await fleet.posted(cluster, name)


async def send_claim(fleet: Fleet, cluster: str, value: str) -> None:
    """The spoke's claim, character for character."""
    claims = [{"name": CLAIM_NAME, "value": value}]
    await fleet.kube.merge_patch(
        MANAGED_CLUSTERS, cluster, {"status": {"clusterClaims": claims}}, subresource="status"
    )


async def serves_kernels(fleet: Fleet, cluster: str, name: str, kernels: set[str]) -> Json:
    """Wait until a work serves exactly these kernels."""

    async def look() -> Json:
        work = await fleet.posted(cluster, name)
        assert set(served(work)) == kernels
        return work

    return await eventually(look, what=f"{name} in {cluster} serves {sorted(kernels)}")


async def status_of(fleet: Fleet, name: str) -> Json:
    found: Json = (await fleet.module(name) or {}).get("status") or {}
    return found


async def attention(fleet: Fleet, name: str, reason: str) -> list[Json]:
    """Wait until something of this reason needs attention."""

    async def look() -> list[Json]:
        entries = (await status_of(fleet, name)).get("attention") or []
        return [entry for entry in entries if entry["reason"] == reason]

    return await eventually(look, what=f"{reason} among what needs attention of {name}")


async def no_attention(fleet: Fleet, name: str) -> None:
    async def look() -> bool:
        return not (await status_of(fleet, name)).get("attention")

    await eventually(look, what=f"nothing of {name} needs attention")


# -------------------------------------------------------------------------------------------------------------- claims


async def test_a_claim_with_plus_duplicates_blanks_and_nonsense_serves_what_is_a_kernel(
    fleet: Fleet,
) -> None:
    name, cluster, _ = await served_module(fleet)

    await send_claim(fleet, cluster, f"{NEWER}+\n{KERNEL}\n{KERNEL}+\n\n  {NEWER}\n; rm -rf /\n5.1\n")

    await serves_kernels(fleet, cluster, name, {KERNEL, NEWER})
    told = await attention(fleet, name, "InvalidKernel")
    assert {entry["cluster"] for entry in told} == {cluster}
    assert "rm -rf" in f"{told}"
    assert len(told) == 2
    await fleet.shows(name, "Degraded", "True", "InvalidKernel")
    await fleet.shows(name, "Dispatched", "True", "AllDispatched")


@pytest.mark.parametrize("value", ["\n", "nonsense\n!!!"], ids=["blank", "nonsense"])
async def test_a_claim_that_names_no_kernel_takes_nothing_away_until_one_does(
    fleet: Fleet, value: str
) -> None:
    name, cluster, before = await served_module(fleet)

    await send_claim(fleet, cluster, value)

    assert "names none" in await fleet.shows(name, "Dispatched", "False", "ClaimMissing")
    assert await fleet.work(cluster, name) == before
    await fleet.claim(cluster, [NEWER])
    await serves_kernels(fleet, cluster, name, {NEWER})
    await no_attention(fleet, name)


async def test_a_claim_near_its_limit_is_served_and_named(fleet: Fleet) -> None:
    name, cluster, _ = await served_module(fleet)
    kernels = [f"5.14.0-{number}.el9_4.x86_64" for number in range(100, 142)]
    full = "\n".join(kernels)
    assert MAX_CLAIM_CHARACTERS * 0.9 < len(full) <= MAX_CLAIM_CHARACTERS

    await send_claim(fleet, cluster, full)

    await serves_kernels(fleet, cluster, name, set(kernels))
    (entry,) = await attention(fleet, name, "ClaimNearLimit")
    assert "Retire old kernels" in entry["message"]
    await fleet.ready(name)
    with pytest.raises(Refused):
        await send_claim(fleet, cluster, full.ljust(MAX_CLAIM_CHARACTERS + 1, "\n"))
    await fleet.claim(cluster, [KERNEL])
    await serves_kernels(fleet, cluster, name, {KERNEL})
    await no_attention(fleet, name)


# ------------------------------------------------------------------------------------------------------------ clusters


async def test_a_cluster_that_cannot_be_reached_keeps_its_work(fleet: Fleet) -> None:
    name, cluster, before = await served_module(fleet)
    unknown = {
        "type": "ManagedClusterConditionAvailable",
        "status": "Unknown",
        "reason": "ManagedClusterLeaseUpdateStopped",
        "message": "",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }
    taint = {
        "key": "cluster.open-cluster-management.io/unreachable",
        "effect": "NoSelect",
        "timeAdded": "2026-01-02T03:04:05Z",
    }

    await fleet.kube.merge_patch(
        MANAGED_CLUSTERS, cluster, {"status": {"conditions": [unknown]}}, subresource="status"
    )
    await fleet.kube.merge_patch(MANAGED_CLUSTERS, cluster, {"spec": {"taints": [taint]}})

    await asyncio.sleep(1)
    assert await fleet.work(cluster, name) == before
    # It is still served: what it reports when it is back counts at once.
    await fleet.claim(cluster, [KERNEL, NEWER])
    await serves_kernels(fleet, cluster, name, {KERNEL, NEWER})


async def test_a_cluster_that_goes_gets_nothing_and_one_of_its_name_starts_without_its_kernels(
    fleet: Fleet,
) -> None:
    name, cluster, before = await served_module(fleet)
    await fleet.kube.merge_patch(
        MANAGED_CLUSTERS, cluster, {"metadata": {"finalizers": ["test.example/ocm"]}}
    )
    await fleet.kube.delete(MANAGED_CLUSTERS, cluster)
    await fleet.claim(cluster, [KERNEL, NEWER])
    await asyncio.sleep(1)
    assert await fleet.work(cluster, name) == before

    await fleet.kube.delete(MANIFEST_WORKS, name, namespace=cluster)
    await asyncio.sleep(1)
    assert await fleet.work(cluster, name) is None, "made again while its cluster goes"
    await fleet.kube.merge_patch(MANAGED_CLUSTERS, cluster, {"metadata": {"finalizers": None}})
    await fleet.add_cluster(cluster, label=name, kernels=None)

    assert cluster in await fleet.shows(name, "Dispatched", "False", "ClaimMissing")
    assert await fleet.work(cluster, name) is None
    await fleet.claim(cluster, [NEWER])
    await serves_kernels(fleet, cluster, name, {NEWER})


# --------------------------------------------------------------------------------------------------------------- works


async def test_a_work_that_is_being_deleted_is_not_written_and_is_made_again_once_it_is_gone(
    fleet: Fleet,
) -> None:
    name, cluster, before = await served_module(fleet)
    await fleet.hold_work(cluster, name)
    await fleet.kube.delete(MANIFEST_WORKS, name, namespace=cluster)
    going = await fleet.work(cluster, name)

    await fleet.claim(cluster, [KERNEL, NEWER])

    async def is_said() -> bool:
        return bool((await status_of(fleet, name))["phases"]["Deleting"] == 1)

    await eventually(is_said, what="the cluster is in phase Deleting")
    await asyncio.sleep(1)
    assert await fleet.work(cluster, name) == going
    await fleet.hold_work(cluster, name, is_held=False)
    after = await serves_kernels(fleet, cluster, name, {KERNEL, NEWER})
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    await fleet.ready(name)


EXECUTOR = {"type": "ServiceAccount", "serviceAccount": {"namespace": "default", "name": "admin"}}


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param({"metadata": {"labels": {MODULE_LABEL: None}}}, id="label-off"),
        pytest.param({"metadata": {"labels": {MODULE_LABEL: "another"}}}, id="label"),
        pytest.param({"metadata": {"labels": None, "annotations": None}}, id="labels-and-annotations-off"),
        pytest.param({"metadata": {"ownerReferences": None}}, id="owner-off"),
        pytest.param({"spec": {"executor": {"subject": EXECUTOR}}}, id="executor"),
    ],
)
async def test_an_edit_of_our_work_is_put_right_without_taking_it_away(fleet: Fleet, edit: Json) -> None:
    name, cluster, before = await served_module(fleet)
    # A module that a changed label would make the owner, and that would not want the work.
    another = await fleet.module("another") or await fleet.add_module("another", select="no-cluster")
    assert another["spec"]["selector"] == {"case": "no-cluster"}
    await fleet.hold_work(cluster, name)

    await fleet.kube.merge_patch(MANIFEST_WORKS, name, edit, namespace=cluster)

    async def is_right() -> bool:
        work = await fleet.work(cluster, name)
        assert work is not None
        assert work["spec"] == before["spec"]
        written = ("uid", "labels", "annotations", "ownerReferences", "deletionTimestamp")
        seen, expected = work["metadata"], before["metadata"]
        assert {key: seen.get(key) for key in written} == {key: expected.get(key) for key in written}
        return True

    await eventually(is_right, what="the work is as it was")
    await fleet.hold_work(cluster, name, is_held=False)


async def test_a_work_that_would_be_too_large_is_refused_with_a_condition_and_the_posted_one_stays(
    fleet: Fleet,
) -> None:
    name, cluster, before = await served_module(fleet)
    plugin = {"container": {"image": "r.example/plugin:1", "args": ["x" * 1000] * 512}}

    await fleet.kube.merge_patch(MODULES, name, {"spec": {"moduleSpec": {"devicePlugin": plugin}}})

    message = await fleet.shows(name, "Degraded", "True", "WorkTooLarge")
    assert cluster in message
    assert "512000" in message
    await fleet.shows(name, "Ready", "False", "WorkTooLarge")
    assert await fleet.work(cluster, name) == before
    await fleet.kube.merge_patch(MODULES, name, {"spec": {"moduleSpec": {"devicePlugin": None}}})
    await fleet.ready(name)
    assert await fleet.work(cluster, name) == before


# ------------------------------------------------------------------------------------------------------------- modules


async def test_a_module_freed_by_force_and_made_again_waits_for_the_old_work_and_owns_the_new(
    fleet: Fleet,
) -> None:
    name, cluster, before = await served_module(fleet)
    await fleet.hold_work(cluster, name)
    await fleet.kube.delete(MODULES, name)
    await fleet.kube.merge_patch(MODULES, name, {"metadata": {"finalizers": None}})
    await fleet.module_gone(name)
    module = await fleet.add_module(name, mappings=await one_image_for_all(fleet, name))

    async def is_going() -> Json | None:
        work = await fleet.work(cluster, name)
        return work if work is not None and work["metadata"].get("deletionTimestamp") else None

    going = await eventually(is_going, what="the old work is asked to go")
    assert going["metadata"]["uid"] == before["metadata"]["uid"]
    await fleet.hold_work(cluster, name, is_held=False)

    async def is_owned() -> bool:
        work = await fleet.posted(cluster, name)
        owners = [owner["uid"] for owner in work["metadata"]["ownerReferences"]]
        return owners == [module["metadata"]["uid"]]

    await eventually(is_owned, what="a work that the new module owns")
    await fleet.ready(name)


PLUGIN = {"container": {"image": "r.example/plugin:1"}}


@pytest.mark.parametrize(
    "part",
    [{"devicePlugin": PLUGIN}, {"dra": PLUGIN | {"driverName": "gpu.example.com"}}],
    ids=["device-plugin", "dra"],
)
async def test_a_module_without_loader_needs_no_claim(fleet: Fleet, part: Json) -> None:
    name = fleet.new_name()
    await fleet.add_cluster(f"{name}-c", label=name, kernels=None)
    spec = {
        "selector": {"case": name},
        "spokeNamespace": "kmm",
        "moduleSpec": {"selector": {"gpu": "yes"}, **part},
    }
    body = {"apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1", "kind": "ManagedClusterModule"}
    await fleet.kube.create(MODULES, body | {"metadata": {"name": name}, "spec": spec})

    await fleet.ready(name)

    shipped = (await fleet.posted(f"{name}-c", name))["spec"]["workload"]["manifests"][0]["spec"]
    assert set(shipped) == {"selector", *part}
    assert shipped["selector"] == {"gpu": "yes"}
    (kind,) = part
    assert shipped[kind]["container"]["image"] == "r.example/plugin:1"


async def test_names_at_their_limits_and_one_past_it(fleet: Fleet) -> None:
    # fleet.add_module uses the namespace "kmm".
    name = fleet.new_name().ljust(NAMES_LIMIT - len("kmm"), "x")
    cluster = f"{name}-{'c' * 63}"[:63]
    await fleet.push(name, "all")
    mappings = [{"regexp": ".+", "containerImage": fleet.image(name, "all")}]
    await fleet.add_cluster(cluster, label=name, kernels=[KERNEL])
    with pytest.raises(Refused, match=f"{NAMES_LIMIT} characters"):
        await fleet.add_module(f"{name}x", select=name, mappings=mappings)

    await fleet.add_module(name, mappings=mappings)

    await fleet.ready(name)
    await serves_kernels(fleet, cluster, name, {KERNEL})
    await fleet.kube.delete(MODULES, name)
    await fleet.module_gone(name)
    await fleet.gone(cluster, name)


async def test_of_two_modules_that_share_an_image_one_may_go(fleet: Fleet) -> None:
    name, cluster, before = await served_module(fleet)
    twin = fleet.new_name()
    mappings = [{"regexp": ".+", "containerImage": fleet.image(name, "all")}]
    await fleet.add_module(twin, select=name, mappings=mappings)
    await fleet.ready(twin)

    await fleet.kube.delete(MODULES, twin)

    await fleet.module_gone(twin)
    assert await fleet.work(cluster, name) == before
    await fleet.claim(cluster, [KERNEL, NEWER])
    await serves_kernels(fleet, cluster, name, {KERNEL, NEWER})

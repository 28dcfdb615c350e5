"""The round trip on two real API servers: from a module on the hub to the spoke's Module, and its status back.

The services run as real processes. Between the API servers stands OCM's own work agent where OCM_WORK_BIN names it,
and our stand-in; the cases are the same. KMM's operator on the spoke is played by hand.
"""

from __future__ import annotations

import asyncio

import pytest
from fleet import Fleet
from round_trip import (
    KERNEL,
    NEWER,
    PERMISSIONS,
    SECONDS,
    add_module,
    begin_detach,
    clean_cluster,
    finish_detach,
    images_of,
    joined,
    off_spoke,
    on_spoke,
    status_of,
)
from running_services import eventually
from services_fixtures import fleet
from spoke.agents import AGENTS
from spoke.client import CLUSTER_ROLES, KMM_MODULES, ApiClient
from spoke.lane import refuse_foreign_hub
from spoke.rights import PERMISSION_ROLE

from localhub.hub import HubAddresses
from shared.kube.client import MANIFEST_WORKS, MODULES, NAMESPACES
from shared.kube.errors import NotFound

__all__ = ["fleet"]  # a fixture

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.fixture(params=AGENTS)
def agent(request: pytest.FixtureRequest, hub: HubAddresses) -> str:
    """Which agent stands between the API servers."""
    refuse_foreign_hub(hub)
    return str(request.param)


async def test_a_module_reaches_the_spoke_after_its_permissions_and_its_status_returns(
    fleet: Fleet, hub: HubAddresses, agent: str
) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane:
        await add_module(fleet, name)

        module = await on_spoke(lane, name, [KERNEL])

        permissions, work = (
            await fleet.work(lane.cluster, PERMISSIONS),
            await fleet.posted(lane.cluster, name),
        )
        assert permissions is not None
        order = [one["metadata"]["creationTimestamp"] for one in (permissions, work)]
        assert order == sorted(order)
        assert (
            int(permissions["metadata"]["annotations"]["open-cluster-management.io/cleanup-priority"]) == 100
        )
        image = images_of(module)[KERNEL]
        assert image.startswith(fleet.image(name, "")[:-1])
        assert "@sha256:" in image
        await fleet.shows(name, "Available", "True", "Available", seconds=SECONDS)
        await lane.report(name, nodesMatchingSelectorNumber=3, desiredNumber=3, availableNumber=0)
        await fleet.shows(name, "Available", "False", "Loading", seconds=SECONDS)
        await lane.report(name, nodesMatchingSelectorNumber=3, desiredNumber=3, availableNumber=3)
        await fleet.shows(name, "Available", "True", "Available", seconds=SECONDS)
        await fleet.ready(name)
        status = await status_of(fleet, name)
        assert status["moduleLoader"] == {
            "nodesMatchingSelectorNumber": 3,
            "desiredNumber": 3,
            "availableNumber": 3,
        }
        assert (status["numberDesired"], status["numberApplied"], status["numberDegraded"]) == (1, 1, 0)
        assert not status.get("attention")


async def test_kernels_come_and_go(fleet: Fleet, hub: HubAddresses, agent: str) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane:
        await add_module(fleet, name)
        first = await on_spoke(lane, name, [KERNEL])

        await fleet.claim(lane.cluster, [KERNEL, NEWER])
        both = await on_spoke(lane, name, [KERNEL, NEWER])
        await fleet.claim(lane.cluster, [NEWER])
        last = await on_spoke(lane, name, [NEWER])

        assert images_of(both)[KERNEL] == images_of(first)[KERNEL]
        assert images_of(last)[NEWER] == images_of(both)[NEWER]
        assert len({one["metadata"]["uid"] for one in (first, both, last)}) == 1, "it was never made anew"
        await fleet.ready(name)


async def test_a_kernel_that_arrives_while_the_agent_is_away_is_served_when_it_is_back(
    fleet: Fleet, hub: HubAddresses, agent: str
) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane:
        await add_module(fleet, name)
        await on_spoke(lane, name, [KERNEL])
        await fleet.shows(name, "Available", "True", "Available", seconds=SECONDS)
        await lane.agent.stop()

        await fleet.claim(lane.cluster, [KERNEL, NEWER])

        await fleet.shows(name, "Available", "False", "NotAppliedYet", seconds=SECONDS)
        await on_spoke(lane, name, [KERNEL])
        await lane.agent.start()
        await on_spoke(lane, name, [KERNEL, NEWER])
        await fleet.shows(name, "Available", "True", "Available", seconds=SECONDS)


async def test_a_deselected_spoke_loses_the_module_then_the_permissions_and_keeps_its_namespace(
    fleet: Fleet, hub: HubAddresses, agent: str
) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane:
        await add_module(fleet, name)
        await on_spoke(lane, name, [KERNEL])
        await lane.hold_module(name)

        await fleet.label(lane.cluster, "elsewhere")

        await asyncio.sleep(3)
        assert await fleet.work(lane.cluster, PERMISSIONS) is not None, "the agent needs them for the Module"
        await lane.hold_module(name, is_held=False)
        await off_spoke(lane, name)
        for work in (name, PERMISSIONS):
            await fleet.gone(lane.cluster, work)
        with pytest.raises(NotFound):
            await lane.kube.get(CLUSTER_ROLES, PERMISSION_ROLE)
        namespace = await lane.kube.get(NAMESPACES, "kmm")
        assert "deletionTimestamp" not in namespace["metadata"]
        await fleet.label(lane.cluster, name)
        await on_spoke(lane, name, [KERNEL])


async def test_a_deleted_module_stays_until_the_spoke_has_unloaded_it(
    fleet: Fleet, hub: HubAddresses, agent: str
) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane:
        await add_module(fleet, name)
        await on_spoke(lane, name, [KERNEL])
        await lane.hold_module(name)

        await fleet.kube.delete(MODULES, name)

        await asyncio.sleep(3)
        module = await fleet.module(name)
        assert module is not None
        assert module["metadata"]["deletionTimestamp"]
        await lane.hold_module(name, is_held=False)
        await fleet.module_gone(name)
        assert await lane.module(name) is None


async def test_a_detached_spoke_is_cleaned_in_order_and_served_again_when_it_is_back(
    fleet: Fleet, hub: HubAddresses, agent: str
) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane, await ApiClient.connect(hub.kubeconfig) as admin:
        await add_module(fleet, name)
        await on_spoke(lane, name, [KERNEL])
        await fleet.ready(name)

        await begin_detach(fleet, lane.cluster)
        await asyncio.sleep(1)
        deleted = await clean_cluster(fleet, admin, lane.cluster)
        await finish_detach(fleet, lane.cluster)

        assert deleted == [name, PERMISSIONS]
        assert await lane.module(name) is None
        await asyncio.sleep(2)
        assert await admin.list_all(MANIFEST_WORKS, namespace=lane.cluster) == [], "nothing was made again"
        await fleet.add_cluster(lane.cluster, label=name, kernels=[NEWER])
        await on_spoke(lane, name, [NEWER])


async def test_a_detached_spoke_is_counted_no_more(fleet: Fleet, hub: HubAddresses, agent: str) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane, await ApiClient.connect(hub.kubeconfig) as admin:
        await add_module(fleet, name)
        await on_spoke(lane, name, [KERNEL])
        await begin_detach(fleet, lane.cluster)
        await clean_cluster(fleet, admin, lane.cluster)
        await asyncio.sleep(2)  # the hub has seen that the works are gone

        await finish_detach(fleet, lane.cluster)

        await fleet.shows(name, "Dispatched", "True", "NoClusterSelected", seconds=10)


async def test_a_spoke_without_kmm_says_so_until_it_has_it(
    fleet: Fleet, hub: HubAddresses, agent: str
) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name, has_kmm=False) as lane:
        await add_module(fleet, name)

        await fleet.shows(name, "Available", "False", "KmmNotInstalledOnSpoke", seconds=SECONDS)

        message = await fleet.shows(name, "Degraded", "True", "KmmNotInstalledOnSpoke", seconds=SECONDS)
        assert lane.cluster in message
        (entry,) = (await status_of(fleet, name))["attention"]
        assert (entry["cluster"], entry["reason"]) == (lane.cluster, "KmmNotInstalledOnSpoke")
        assert "kmmhub spoke-install" in entry["message"]
        await lane.install_kmm()
        await on_spoke(lane, name, [KERNEL])
        await fleet.ready(name, seconds=SECONDS)
        assert not (await status_of(fleet, name)).get("attention")


async def test_one_spoke_without_kmm_holds_up_no_other(fleet: Fleet, hub: HubAddresses, agent: str) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane:
        bare = fleet.new_name()
        async with joined(fleet, hub, agent, bare, has_kmm=False) as other:
            await fleet.label(other.cluster, name)

            await add_module(fleet, name)

            await fleet.shows(name, "Degraded", "True", "KmmNotInstalledOnSpoke", seconds=SECONDS)
            await on_spoke(lane, name, [KERNEL])
            status = await status_of(fleet, name)
            assert [entry["cluster"] for entry in status["attention"]] == [other.cluster]
            assert (status["numberDesired"], status["numberApplied"]) == (2, 1)


async def test_a_module_that_somebody_deleted_on_the_spoke_is_not_called_available(
    fleet: Fleet, hub: HubAddresses, agent: str
) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane:
        await add_module(fleet, name)
        await on_spoke(lane, name, [KERNEL])
        await lane.report(name, nodesMatchingSelectorNumber=1, desiredNumber=1, availableNumber=1)
        await fleet.shows(name, "Available", "True", "Available", seconds=SECONDS)

        await lane.kube.delete(KMM_MODULES, name, namespace="kmm")

        async def is_noticed() -> bool:
            return bool((await fleet.condition(name, "Available"))["status"] == "False")

        await eventually(is_noticed, what="Available=False", seconds=15, every=0.05)
        await on_spoke(lane, name, [KERNEL], seconds=lane.agent.resync_seconds)

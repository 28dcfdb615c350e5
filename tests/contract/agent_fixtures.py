"""Fixture: a lane with a running work agent, of each kind that there is."""

from collections.abc import AsyncIterator

import pytest
from spoke.agents import AGENTS
from spoke.client import ApiClient
from spoke.lane import open_lane, refuse_foreign_hub
from spoke.rights import permission_role
from work_bench import GRACE_SECONDS, Bench

from localhub.hub import HubAddresses
from shared.kube.client import NAMESPACES


@pytest.fixture(scope="module", params=AGENTS)
async def bench(request: pytest.FixtureRequest, hub: HubAddresses) -> AsyncIterator[Bench]:
    """A spoke with KMM, its agent running and allowed to write Modules, and namespaces default and kmm."""
    refuse_foreign_hub(hub)
    async with await ApiClient.connect(hub.kubeconfig) as admin:
        cluster = Bench.new_name()
        await admin.create(NAMESPACES, {"metadata": {"name": cluster}})
        async with open_lane(hub, cluster, agent=request.param, eviction_grace=GRACE_SECONDS) as lane:
            await lane.install_kmm()
            await lane.add_namespace("kmm")
            await lane.agent.start()
            bench = Bench(hub=admin, lane=lane)
            await bench.applied(await bench.post(permission_role(), name="permissions"))
            yield bench

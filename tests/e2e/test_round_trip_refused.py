"""Spokes that refuse: without rights, without the namespace. The hub gives no permissions here.

`KMMHUB_SPOKE_PERMISSIONS` is off: whoever runs the spokes has to care for rights and namespaces, and has not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fleet import Fleet
from round_trip import KERNEL, PERMISSIONS, SECONDS, add_module, joined, on_spoke, status_of
from services_fixtures import run_fleet
from spoke.agents import AGENTS
from spoke.client import CLUSTER_ROLES
from spoke.lane import MANAGER, Lane, refuse_foreign_hub
from spoke.rights import AGENT_USER, PERMISSION_ROLE, permission_role

from localhub.hub import HubAddresses

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
async def fleet(hub: HubAddresses, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Services that leave rights and namespaces of spokes to others."""
    refuse_foreign_hub(hub)
    directory = tmp_path_factory.mktemp("refused")
    async with run_fleet(hub, directory, KMMHUB_SPOKE_PERMISSIONS="false") as running:
        yield running
        assert running.services.surprises() == []


@pytest.fixture(params=AGENTS)
def agent(request: pytest.FixtureRequest) -> str:
    """Which agent stands between the API servers."""
    return str(request.param)


async def grant(lane: Lane) -> None:
    """The spoke's administrator lets the agent at Modules."""
    await lane.kube.apply(CLUSTER_ROLES, PERMISSION_ROLE, permission_role(), manager=MANAGER)


async def complains(fleet: Fleet, name: str, lane: Lane, reason: str) -> str:
    """Wait until the module's conditions and its attention say why the spoke refuses. Returns the message."""
    await fleet.shows(name, "Available", "False", reason, seconds=SECONDS)
    message = await fleet.shows(name, "Degraded", "True", reason, seconds=SECONDS)
    await fleet.shows(name, "Ready", "False", reason, seconds=SECONDS)
    assert lane.cluster in message
    (entry,) = (await status_of(fleet, name))["attention"]
    assert (entry["cluster"], entry["reason"]) == (lane.cluster, reason)
    return str(entry["message"])


async def test_a_spoke_without_rights_says_so_until_it_gives_them(
    fleet: Fleet, hub: HubAddresses, agent: str
) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane:
        await lane.add_namespace("kmm")
        await add_module(fleet, name)

        message = await complains(fleet, name, lane, "SpokeForbidden")

        assert AGENT_USER in message
        assert await fleet.work(lane.cluster, PERMISSIONS) is None
        await grant(lane)
        await on_spoke(lane, name, [KERNEL])
        await fleet.ready(name, seconds=SECONDS)


async def test_a_spoke_without_the_namespace_says_so_until_it_is_there(
    fleet: Fleet, hub: HubAddresses, agent: str
) -> None:
    name = fleet.new_name()
    async with joined(fleet, hub, agent, name) as lane:
        await grant(lane)
        await add_module(fleet, name)

        message = await complains(fleet, name, lane, "SpokeNamespaceMissing")

        assert 'namespaces "kmm" not found' in message
        await lane.add_namespace("kmm")
        await on_spoke(lane, name, [KERNEL])
        await fleet.ready(name, seconds=SECONDS)

"""Both stores, empty: Postgres with the schema of the product, and the simulation's."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from shared.domain.artifact import ArtifactRequest, SignRecipe
from shared.domain.kernel import KernelVersion
from shared.store.database import connect
from shared.store.migrate import upgrade
from shared.store.port import Store
from shared.store.postgres import PostgresStore
from simulation.line import Line, Weather
from simulation.store import SimulatedStore, StoreState


@pytest.fixture(params=["postgres", "simulated"])
async def store(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Store]:
    """An empty store."""
    if request.param == "simulated":
        state = StoreState(clock=asyncio.get_running_loop().time)
        yield SimulatedStore(state, Line("test", Weather(delay=0.001), random.Random(1)))
        return
    await asyncio.to_thread(upgrade, database_url)
    opened = connect(database_url, application="test", pool_size=20)
    yield PostgresStore(opened)
    await opened.dispose()


def artifact_request(number: int, *, is_signed: bool = False) -> ArtifactRequest:
    """A request; each number is another artifact."""
    sign = SignRecipe(
        files=("/opt/*.ko",), key_secret="key", key_version="1", cert_secret="cert", cert_version="1"
    )
    return ArtifactRequest(
        target=f"registry.example/module:{number}",
        kernel=KernelVersion("6.1.0-13-amd64"),
        architecture="amd64",
        sign=sign if is_signed else None,
    )

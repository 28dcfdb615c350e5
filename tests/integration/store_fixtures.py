"""A database with the schema of the product, for tests of the statements on it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.domain.artifact import ArtifactRequest, SignRecipe
from shared.domain.kernel import KernelVersion
from shared.store.database import Engine, connect
from shared.store.migrate import upgrade
from shared.store.postgres import PostgresStore


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    """Connections to an empty database of the newest schema."""
    await asyncio.to_thread(upgrade, database_url)
    opened = connect(database_url, application="test", pool_size=20)
    yield opened
    await opened.dispose()


@pytest.fixture
def store(engine: Engine) -> PostgresStore:
    """The store on it."""
    return PostgresStore(engine)


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

"""`kmmhub retry`: clears failures that a person has put right outside of the module."""

from __future__ import annotations

import asyncio

from shared.domain.errors import PermanentError
from shared.store import artifacts
from shared.store.database import connect, explained_failures
from shared.store.postgres import PostgresStore


class NothingFailed(PermanentError):
    """There is no failed image that could be tried again."""

    reason = "NothingFailed"


def retry(module: str, *, database_url: str) -> list[str]:
    """Let all failed images of a module be tried again.

    Returns:
        The keys of the artifacts.

    Raises:
        NothingFailed: the module has none.
        DatabaseUnavailable: Postgres does not answer, or lacks the schema.
    """
    with explained_failures(database_url):
        return asyncio.run(_retry(module, database_url))


async def _retry(module: str, database_url: str) -> list[str]:
    engine = connect(database_url, application="kmmhub-retry", pool_size=1)
    try:
        async with PostgresStore(engine).begin() as transaction:
            wanted = await transaction.read_artifact_keys(module)
            keys = await artifacts.retry_failed(transaction, wanted)
    finally:
        await engine.dispose()
    if not keys:
        raise NothingFailed(
            f"module {module!r} has no failed image; `kmmhub status {module}` shows where it stands"
        )
    return [*keys]

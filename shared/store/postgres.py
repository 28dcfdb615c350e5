"""The store on Postgres."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from sqlalchemy.exc import SQLAlchemyError

from shared.store.artifact_rows import ArtifactStatements
from shared.store.database import DRIVER_ERRORS, Connection, Engine
from shared.store.fact_rows import FactStatements
from shared.store.outbox_rows import OutboxStatements
from shared.store.port import StoreUnavailable
from shared.store.work_rows import WorkStatements


class PostgresTransaction(ArtifactStatements, FactStatements, WorkStatements, OutboxStatements):
    """`shared.store.port.Transaction` on one connection that is in a transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection


class PostgresStore:
    """`shared.store.port.Store` on a pool of connections."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncIterator[PostgresTransaction]:
        """A transaction that commits at the end of the block.

        Raises:
            StoreUnavailable: in place of the driver's errors.
        """
        try:
            async with self._engine.begin() as connection:
                yield PostgresTransaction(connection)
        except (*DRIVER_ERRORS, SQLAlchemyError, OSError) as error:
            cause = getattr(error, "orig", None) or error
            raise StoreUnavailable(f"Postgres cannot be used: {cause}; is DATABASE_URL right?") from error

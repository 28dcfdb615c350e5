"""Statements on artifacts, and on what each module wants of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import array, insert

from shared.domain.artifact import (
    Artifact,
    ArtifactKey,
    ArtifactState,
    Stage,
    request_from_json,
    request_to_json,
)
from shared.domain.canonical import storable
from shared.domain.lease import DROPPED, ENDED
from shared.store.database import Connection, chunks, text_array
from shared.store.port import Locked
from shared.store.tables import FIXED_ARTIFACT_COLUMNS, artifacts, clusters, module_kernels

_WAS_THERE: sa.ColumnElement[bool] = sa.literal_column("xmax <> 0")
"""Of a row that an upsert returns: Postgres locked an older version of it."""

_IMMUTABLE = FIXED_ARTIFACT_COLUMNS - {"key"}

_CHUNK = 500
"""An artifact has many columns, and a statement takes 32,767 parameters."""

_COLUMNS = [
    column for column in artifacts.c if column.name not in {"target", "kernel", "created_at", "changed_at"}
]


class ArtifactStatements:
    """`shared.store.port.ArtifactRows` on Postgres."""

    _connection: Connection

    async def now(self) -> dt.datetime:
        """The time at which the transaction began."""
        now: dt.datetime = (await self._connection.execute(sa.select(sa.func.now()))).scalar_one()
        return now

    async def add_artifacts(self, new: Iterable[Artifact]) -> list[ArtifactKey]:
        """Insert those whose keys do not exist."""
        keys: list[ArtifactKey] = []
        for chunk in chunks([_row(artifact) for artifact in new], _CHUNK):
            statement = insert(artifacts).values(chunk).on_conflict_do_nothing().returning(artifacts.c.key)
            keys += [ArtifactKey(key) for (key,) in await self._connection.execute(statement)]
        return keys

    async def read_artifacts(self, keys: Collection[str]) -> dict[ArtifactKey, Artifact]:
        """Those that exist."""
        query = sa.select(*_COLUMNS).where(artifacts.c.key == sa.any_(text_array(keys)))
        return {
            row["key"]: _artifact(dict(row)) for row in (await self._connection.execute(query)).mappings()
        }

    async def lock_artifacts(self, keys: Collection[str]) -> Locked:
        """In the order of their keys, so that two transactions never wait for each other."""
        query = sa.select(*_COLUMNS, sa.func.now().label("now"))
        query = query.where(artifacts.c.key == sa.any_(text_array(keys)))
        return await self._locked(query.order_by(artifacts.c.key).with_for_update())

    async def lock_overdue_artifacts(self, *, limit: int) -> Locked:
        """Those that others hold are left out: they are being moved."""
        query = sa.select(*_COLUMNS, sa.func.now().label("now"))
        query = query.where(artifacts.c.state.not_in(ENDED), artifacts.c.announce_after <= sa.func.now())
        return await self._locked(query.limit(limit).with_for_update(skip_locked=True))

    async def due_artifacts(self, stage: Stage, *, since_seconds: float, limit: int) -> list[ArtifactKey]:
        """Some that a worker of this stage could have taken for so long."""
        query = (
            sa.select(artifacts.c.key)
            .where(
                artifacts.c.state.in_([stage.waiting, stage.working]),
                artifacts.c.not_before <= sa.func.now() - dt.timedelta(seconds=since_seconds),
            )
            .order_by(artifacts.c.not_before)
            .limit(limit)
        )
        return [ArtifactKey(key) for (key,) in await self._connection.execute(query)]

    async def put_artifacts(self, changed: Iterable[Artifact]) -> None:
        """Write artifacts that this transaction holds."""
        rows = [
            {f"new_{name}": value for name, value in _row(artifact).items() if name not in _IMMUTABLE}
            for artifact in changed
        ]
        if not rows:
            return
        values: dict[str, Any] = {
            name.removeprefix("new_"): sa.bindparam(name) for name in rows[0] if name != "new_key"
        }
        statement = sa.update(artifacts).where(artifacts.c.key == sa.bindparam("new_key"))
        await self._connection.execute(statement.values(changed_at=sa.func.now(), **values), rows)

    async def put_module_kernels(self, wanted: Mapping[tuple[str, str], str]) -> set[str]:
        """Returns keys that replaced another one."""
        rows = [
            {"module": module, "kernel": kernel, "artifact_key": key}
            for (module, kernel), key in sorted(wanted.items())
        ]
        replacing: set[str] = set()
        for chunk in chunks(rows):
            statement = insert(module_kernels).values(chunk)
            moved = await self._connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["module", "kernel"],
                    set_={"artifact_key": statement.excluded.artifact_key},
                    where=module_kernels.c.artifact_key != statement.excluded.artifact_key,
                ).returning(module_kernels.c.artifact_key, _WAS_THERE)
            )
            replacing |= {key for key, was_there in moved if was_there}
        return replacing

    async def keep_module_kernels(
        self, places: Collection[tuple[str, str]], *, of: Collection[str] | None, unread: Collection[str]
    ) -> None:
        """Forget other places."""
        pairs = sa.func.unnest(
            text_array(module for module, _ in places), text_array(name for _, name in places)
        )
        kept = pairs.table_valued("module", "kernel").render_derived(name="kept")
        is_kept = sa.exists().where(
            kept.c.module == module_kernels.c.module, kept.c.kernel == module_kernels.c.kernel
        )
        is_unread = module_kernels.c.module == sa.any_(text_array(unread))
        forget = sa.delete(module_kernels).where(~is_kept, ~is_unread)
        if of is not None:
            forget = forget.where(module_kernels.c.module == sa.any_(text_array(of)))
        await self._connection.execute(forget)

    async def lock_unneeded_artifacts(self, *, limit: int) -> Locked:
        """Some that no module wants, and that are tried again or shown."""
        query = sa.select(*_COLUMNS, sa.func.now().label("now")).where(
            artifacts.c.state.in_(DROPPED),
            ~sa.exists().where(module_kernels.c.artifact_key == artifacts.c.key),
        )
        return await self._locked(query.limit(limit).with_for_update(skip_locked=True))

    async def read_artifact_keys(self, module: str) -> set[str]:
        """Keys that a module wants."""
        query = sa.select(module_kernels.c.artifact_key).where(module_kernels.c.module == module)
        return {key for (key,) in await self._connection.execute(query)}

    async def read_places(self, keys: Collection[str]) -> set[tuple[str, str]]:
        """(module, cluster) pairs that wait for one of these artifacts."""
        if not keys:
            return set()
        query = (
            sa.select(module_kernels.c.module, clusters.c.name)
            .join(clusters, clusters.c.kernels.contains(array([module_kernels.c.kernel])))
            .where(module_kernels.c.artifact_key == sa.any_(text_array(keys)))
        )
        return {(module, cluster) for module, cluster in await self._connection.execute(query)}

    async def _locked(self, query: sa.Select[Any]) -> Locked:
        rows = [dict(row) for row in (await self._connection.execute(query)).mappings()]
        now = rows[0]["now"] if rows else await self.now()
        found = [_artifact({name: row[name] for name in row if name != "now"}) for row in rows]
        return Locked(now=now, artifacts={artifact.key: artifact for artifact in found})


def _artifact(row: dict[str, Any]) -> Artifact:
    owner = row.pop("lease_owner")
    request, state = request_from_json(row.pop("request")), ArtifactState(row.pop("state"))
    return Artifact(**row, owner=owner, request=request, state=state)


def _row(artifact: Artifact) -> dict[str, Any]:
    row: dict[str, Any] = storable(
        {
            "key": artifact.key,
            "target": artifact.request.target,
            "kernel": artifact.request.kernel,
            "request": request_to_json(artifact.request),
            "state": artifact.state,
            "fence": artifact.fence,
            "lease_owner": artifact.owner,
            "not_before": artifact.not_before,
            "announce_after": artifact.announce_after,
            "announced": artifact.announced,
            "attempts": artifact.attempts,
            "source": artifact.source,
            "source_is_adopted": artifact.source_is_adopted,
            "digest": artifact.digest,
            "signed_by": artifact.signed_by,
            "reason": artifact.reason,
            "message": artifact.message,
            "log_tail": artifact.log_tail,
            "build_seconds": artifact.build_seconds,
            "sign_seconds": artifact.sign_seconds,
        }
    )
    return row

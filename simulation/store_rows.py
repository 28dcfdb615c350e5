"""The statements of `shared.store.port` on rows in memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from shared.domain.artifact import Artifact, ArtifactKey, Stage
from shared.domain.lease import DROPPED, ENDED
from shared.domain.module import RESERVED_NAME
from shared.domain.work import ObservedWork, StoredWork
from shared.store.port import Facts, Locked, Row
from simulation.store_access import row_keys
from simulation.store_outbox import DEAD_LETTERS, OUTBOX, OutboxRows

__all__ = ["ARTIFACTS", "DEAD_LETTERS", "GONE_WORKS", "MODULE_KERNELS", "OUTBOX", "SYNCS", "WORKS", "Rows"]

ARTIFACTS, MODULE_KERNELS, WORKS, GONE_WORKS, SYNCS = (
    "artifacts",
    "module_kernels",
    "works",
    "gone_works",
    "syncs",
)


class Rows(OutboxRows):
    """Every statement, on the few things that a transaction can do with a row."""

    # Artifacts

    async def add_artifacts(self, new: Iterable[Artifact]) -> list[ArtifactKey]:
        """Insert those whose keys do not exist."""
        rows = {artifact.key: artifact for artifact in new}

        def run() -> list[ArtifactKey]:
            added = [key for key in rows if self._get(ARTIFACTS, key) is None]
            for key in added:
                self._put(ARTIFACTS, key, rows[key])
            return added

        return await self._run("add_artifacts", run, hold=row_keys(ARTIFACTS, sorted(rows)))

    async def read_artifacts(self, keys: Collection[str]) -> dict[ArtifactKey, Artifact]:
        """Those that exist."""
        return await self._run("read_artifacts", lambda: self._artifacts(keys))

    async def lock_artifacts(self, keys: Collection[str]) -> Locked:
        """Those that exist, held."""
        there = sorted(key for key in set(keys) if self._get(ARTIFACTS, key) is not None)
        return await self._run(
            "lock_artifacts",
            lambda: Locked(now=self._began, artifacts=self._artifacts(there)),
            hold=row_keys(ARTIFACTS, there),
        )

    async def lock_overdue_artifacts(self, *, limit: int) -> Locked:
        """Those that others hold are left out."""

        def run() -> Locked:
            due = [
                artifact
                for key, artifact in self._all(ARTIFACTS).items()
                if artifact.state not in ENDED
                and artifact.announce_after <= self._began
                and self._is_free((ARTIFACTS, key))
            ][:limit]
            for artifact in due:
                self._take((ARTIFACTS, artifact.key))
            return Locked(now=self._began, artifacts={artifact.key: artifact for artifact in due})

        return await self._run("lock_overdue_artifacts", run)

    async def due_artifacts(self, stage: Stage, *, since_seconds: float, limit: int) -> list[ArtifactKey]:
        """Some that a worker of this stage could have taken for so long, oldest first."""
        latest = self._began - dt.timedelta(seconds=since_seconds)

        def run() -> list[ArtifactKey]:
            due = [
                artifact
                for artifact in self._all(ARTIFACTS).values()
                if artifact.state in {stage.waiting, stage.working} and artifact.not_before <= latest
            ]
            return [artifact.key for artifact in sorted(due, key=lambda one: one.not_before)[:limit]]

        return await self._run("due_artifacts", run)

    async def put_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """Write artifacts that this transaction holds."""
        rows = list(artifacts)

        def run() -> None:
            for artifact in rows:
                if self._get(ARTIFACTS, artifact.key) is not None:
                    self._put(ARTIFACTS, artifact.key, artifact)

        if rows:
            await self._run("put_artifacts", run, hold=row_keys(ARTIFACTS, (row.key for row in rows)))

    async def put_module_kernels(self, wanted: Mapping[tuple[str, str], str]) -> set[str]:
        """Returns keys that replaced another one."""

        def run() -> set[str]:
            replacing = set()
            for place, key in wanted.items():
                before = self._get(MODULE_KERNELS, place)
                if before != key:
                    self._put(MODULE_KERNELS, place, key)
                    replacing |= {key} if before is not None else set()
            return replacing

        return await self._run("put_module_kernels", run, hold=row_keys(MODULE_KERNELS, sorted(wanted)))

    async def keep_module_kernels(
        self, places: Collection[tuple[str, str]], *, of: Collection[str] | None, unread: Collection[str]
    ) -> None:
        """Forget other places."""

        def run() -> None:
            for place in self._all(MODULE_KERNELS):
                if place not in places and place[0] not in unread and (of is None or place[0] in of):
                    self._put(MODULE_KERNELS, place, None)

        await self._run("keep_module_kernels", run)

    async def lock_unneeded_artifacts(self, *, limit: int) -> Locked:
        """Some that no module wants, and that are tried again or shown."""

        def run() -> Locked:
            needed = set(self._all(MODULE_KERNELS).values())
            unneeded = [
                artifact
                for key, artifact in self._all(ARTIFACTS).items()
                if artifact.state in DROPPED and key not in needed and self._is_free((ARTIFACTS, key))
            ][:limit]
            for artifact in unneeded:
                self._take((ARTIFACTS, artifact.key))
            return Locked(now=self._began, artifacts={artifact.key: artifact for artifact in unneeded})

        return await self._run("lock_unneeded_artifacts", run)

    async def read_artifact_keys(self, module: str) -> set[str]:
        """Keys that a module wants."""
        return await self._run(
            "read_artifact_keys",
            lambda: {key for (name, _), key in self._all(MODULE_KERNELS).items() if name == module},
        )

    async def read_places(self, keys: Collection[str]) -> set[tuple[str, str]]:
        """(module, cluster) pairs that want one of these artifacts."""
        if not keys:
            return set()
        return await self._run(
            "read_places",
            lambda: {
                (module, name)
                for (module, kernel), key in self._all(MODULE_KERNELS).items()
                if key in keys
                for name, cluster in self._all(Facts.CLUSTERS).items()
                if kernel in cluster["kernels"]
            },
        )

    # Facts

    async def read_facts(self, table: Facts, names: Collection[str] | None = None) -> dict[str, Row]:
        """Rows by name."""
        return await self._run("read_facts", lambda: self._facts(table, names))

    async def lock_facts(self, table: Facts, names: Collection[str]) -> dict[str, Row]:
        """Rows by name, held."""
        there = sorted(name for name in set(names) if self._get(table, name) is not None)
        return await self._run("lock_facts", lambda: self._facts(table, there), hold=row_keys(table, there))

    async def put_facts(self, table: Facts, rows: Sequence[Row]) -> None:
        """Insert or replace rows."""

        def run() -> None:
            for row in rows:
                self._put(table, row["name"], dict(row))

        if rows:
            await self._run("put_facts", run, hold=row_keys(table, (row["name"] for row in rows)))

    async def remove_facts(self, table: Facts, names: Collection[str]) -> set[str]:
        """Returns the names of those that were there."""

        def run() -> set[str]:
            there = {name for name in names if self._get(table, name) is not None}
            for name in sorted(there):
                self._put(table, name, None)
            return there

        if not names:
            return set()
        return await self._run("remove_facts", run, hold=row_keys(table, sorted(set(names))))

    async def mark_synced(self, resource: str, *, resource_version: int) -> None:
        """Note that a resource was listed completely."""
        await self._run(
            "mark_synced",
            lambda: self._put(SYNCS, resource, resource_version),
            hold=[(SYNCS, resource)],
        )

    async def synced_resources(self) -> set[str]:
        """Resources that were listed completely at least once."""
        return await self._run("synced_resources", lambda: set(self._all(SYNCS)))

    # Works

    async def record_works(
        self, observed: Sequence[ObservedWork], *, is_own_write: bool
    ) -> set[tuple[str, str]]:
        """Store works unless something newer is known."""

        def run() -> set[tuple[str, str]]:
            stored = set()
            for work in observed:
                key = (work.cluster, work.name)
                known: StoredWork | None = self._get(WORKS, key)
                if known is None or is_newer(work, known.work, is_own_write=is_own_write):
                    posted = work.observed_hash if is_own_write else None
                    if known is not None and known.work.uid == work.uid and posted is None:
                        posted = known.posted_hash
                    self._put_work(StoredWork(work=work, posted_hash=posted))
                    stored.add(key)
            return stored

        if not observed:
            return set()
        keys = row_keys(WORKS, [(work.cluster, work.name) for work in observed])
        return await self._run("record_works", run, hold=keys)

    async def mark_works_gone(
        self, keys: Iterable[tuple[str, str]], *, resource_version: int
    ) -> set[tuple[str, str]]:
        """Returns those for which that was news."""
        wanted = sorted(keys)

        def run() -> set[tuple[str, str]]:
            gone = set()
            for key in wanted:
                known: StoredWork | None = self._get(WORKS, key)
                if known and not known.work.is_gone and known.work.resource_version <= resource_version:
                    work = replace(known.work, is_gone=True, resource_version=resource_version)
                    self._put_work(replace(known, work=work))
                    gone.add(key)
            return gone

        if not wanted:
            return set()
        return await self._run("mark_works_gone", run, hold=row_keys(WORKS, wanted))

    async def read_works(
        self, *, modules: Collection[str] | None, clusters: Collection[str] = ()
    ) -> dict[tuple[str, str], StoredWork]:
        """Works of these modules (None: all), or in these clusters, by (name, cluster)."""

        def run() -> dict[tuple[str, str], StoredWork]:
            gone_clusters = set(clusters) - self._all(Facts.CLUSTERS).keys()
            ours = {RESERVED_NAME, *self._all(Facts.MODULES)}
            return {
                (name, cluster): stored
                for (cluster, name), stored in self._all(WORKS).items()
                if modules is None or name in modules or stored.work.module in modules or cluster in clusters
                if stored.work.module is not None or name in ours
                if not stored.work.is_gone or cluster in gone_clusters
            }

        return await self._run("read_works", run)

    async def forget_gone_works(self, *, older_than_seconds: float, limit: int) -> None:
        """Those that others hold stay."""
        latest = self._began - dt.timedelta(seconds=older_than_seconds)

        def run() -> None:
            old = [
                key
                for key, went in self._all(GONE_WORKS).items()
                if went < latest and self._is_free((WORKS, key))
            ]
            for key in old[:limit]:
                self._take((WORKS, key))
                self._put(WORKS, key, None)
                self._put(GONE_WORKS, key, None)

        await self._run("forget_gone_works", run)

    async def known_works(self) -> set[tuple[str, str]]:
        """(cluster, name) of those that are not gone."""
        return await self._run(
            "known_works",
            lambda: {key for key, stored in self._all(WORKS).items() if not stored.work.is_gone},
        )

    def _put_work(self, stored: StoredWork) -> None:
        """A work, and if it is gone since when."""
        work = stored.work
        key = (work.cluster, work.name)
        self._put(WORKS, key, stored)
        if work.is_gone or self._get(GONE_WORKS, key) is not None:
            self._put(GONE_WORKS, key, self._began if work.is_gone else None)

    def _artifacts(self, keys: Iterable[str]) -> dict[ArtifactKey, Artifact]:
        found = {ArtifactKey(key): self._get(ARTIFACTS, key) for key in keys}
        return {key: artifact for key, artifact in found.items() if artifact is not None}

    def _facts(self, table: Facts, names: Collection[str] | None) -> dict[str, Row]:
        rows = self._all(table) if names is None else {name: self._get(table, name) for name in names}
        return {name: dict(row) for name, row in rows.items() if row is not None}


def is_newer(work: ObservedWork, known: ObservedWork, *, is_own_write: bool) -> bool:
    """Whether an observation replaces what is known."""
    if is_own_write:
        return work.resource_version >= known.resource_version
    return work.resource_version > known.resource_version

"""Reads what is stored, as the values that decisions take."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import array

from services.dispatcher.decide import Cluster
from services.dispatcher.demand import Configuration, SecretFact
from services.dispatcher.stored import StoredModule, StoredWork
from shared.domain.kernel import KernelVersion
from shared.store import tables
from shared.store.database import Connection, text_array
from shared.store.works import read_work

RESOURCES = frozenset({"clusters", "modules", "config_maps", "secrets", "works"})
"""Nothing is decided before the watcher has listed all of them once: an empty table is no fact."""


async def is_synced(connection: Connection) -> bool:
    """Whether every resource was listed at least once."""
    synced = await connection.execute(sa.select(tables.syncs.c.resource))
    return {resource for (resource,) in synced} >= RESOURCES


async def read_modules(connection: Connection) -> dict[str, StoredModule]:
    """All modules, by name."""
    rows = (await connection.execute(sa.select(tables.modules))).mappings()
    return {row["name"]: StoredModule(**{**row, "finalizers": tuple(row["finalizers"])}) for row in rows}


async def read_configuration(connection: Connection, namespace: str) -> Configuration:
    """ConfigMaps and Secrets of the operator's namespace."""
    config_maps = await connection.execute(
        sa.select(tables.config_maps.c.name, tables.config_maps.c.dockerfile)
    )
    secrets = await connection.execute(
        sa.select(tables.secrets.c.name, tables.secrets.c.version, tables.secrets.c["keys"])
    )
    return Configuration(
        namespace=namespace,
        dockerfiles={row.name: row.dockerfile for row in config_maps},
        secrets={name: SecretFact(version=version, keys=frozenset(keys)) for name, version, keys in secrets},
    )


async def read_clusters(connection: Connection, names: Collection[str] | None) -> dict[str, Cluster]:
    """Clusters by name; all of them if `names` is None."""
    query = sa.select(tables.clusters)
    if names is not None:
        query = query.where(tables.clusters.c.name == sa.any_(text_array(names)))
    return {row["name"]: _cluster(row) for row in (await connection.execute(query)).mappings()}


async def read_works(
    connection: Connection, *, modules: Iterable[str] | None, clusters: Iterable[str] = ()
) -> dict[tuple[str, str], StoredWork]:
    """Works that bear these modules' names or labels (None: all), or in these clusters, by (work name, cluster)."""
    query = sa.select(tables.works)
    if modules is not None:
        names = text_array(modules)
        query = query.where(
            sa.or_(
                tables.works.c.name == sa.any_(names),
                tables.works.c.module == sa.any_(names),
                tables.works.c.cluster == sa.any_(text_array(clusters)),
            )
        )
    rows = await connection.execute(query)
    return {
        (row.name, row.cluster): StoredWork(work=read_work(row), posted_hash=row.posted_hash) for row in rows
    }


async def read_places_of_artifacts(connection: Connection, keys: Collection[str]) -> set[tuple[str, str]]:
    """(module, cluster) pairs that wait for one of these artifacts."""
    if not keys:
        return set()
    kernels, clusters = tables.module_kernels, tables.clusters
    rows = await connection.execute(
        sa.select(kernels.c.module, clusters.c.name)
        .join(
            clusters,
            clusters.c.kernels.contains(array([kernels.c.kernel])),
        )
        .where(kernels.c.artifact_key == sa.any_(text_array(keys)))
    )
    return {(module, cluster) for module, cluster in rows}


def _cluster(row: Mapping[Any, Any]) -> Cluster:
    return Cluster(
        name=row["name"],
        labels=row["labels"],
        kernels=tuple(KernelVersion(kernel) for kernel in row["kernels"]),
        has_claim=row["claim_is_present"],
        is_deleting=row["is_deleting"],
        bad_kernels=tuple(entry["reason"] for entry in row["invalid_kernels"]),
        claim_is_near_limit=row["claim_is_near_limit"],
    )

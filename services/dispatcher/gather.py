"""Reads what is stored, as the values that decisions take."""

from __future__ import annotations

from collections.abc import Collection

from services.dispatcher.decide import Cluster
from services.dispatcher.demand import Configuration, SecretFact
from services.dispatcher.stored import StoredModule
from shared.domain.kernel import KernelVersion
from shared.store.port import FactRows, Facts, Row

RESOURCES = frozenset({"clusters", "modules", "config_maps", "secrets", "works"})
"""Nothing is decided before the watcher has listed all of them once: an empty table is no fact."""


async def is_synced(transaction: FactRows) -> bool:
    """Whether every resource was listed at least once."""
    return await transaction.synced_resources() >= RESOURCES


async def read_modules(transaction: FactRows) -> dict[str, StoredModule]:
    """All modules, by name."""
    rows = await transaction.read_facts(Facts.MODULES)
    return {
        name: StoredModule(**{**row, "finalizers": tuple(row["finalizers"])}) for name, row in rows.items()
    }


async def read_configuration(transaction: FactRows, namespace: str) -> Configuration:
    """ConfigMaps and Secrets of the operator's namespace."""
    config_maps = await transaction.read_facts(Facts.CONFIG_MAPS)
    secrets = await transaction.read_facts(Facts.SECRETS)
    return Configuration(
        namespace=namespace,
        dockerfiles={name: row["dockerfile"] for name, row in config_maps.items()},
        secrets={
            name: SecretFact(version=row["version"], keys=frozenset(row["keys"]))
            for name, row in secrets.items()
        },
    )


async def read_clusters(transaction: FactRows, names: Collection[str] | None) -> dict[str, Cluster]:
    """Clusters by name; all of them if `names` is None."""
    rows = await transaction.read_facts(Facts.CLUSTERS, names)
    return {name: _cluster(row) for name, row in rows.items()}


def _cluster(row: Row) -> Cluster:
    return Cluster(
        name=row["name"],
        labels=row["labels"],
        kernels=tuple(KernelVersion(kernel) for kernel in row["kernels"]),
        has_claim=row["claim_is_present"],
        is_deleting=row["is_deleting"],
        bad_kernels=tuple(entry["reason"] for entry in row["invalid_kernels"]),
        claim_is_near_limit=row["claim_is_near_limit"],
    )

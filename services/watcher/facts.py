"""From API objects to facts. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from services.watcher.kinds import ConfigMap, ManagedCluster, ManagedClusterModule, Secret
from shared.domain.canonical import storable, storable_text
from shared.domain.claim import CLAIM_NAME, read_claim

DOCKERFILE_KEY = "dockerfile"
"""Key of the ConfigMap that holds a Dockerfile (KMM API, `build.dockerfileConfigMap`)."""

Row = dict[str, Any]


def cluster_row(cluster: ManagedCluster) -> Row:
    """Labels and kernels of a ManagedCluster.

    A claim that is missing says nothing about kernels: `claim_is_present` tells, and the kernels that were
    last known are kept by whoever stores this.
    """
    claims = (cluster.status.cluster_claims if cluster.status else None) or []
    value = next((claim.value for claim in claims if claim.name == CLAIM_NAME), None)
    claim = None if value is None else read_claim(value)
    return {
        "name": cluster.metadata.name,
        "uid": cluster.metadata.uid,
        "labels": storable(cluster.metadata.labels or {}),
        "kernels": list(claim.kernels) if claim else [],
        "invalid_kernels": storable(
            [{"text": entry.text[:256], "reason": entry.reason} for entry in (claim.invalid if claim else ())]
        ),
        "claim_is_present": claim is not None,
        "claim_is_near_limit": claim is not None and claim.near_limit,
        "is_deleting": cluster.metadata.deletion_timestamp is not None,
        "resource_version": int(cluster.metadata.resource_version),
    }


def module_row(module: ManagedClusterModule) -> Row:
    """A ManagedClusterModule as the user wrote it, with the status that was last written."""
    return {
        "name": module.metadata.name,
        "uid": module.metadata.uid,
        "generation": module.metadata.generation,
        "spec": storable(module.spec or {}),
        "status": storable(module.status or {}),
        "finalizers": storable(module.metadata.finalizers or []),
        "is_deleting": module.metadata.deletion_timestamp is not None,
        "resource_version": int(module.metadata.resource_version),
    }


def config_map_row(config_map: ConfigMap) -> Row:
    """A ConfigMap's Dockerfile; None if it has no such key."""
    return {
        "name": config_map.metadata.name,
        "dockerfile": storable((config_map.data or {}).get(DOCKERFILE_KEY)),
        "resource_version": int(config_map.metadata.resource_version),
    }


def secret_row(secret: Secret) -> Row:
    """A Secret's version: it changes exactly if the content does, and gives the content away to nobody.

    The hash is slow on purpose (scrypt, RFC 7914): what is stored must not help to guess a weak password.
    """
    content = json.dumps(secret.data or {}, sort_keys=True).encode()
    salt = f"kmm-hub secret {secret.metadata.namespace}/{secret.metadata.name}".encode()
    return {
        "name": secret.metadata.name,
        "version": hashlib.scrypt(content, salt=salt, n=2**12, r=8, p=1, dklen=16).hex(),
        "keys": sorted(map(storable_text, secret.data or {})),
        "resource_version": int(secret.metadata.resource_version),
    }

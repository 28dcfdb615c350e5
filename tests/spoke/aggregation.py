"""Plays Kubernetes' clusterrole-aggregation-controller, which a bare API server lacks, for every aggregated role."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from shared.domain.errors import TransientError
from spoke.client import CLUSTER_ROLES, ApiClient

INTERVAL_SECONDS = 0.3


def aggregated_rules(
    aggregated: Mapping[str, Any], roles: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The rules that an aggregated ClusterRole should have: those of all roles that its selectors match, once each.

    Only `matchLabels` are looked at: nothing here uses expressions.
    """
    selectors = [
        one.get("matchLabels") or {} for one in aggregated["aggregationRule"]["clusterRoleSelectors"]
    ]
    rules: list[Mapping[str, Any]] = []
    for role in sorted(roles, key=lambda one: str(one["metadata"]["name"])):
        labels = (role["metadata"].get("labels") or {}).items()
        if role["metadata"]["name"] != aggregated["metadata"]["name"] and any(
            selector.items() <= labels for selector in selectors
        ):
            rules += [rule for rule in role.get("rules") or [] if rule not in rules]
    return rules


async def aggregate(kube: ApiClient) -> None:
    """Bring every aggregated ClusterRole to the rules that it should have. `kube` is an administrator."""
    roles = await kube.list_all(CLUSTER_ROLES)
    for role in roles:
        if not role.get("aggregationRule"):
            continue
        rules = aggregated_rules(role, roles)
        if rules != (role.get("rules") or []):
            await kube.merge_patch(CLUSTER_ROLES, role["metadata"]["name"], {"rules": rules})


async def keep_aggregating(kube: ApiClient) -> None:
    """Aggregate for ever, a few times a second."""
    while True:
        # The API server may be away for a moment, or somebody else may have written the role: look again.
        with contextlib.suppress(TransientError):
            await aggregate(kube)
        await asyncio.sleep(INTERVAL_SECONDS)

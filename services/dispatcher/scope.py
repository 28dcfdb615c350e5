"""From announcements to the (module, cluster) pairs that must be looked at. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from services.dispatcher.catalog import names_used
from shared.domain.module import ModuleSpec
from shared.events.messages import Changed, Kind

Pair: TypeAlias = tuple[str, str]
"""(module, cluster)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a batch of announcements concerns.

    Attributes:
        everything: all modules on all clusters.
        modules: on all clusters.
        clusters: with all modules.
        pairs: (module, cluster).
        artifacts: keys whose waiting pairs are still to be looked up.
    """

    everything: bool = False
    modules: frozenset[str] = frozenset()
    clusters: frozenset[str] = frozenset()
    pairs: frozenset[tuple[str, str]] = frozenset()
    artifacts: frozenset[str] = frozenset()


def scope_of(changes: Iterable[Changed], specs: Mapping[str, ModuleSpec | None]) -> Scope:
    """Gather announcements into one scope; `specs` are all modules, to find who uses a ConfigMap or Secret."""
    by_kind: dict[Kind, set[Changed]] = {}
    for change in changes:
        by_kind.setdefault(change.kind, set()).add(change)
    configuration = {
        change.name for kind in (Kind.CONFIG_MAP, Kind.SECRET) for change in by_kind.get(kind, ())
    }
    users = {name for name, spec in specs.items() if spec is not None and names_used(spec) & configuration}
    return Scope(
        everything=Kind.EVERYTHING in by_kind,
        modules=frozenset(users | {change.name for change in by_kind.get(Kind.MODULE, ())}),
        clusters=frozenset(change.name for change in by_kind.get(Kind.CLUSTER, ())),
        pairs=frozenset((change.name, change.namespace or "") for change in by_kind.get(Kind.WORK, ())),
        artifacts=frozenset(change.name for change in by_kind.get(Kind.ARTIFACT, ())),
    )

"""Everything stored that one pass needs, gathered in one place before anything is decided."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from services.dispatcher import gather
from services.dispatcher.catalog import ReadModule, outcome_of
from services.dispatcher.decide import (
    Cluster,
    Decision,
    Drafts,
    KernelOutcome,
    Module,
    Pending,
    decide,
    decide_stray,
)
from services.dispatcher.demand import Configuration, Unmet, Wanted
from services.dispatcher.scope import Pair, Scope
from services.dispatcher.surprise import Surprise, surprises
from shared.domain.artifact import Artifact, ArtifactKey, ArtifactState
from shared.domain.kernel import KernelVersion
from shared.domain.selection import is_selected
from shared.domain.work import StoredWork
from shared.store.port import Transaction

_UNREAD = Pending(reason="InvalidModule", message="the module cannot be read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What is stored, for the pairs that a pass looks at.

    Attributes:
        modules: all modules.
        clusters: those of the pairs, as far as they exist.
        works: by (module, cluster), at least those of the pairs.
        pairs: (module, cluster) to decide about.
        needs: what each module needs for each kernel of its clusters in the picture.
        outcomes: where each of those stands.
        dropped: keys of artifacts that are needed, but were given up while nobody needed them.
    """

    modules: Mapping[str, ReadModule]
    clusters: Mapping[str, Cluster]
    works: Mapping[Pair, StoredWork]
    pairs: frozenset[Pair]
    needs: Mapping[tuple[str, KernelVersion], Wanted | Unmet]
    outcomes: Mapping[tuple[str, KernelVersion], KernelOutcome]
    dropped: frozenset[str] = frozenset()
    _drafts: Drafts = field(default_factory=dict, init=False, repr=False, compare=False)

    def decide(self, pair: Pair) -> Decision:
        """The decision about one work.

        A work of ours whose module is gone altogether is an orphan, treated like a deleted module's.
        """
        name, cluster_name = pair
        stored = self.works.get(pair)
        cluster = self.clusters.get(cluster_name)
        owner = stored.work.module if stored is not None else None
        if stored is not None and owner is not None and owner != name and owner in self.modules:
            return decide_stray(owner=self._module(owner), cluster=cluster, work=stored.work)
        kernels = cluster.kernels if cluster else ()
        return decide(
            module=self._module(name),
            cluster=cluster,
            outcomes={kernel: self.outcomes.get((name, kernel), _UNREAD) for kernel in kernels},
            work=stored.work if stored else None,
            posted_hash=stored.posted_hash if stored else None,
            drafts=self._drafts,
        )

    def _module(self, name: str) -> Module:
        read = self.modules.get(name)
        return read.module if read else Module(name=name, uid="", spec=None, is_deleting=True)


async def take_picture(
    transaction: Transaction, modules: Mapping[str, ReadModule], scope: Scope, *, namespace: str
) -> Picture:
    """Gather what a scope concerns.

    Args:
        transaction: only read from.
        modules: all modules, read.
        scope: what to look at.
        namespace: the operator's, where ConfigMaps and Secrets are.
    """
    waiting = await transaction.read_places(scope.artifacts)
    named = scope.pairs | waiting
    whole = frozenset(modules) if scope.everything else scope.modules
    works = await transaction.read_works(
        modules=None if scope.everything else whole | {module for module, _ in named},
        clusters=scope.clusters,
    )
    clusters = await gather.read_clusters(
        transaction, None if whole else scope.clusters | {cluster for _, cluster in named}
    )
    pairs = named | _selected(modules, whole, scope, clusters) | _posted(works, whole, scope)
    configuration = await gather.read_configuration(transaction, namespace)
    needs = _needs(modules, clusters, pairs, configuration)
    known = await transaction.read_artifacts(
        {need.request.key for need in needs.values() if isinstance(need, Wanted)}
    )
    return Picture(
        modules=modules,
        clusters=clusters,
        works=works,
        pairs=frozenset(pairs),
        needs=needs,
        outcomes={key: _outcome(key, need, known) for key, need in needs.items()},
        dropped=frozenset(key for key, one in known.items() if one.state is ArtifactState.UNWANTED),
    )


def _selected(
    modules: Mapping[str, ReadModule], whole: Collection[str], scope: Scope, clusters: Mapping[str, Cluster]
) -> set[Pair]:
    """Modules in the scope with the clusters they select, and clusters in the scope with their modules."""

    def pairs(names: Iterable[str], candidates: Iterable[Cluster]) -> set[Pair]:
        candidates = list(candidates)
        return {
            (name, cluster.name)
            for name in names
            if (read := modules.get(name)) is not None and read.module.spec is not None
            for cluster in candidates
            if is_selected(read.module.spec.selector, cluster.labels)
        }

    named = (clusters[name] for name in scope.clusters if name in clusters)
    return pairs(whole, clusters.values()) | pairs(modules, named)


def _posted(works: Mapping[Pair, StoredWork], whole: Collection[str], scope: Scope) -> set[Pair]:
    """Works of ours that exist, of modules or in clusters of the scope: they may have to go."""
    return {
        pair
        for pair, stored in works.items()
        if stored.work.module and not stored.work.is_gone
        if scope.everything or pair[1] in scope.clusters or {pair[0], stored.work.module} & set(whole)
    }


def _needs(
    modules: Mapping[str, ReadModule],
    clusters: Mapping[str, Cluster],
    pairs: Iterable[Pair],
    configuration: Configuration,
) -> dict[tuple[str, KernelVersion], Wanted | Unmet]:
    needs: dict[tuple[str, KernelVersion], Wanted | Unmet] = {}
    for module, cluster_name in pairs:
        read, cluster = modules.get(module), clusters.get(cluster_name)
        if read is None or read.module.spec is None or read.module.spec.loader is None or cluster is None:
            continue
        if not is_selected(read.module.spec.selector, cluster.labels):
            continue
        for kernel in cluster.kernels:
            if (module, kernel) not in needs:
                needs[module, kernel] = _need(read, kernel, configuration)
    return needs


def _need(read: ReadModule, kernel: KernelVersion, configuration: Configuration) -> Wanted | Unmet:
    """What a module needs for a kernel; a bug that it sets off is its own trouble."""
    try:
        with surprises("demand", module=read.module.name, kernel=kernel):
            return read.demand(kernel, configuration)
    except Surprise as error:
        return Unmet(reason=error.reason, message=str(error), is_match=True)


def _outcome(
    place: tuple[str, KernelVersion], need: Wanted | Unmet, known: Mapping[ArtifactKey, Artifact]
) -> KernelOutcome:
    try:
        with surprises("outcome", module=place[0], kernel=place[1]):
            return outcome_of(need, known)
    except Surprise as error:
        return Pending(reason=error.reason, message=str(error))

"""One pass: gather what is stored, decide, apply. Never run twice at the same time in one process."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import structlog

from services.dispatcher import apply, gather
from services.dispatcher.catalog import Catalog, ReadModule
from services.dispatcher.decide import Decision, Leave
from services.dispatcher.permissions import PERMISSIONS_WORK, Grant, decide_permissions, namespaces_needed
from services.dispatcher.picture import Picture, take_picture
from services.dispatcher.scope import Pair, Scope, scope_of
from services.dispatcher.status import module_status
from services.dispatcher.stored import StoredModule
from services.dispatcher.survey import survey_module
from services.dispatcher.want import forget_unneeded, want_artifacts
from shared.domain.errors import HubError, TransientError
from shared.events.messages import Changed, Kind
from shared.kube.errors import Forbidden, NotFound, Refused
from shared.kube.port import HubApi
from shared.runtime.fail_point import FailPoint, fail_point
from shared.store.port import Store, Transaction

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a pass leaves to do.

    Attributes:
        failed: what to look at again, because the API server did not take the write.
        touched: modules whose status may have changed.
        has_announced: the outbox got something.
    """

    failed: frozenset[Changed] = frozenset()
    touched: frozenset[str] = frozenset()
    has_announced: bool = False


class Reconciler:
    """Reconciles announcements, and writes the status of modules."""

    def __init__(
        self,
        *,
        kube: HubApi,
        store: Store,
        namespace: str,
        now: Callable[[], dt.datetime],
        grant: Grant = Grant.AGGREGATE,
    ) -> None:
        """`now`: the time of day, for people; `grant`: how work agents get their rights on Modules."""
        self._kube = kube
        self._store = store
        self._namespace = namespace
        self._now = now
        self._catalog = Catalog()
        self._grant = grant
        self._refusals: dict[Pair, tuple[str, str]] = {}
        self._reported: dict[str, StoredModule] = {}

    async def reconcile(self, changes: Collection[Changed]) -> Outcome:
        """Bring everything that the announcements concern to what it should be.

        Nothing is done before the watcher has listed everything once; it announces that moment.
        """
        async with self._store.begin() as transaction:
            if not await gather.is_synced(transaction):
                return Outcome()
            modules = await self._read_modules(transaction)
            scope = scope_of(changes, {name: read.module.spec for name, read in modules.items()})
            picture = await take_picture(transaction, modules, scope, namespace=self._namespace)
            names = {cluster for _, cluster in picture.pairs} | scope.clusters
            permissions = await self._decide_permissions(transaction, picture, names)
        fail_point(FailPoint.PICTURE_TAKEN)
        picture, has_announced = await want_artifacts(self._store, picture)
        if scope.everything or scope.modules:
            # At once: what is not needed any more may be under way to a tag that is needed.
            await forget_unneeded(self._store, picture, None if scope.everything else scope.modules)
        # Rights first: a Module that comes before them is refused on the spoke.
        failed = await self._apply_all(permissions) | await self._apply(picture)
        again = set(announce_again(failed))
        touched = {module for module, _ in picture.pairs} | scope.modules
        # A cluster that went, with its works, is in no pair; its modules still count it.
        touched |= {module for module, cluster in picture.works if cluster in scope.clusters}
        if scope.everything:
            touched |= set(modules)
        for name in touched & set(modules):
            if modules[name].stored.is_deleting and not await self._release_if_done(modules[name], picture):
                again.add(Changed(kind=Kind.MODULE, name=name))
        return Outcome(
            failed=frozenset(again), touched=frozenset(touched & set(modules)), has_announced=has_announced
        )

    async def report(self, names: Collection[str]) -> set[str]:
        """Write the status of modules, as they are now. Returns those for which it must be tried again."""
        failed = set()
        async with self._store.begin() as transaction:
            modules = await self._read_modules(transaction)
            scope = Scope(modules=frozenset(names))
            picture = await take_picture(transaction, modules, scope, namespace=self._namespace)
        for name in names:
            read = modules.get(name)
            if read is None or read.stored.is_deleting:
                continue
            survey = survey_module(picture, read, self._refusals)
            time = self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
            stored = self._as_reported(read.stored)
            try:
                status = module_status(survey, previous=stored.status, now=time)
                written = await apply.write_status(self._kube, stored, status, now=time)
                self._reported[name] = written or stored
            except HubError as error:
                log.warning("status.not_written", module=name, error=str(error))
                if isinstance(error, TransientError):
                    failed.add(name)
        return failed

    def _as_reported(self, stored: StoredModule) -> StoredModule:
        """The module with the status that we wrote last: the watch may be behind, and nothing is told twice."""
        last = self._reported.get(stored.name)
        is_newer = last is not None and last.resource_version > stored.resource_version
        return last if last is not None and is_newer and last.uid == stored.uid else stored

    async def _read_modules(self, transaction: Transaction) -> dict[str, ReadModule]:
        stored = await gather.read_modules(transaction)
        self._catalog.forget_all_but(stored)
        self._reported = {name: self._reported[name] for name in stored.keys() & self._reported.keys()}
        return {name: self._catalog.read(module) for name, module in stored.items()}

    async def _apply(self, picture: Picture) -> set[Pair]:
        """Carry out all decisions. Returns the pairs that failed."""
        decisions = {pair: picture.decide(pair) for pair in sorted(picture.pairs)}
        todo = {pair: decision for pair, decision in decisions.items() if not isinstance(decision, Leave)}
        blocked = await self._ensure_finalizers(picture, {module for module, _ in todo})
        allowed = {pair: decision for pair, decision in todo.items() if pair[0] not in blocked}
        return set(todo) - set(allowed) | await self._apply_all(allowed)

    async def _decide_permissions(
        self, transaction: Transaction, picture: Picture, names: Collection[str]
    ) -> dict[Pair, Decision]:
        clusters = await gather.read_clusters(transaction, names)
        works = await transaction.read_works(modules=(), clusters=names)
        modules = [read.module for read in picture.modules.values()]
        with_modules = {
            pair[1] for pair, stored in works.items() if stored.work.module and not stored.work.is_gone
        }
        decisions: dict[Pair, Decision] = {}
        for name in names:
            pair, cluster = (PERMISSIONS_WORK, name), clusters.get(name)
            stored = works.get(pair)
            decisions[pair] = decide_permissions(
                cluster=cluster,
                namespaces=namespaces_needed(cluster, modules) if cluster else (),
                grant=self._grant,
                work=stored.work if stored else None,
                posted_hash=stored.posted_hash if stored else None,
                has_modules=name in with_modules,
            )
        return {pair: decision for pair, decision in decisions.items() if not isinstance(decision, Leave)}

    async def _apply_all(self, decisions: Mapping[Pair, Decision]) -> set[Pair]:
        """Returns the pairs that failed."""
        results = await asyncio.gather(*(self._apply_one(pair, one) for pair, one in decisions.items()))
        return {pair for pair, is_done in results if not is_done}

    async def _apply_one(self, pair: Pair, decision: Decision) -> tuple[Pair, bool]:
        module, cluster = pair
        try:
            await apply.apply_decision(
                self._kube, self._store, module=module, cluster=cluster, decision=decision
            )
        except HubError as error:
            log.warning(
                "work.not_written", module=module, cluster=cluster, reason=error.reason, error=str(error)
            )
            self._refusals[pair] = refusal_of(error, cluster)
            return pair, False
        self._refusals.pop(pair, None)
        return pair, True

    async def _ensure_finalizers(self, picture: Picture, names: Iterable[str]) -> set[str]:
        """Returns the modules whose finalizer could not be set: nothing may be posted for them yet."""
        blocked = set()
        for name in names:
            read = picture.modules.get(name)
            if read is None or read.stored.is_deleting:
                continue
            try:
                await apply.ensure_finalizer(self._kube, read.stored)
            except HubError as error:
                log.warning("module.finalizer_not_set", module=name, error=str(error))
                blocked.add(name)
        return blocked

    async def _release_if_done(self, read: ReadModule, picture: Picture) -> bool:
        """Let a deleted module go once the API server itself, not our memory of it, shows no work.

        Returns false if the API server could not be asked; while works are left, their end will be announced.
        """
        name = read.module.name
        if any(
            stored.work.module == name and not stored.work.is_gone
            for pair, stored in picture.works.items()
            if pair[0] == name
        ):
            return True
        try:
            if not await apply.has_works(self._kube, name):
                await apply.release_module(self._kube, read.stored)
        except HubError as error:
            log.warning("module.not_released", module=name, error=str(error))
            return False
        return True


def announce_again(pairs: Iterable[Pair]) -> list[Changed]:
    """The announcements that bring pairs back into a later pass."""
    return [Changed(kind=Kind.WORK, namespace=cluster, name=module) for module, cluster in pairs]


REFUSALS = frozenset({"ClusterNamespaceMissing", "WorkRefused"})
"""Reasons of a write that the hub's API server did not take, and that a person has to see to."""


def refusal_of(error: HubError, cluster: str) -> tuple[str, str]:
    """(reason, message) for people, of a write that the hub's API server did not take."""
    if isinstance(error, NotFound):
        return "ClusterNamespaceMissing", (
            f"namespace {cluster!r} does not exist on the hub yet; OCM makes it when the cluster is accepted"
        )
    if isinstance(error, Refused | Forbidden):
        return "WorkRefused", f"the hub's API server does not take the ManifestWork: {error}"
    return error.reason, str(error)

"""One pass: gather what is stored, decide, apply. Never run twice at the same time in one process."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import structlog

from services.dispatcher import apply, gather
from services.dispatcher.catalog import Catalog, ReadModule, unread
from services.dispatcher.decide import Decision, Leave
from services.dispatcher.permissions import PERMISSIONS_WORK, Grant, decide_permissions, namespaces_needed
from services.dispatcher.picture import Picture, take_picture
from services.dispatcher.report import Place
from services.dispatcher.scope import Pair, Scope, scope_of
from services.dispatcher.status import Survey, module_status
from services.dispatcher.stored import StoredModule
from services.dispatcher.surprise import Surprise, surprises
from services.dispatcher.survey import pairs_by_module, place_of, survey_places
from services.dispatcher.want import forget_unneeded, want_artifacts
from shared.domain.errors import HubError, TransientError
from shared.events.messages import Changed, Kind
from shared.kube.errors import Forbidden, NotFound, Refused
from shared.kube.port import HubApi
from shared.runtime.fail_point import FailPoint, fail_point
from shared.store.port import Store, Transaction

log = structlog.get_logger()

WRITERS = 64
"""Works that are written at the same time: twice as many as the API server is asked at once."""

STEPS_AT_ONCE = 200
"""Decisions (some microseconds each, a new work some hundred) between two turns of everything else."""


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
        self._uids: dict[str, str] = {}
        self._counted: dict[str, set[str]] = {}
        """By cluster: modules that may count it. Refilled by each pass over everything."""

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
            if scope.everything:
                names |= _with_permissions(picture)
            permissions, undecided = await self._decide_permissions(transaction, picture, names)
        fail_point(FailPoint.PICTURE_TAKEN)
        self._forget_refusals(scope, picture)
        picture, has_announced = await want_artifacts(self._store, picture)
        if scope.everything or scope.modules:
            # At once: what is not needed any more may be under way to a tag that is needed.
            await forget_unneeded(self._store, picture, None if scope.everything else scope.modules)
        # Rights first: a Module that comes before them is refused on the spoke.
        failed = undecided | await self._apply_all(permissions) | await self._apply(picture)
        again = set(announce_again(failed))
        touched = self._touched(scope, picture)
        for name in touched & set(modules):
            if modules[name].stored.is_deleting and not await self._release_if_done(modules[name], picture):
                again.add(Changed(kind=Kind.MODULE, name=name))
        return Outcome(
            failed=frozenset(again), touched=frozenset(touched & set(modules)), has_announced=has_announced
        )

    def _touched(self, scope: Scope, picture: Picture) -> set[str]:
        """Modules whose status may be another one now."""
        touched = {module for module, _ in picture.pairs} | scope.modules
        # A cluster that went, or got other labels, may be in no pair; its modules still count it.
        touched |= {module for module, cluster in picture.works if cluster in scope.clusters}
        for cluster in scope.clusters:
            touched |= self._counted.pop(cluster, set())
        if scope.everything:
            touched |= set(picture.modules)
            self._counted = {}
        for module, cluster in picture.pairs:
            self._counted.setdefault(cluster, set()).add(module)
        return touched

    async def report(self, names: Collection[str]) -> set[str]:
        """Write the status of modules, as they are now. Returns those for which it must be tried again."""
        failed = set()
        async with self._store.begin() as transaction:
            modules = await self._read_modules(transaction)
            scope = Scope(modules=frozenset(names))
            picture = await take_picture(transaction, modules, scope, namespace=self._namespace)
        pairs = pairs_by_module(picture)
        for name in names:
            read = modules.get(name)
            if read is None or read.stored.is_deleting:
                continue
            try:
                with surprises("report", module=name):
                    await self._report(read, await self._survey(picture, read, pairs.get(name, [])))
            except HubError as error:
                log.warning("status.not_written", module=name, error=str(error))
                if isinstance(error, TransientError):
                    failed.add(name)
        return failed

    async def _survey(self, picture: Picture, read: ReadModule, pairs: Collection[Pair]) -> Survey:
        places: list[Place] = []
        for number, pair in enumerate(pairs):
            await _give_way(number)
            places.append(place_of(picture, pair, self._refusals))
        await asyncio.sleep(0)
        return survey_places(picture, read, places)

    async def _report(self, read: ReadModule, survey: Survey) -> None:
        time = self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
        stored = self._as_reported(read.stored)
        status = module_status(survey, previous=stored.status, now=time)
        written = await apply.write_status(self._kube, stored, status, now=time)
        self._reported[read.module.name] = written or stored

    def _as_reported(self, stored: StoredModule) -> StoredModule:
        """The module with the status that we wrote last: the watch may be behind, and nothing is told twice."""
        last = self._reported.get(stored.name)
        is_newer = last is not None and last.resource_version > stored.resource_version
        return last if last is not None and is_newer and last.uid == stored.uid else stored

    async def _read_modules(self, transaction: Transaction) -> dict[str, ReadModule]:
        stored = await gather.read_modules(transaction)
        self._catalog.forget_all_but(stored)
        self._reported = {name: self._reported[name] for name in stored.keys() & self._reported.keys()}
        uids = {name: module.uid for name, module in stored.items()}
        if uids != self._uids:
            # What was refused to a module says nothing about another one of its name.
            self._refusals = {
                pair: told
                for pair, told in self._refusals.items()
                if uids.get(pair[0]) == self._uids.get(pair[0])
            }
            self._uids = uids
        return {name: self._read(module) for name, module in stored.items()}

    def _read(self, stored: StoredModule) -> ReadModule:
        try:
            with surprises("read", module=stored.name):
                return self._catalog.read(stored)
        except Surprise as error:
            return unread(stored, (error.reason, str(error)))

    def _forget_refusals(self, scope: Scope, picture: Picture) -> None:
        """Of pairs that the picture would show if they still were pairs."""
        for pair in [*self._refusals]:
            is_in_scope = scope.everything or pair[0] in scope.modules or pair[1] in scope.clusters
            if is_in_scope and pair not in picture.pairs:
                del self._refusals[pair]

    async def _apply(self, picture: Picture) -> set[Pair]:
        """Carry out all decisions. Returns the pairs that failed."""
        todo, failed = await self._decide(picture)
        blocked = await self._ensure_finalizers(picture, {module for module, _ in todo})
        allowed = {pair: decision for pair, decision in todo.items() if pair[0] not in blocked}
        return failed | set(todo) - set(allowed) | await self._apply_all(allowed)

    async def _decide(self, picture: Picture) -> tuple[dict[Pair, Decision], set[Pair]]:
        """What is to be written, and the pairs about which a bug kept us from deciding."""
        todo: dict[Pair, Decision] = {}
        failed: set[Pair] = set()
        for number, pair in enumerate(sorted(picture.pairs)):
            await _give_way(number)
            try:
                with surprises("decide", module=pair[0], cluster=pair[1]):
                    decision = picture.decide(pair)
            except Surprise:
                failed.add(pair)
                continue
            if isinstance(decision, Leave):
                self._refusals.pop(pair, None)  # nothing is asked for any more
            else:
                todo[pair] = decision
        return todo, failed

    async def _decide_permissions(
        self, transaction: Transaction, picture: Picture, names: Collection[str]
    ) -> tuple[dict[Pair, Decision], set[Pair]]:
        """As `_decide`, about the permissions of these clusters."""
        clusters = await gather.read_clusters(transaction, names)
        works = await transaction.read_works(modules=(), clusters=names)
        modules = [read.module for read in picture.modules.values()]
        with_modules = {
            pair[1] for pair, stored in works.items() if stored.work.module and not stored.work.is_gone
        }
        decisions: dict[Pair, Decision] = {}
        failed: set[Pair] = set()
        for number, name in enumerate(names):
            await _give_way(number)
            pair, cluster = (PERMISSIONS_WORK, name), clusters.get(name)
            stored = works.get(pair)
            try:
                with surprises("decide", module=PERMISSIONS_WORK, cluster=name):
                    decisions[pair] = decide_permissions(
                        cluster=cluster,
                        namespaces=namespaces_needed(cluster, modules) if cluster else (),
                        grant=self._grant,
                        work=stored.work if stored else None,
                        posted_hash=stored.posted_hash if stored else None,
                        has_modules=name in with_modules,
                    )
            except Surprise:
                failed.add(pair)
        return {pair: one for pair, one in decisions.items() if not isinstance(one, Leave)}, failed

    async def _apply_all(self, decisions: Mapping[Pair, Decision]) -> set[Pair]:
        """Returns the pairs that failed. Nothing runs on after it: cancelled, it waits until its writers ended."""
        waiting = iter(decisions.items())
        failed: set[Pair] = set()

        async def write() -> None:
            for pair, decision in waiting:  # the writers share it
                if not await self._apply_one(pair, decision):
                    failed.add(pair)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(WRITERS, len(decisions))):
                group.create_task(write())
        return failed

    async def _apply_one(self, pair: Pair, decision: Decision) -> bool:
        module, cluster = pair
        try:
            with surprises("write", module=module, cluster=cluster):
                await apply.apply_decision(
                    self._kube, self._store, module=module, cluster=cluster, decision=decision
                )
        except HubError as error:
            log.warning(
                "work.not_written", module=module, cluster=cluster, reason=error.reason, error=str(error)
            )
            self._refusals[pair] = refusal_of(error, cluster)
            return False
        self._refusals.pop(pair, None)
        return True

    async def _ensure_finalizers(self, picture: Picture, names: Iterable[str]) -> set[str]:
        """Returns the modules whose finalizer could not be set: nothing may be posted for them yet."""
        blocked = set()
        for name in names:
            read = picture.modules.get(name)
            if read is None or read.stored.is_deleting:
                continue
            try:
                with surprises("finalizer", module=name):
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
            with surprises("release", module=name):
                if not await apply.has_works(self._kube, name):
                    await apply.release_module(self._kube, read.stored)
        except HubError as error:
            log.warning("module.not_released", module=name, error=str(error))
            return False
        return True


def _with_permissions(picture: Picture) -> set[str]:
    """Clusters that have a permissions work: one that no module selects any more has to lose it."""
    return {
        cluster
        for (name, cluster), stored in picture.works.items()
        if name == PERMISSIONS_WORK and not stored.work.is_gone
    }


async def _give_way(number: int) -> None:
    """Let everything else run after so many steps, above all the renewal of the leader's lease."""
    if number % STEPS_AT_ONCE == STEPS_AT_ONCE - 1:
        await asyncio.sleep(0)


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

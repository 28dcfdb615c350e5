"""The dispatcher's composition: announcements in, passes of the reconciler, status reports, the sweeper."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection

import structlog
from pydantic import Field, field_validator

from services.dispatcher.again import MAX_RETRY_SECONDS, Again
from services.dispatcher.permissions import Grant
from services.dispatcher.reconcile import Reconciler
from services.dispatcher.surprise import Surprise, surprises
from shared.bus.port import Done, Retry, Verdict
from shared.bus.topology import CHANGES
from shared.domain.leadership import Terms
from shared.events.messages import Changed, Kind, decode_changed
from shared.kube.client import KubeClient
from shared.kube.leadership import lead, make_identity
from shared.relay.backbone import Backbone, open_backbone
from shared.relay.dead_letters import DeadLetters
from shared.runtime.clock import now
from shared.runtime.fail_point import FailPoint, fail_point
from shared.runtime.pause import pause
from shared.runtime.process import Process, run
from shared.runtime.settings import ReplicaSettings, read_settings
from shared.store import artifacts
from shared.store.port import StoreUnavailable

log = structlog.get_logger()

BATCH = 500
RETRY_SECONDS = 2.0
SWEEP_SECONDS = 5.0
REPORT_SECONDS = 0.3
"""Changes of a module within this time share one write of its status."""


class DispatcherSettings(ReplicaSettings):
    """Settings of the dispatcher."""

    resync_seconds: float = Field(default=60.0, gt=0, validation_alias="KMMHUB_RESYNC_SECONDS")
    """How often everything is compared again, whether or not something was announced."""

    spoke_permissions: Grant = Field(default=Grant.AGGREGATE, validation_alias="KMMHUB_SPOKE_PERMISSIONS")
    """How work agents get the rights on Modules, and spokes the modules' namespaces: `aggregate`, `bind` or `off`."""

    @field_validator("spoke_permissions", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        """`true` and `false` switch the usual way on and off."""
        return {"true": Grant.AGGREGATE, "false": Grant.OFF}.get(str(value).lower(), value)


class Dispatcher:
    """Runs passes one after the other, whoever asks for them."""

    def __init__(self, reconciler: Reconciler, backbone: Backbone) -> None:
        self._reconciler = reconciler
        self._backbone = backbone
        self._turn = asyncio.Lock()
        self._again: Again[Changed] = Again()
        self._unreported: Again[str] = Again()
        self._to_report: set[str] = set()
        self._reporting = self._unreported.planned

    async def run(self, stop: asyncio.Event, *, resync_seconds: float) -> None:
        """Reconcile what is announced, and everything every so many seconds, until `stop` is set."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.resync(stop, every=resync_seconds))
            group.create_task(self.retry(stop))
            group.create_task(self.report(stop))
            group.create_task(self.sweep(stop))
            handler = DeadLetters(self._backbone.store, CHANGES, decode_changed).guarded_batch(self.handle)
            group.create_task(self._backbone.bus.consume_batches(CHANGES, handler, batch=BATCH, stop=stop))

    async def handle(self, changes: Collection[Changed]) -> Verdict:
        """Reconcile a batch of announcements."""
        return await self._pass(set(changes))

    async def resync(self, stop: asyncio.Event, *, every: float) -> None:
        """Compare everything now and then: the second way for whatever an announcement missed."""
        while not stop.is_set():
            await self._look({Changed(kind=Kind.EVERYTHING, name="resync")})
            await pause(stop, every)

    async def retry(self, stop: asyncio.Event) -> None:
        """Look again at whatever the API server did not take, and whatever could not be looked at."""
        while not stop.is_set():
            if due := self._again.take():
                await self._look(due)
            await _either(stop, self._again.planned, seconds=self._again.seconds_left())

    async def report(self, stop: asyncio.Event) -> None:
        """Write the status of modules that were touched."""
        while not stop.is_set():
            await _either(stop, self._reporting, seconds=self._unreported.seconds_left())
            await pause(stop, REPORT_SECONDS)
            names, self._to_report = self._to_report | self._unreported.take(), set()
            if stop.is_set() or not names:
                continue
            try:
                with surprises("reports"):
                    async with self._turn:
                        failed = await self._reconciler.report(names)
            except StoreUnavailable as error:
                log.warning("status.failed", error=str(error))
                self._touch(names)
                await pause(stop, RETRY_SECONDS)
            except Surprise:
                self._unreported.failed(names)
            else:
                self._unreported.succeeded(names - failed)
                self._unreported.failed(failed)

    async def sweep(self, stop: asyncio.Event) -> None:
        """Announce artifacts that should have moved by now."""
        failures = 0
        while not stop.is_set():
            try:
                with surprises("sweep"):
                    await self._sweep()
                failures = 0
            except StoreUnavailable as error:
                log.warning("sweep.failed", error=str(error))
            except Surprise:
                failures += 1
            await pause(stop, min(SWEEP_SECONDS * 2.0 ** min(failures, 16), MAX_RETRY_SECONDS))

    async def _sweep(self) -> None:
        async with self._backbone.store.begin() as transaction:
            announced = await artifacts.announce_overdue(transaction)
        if announced:
            log.info("artifacts.announced_again", count=announced)
            fail_point(FailPoint.SWEEP_ANNOUNCED)
            self._backbone.relay.wake()

    async def _look(self, changes: Collection[Changed]) -> None:
        """A pass that raises nothing and leaves a plan: a bug that strikes one change must not stop the others."""
        ordered = sorted(changes, key=lambda change: change.subject)
        try:
            with surprises("pass", first=ordered[0].name, count=str(len(ordered))):
                verdict = await self._pass(changes)
        except Surprise:
            if len(ordered) == 1:
                self._again.failed(ordered)
            else:
                half = len(ordered) // 2
                await self._look(ordered[:half])
                await self._look(ordered[half:])
        else:
            if isinstance(verdict, Retry):
                self._again.plan(changes, verdict.seconds)

    async def _pass(self, changes: Collection[Changed]) -> Verdict:
        try:
            async with self._turn:
                outcome = await self._reconciler.reconcile(changes)
        except StoreUnavailable as error:
            log.warning("pass.failed", error=str(error))
            return Retry(seconds=RETRY_SECONDS)
        if outcome.has_announced:
            self._backbone.relay.wake()
        self._again.succeeded(set(changes) - outcome.failed)
        self._again.failed(outcome.failed)
        self._touch(outcome.touched)
        return Done()

    def _touch(self, names: Collection[str]) -> None:
        """Let the status of modules be written soon."""
        if names:
            self._to_report |= set(names)
            self._reporting.set()


async def _either(stop: asyncio.Event, event: asyncio.Event, *, seconds: float = math.inf) -> None:
    """Wait for an event, which is cleared, or for `stop`, or for so many seconds."""
    waiting = {asyncio.create_task(one.wait()) for one in (stop, event)}
    try:
        await asyncio.wait(
            waiting,
            timeout=None if seconds == math.inf else max(seconds, 0.0),
            return_when=asyncio.FIRST_COMPLETED,
        )
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)  # whoever ends this leaves nothing behind
    event.clear()


def main() -> int:
    """Run the dispatcher. Returns the exit status."""
    settings = read_settings(DispatcherSettings)

    async def body(process: Process) -> None:
        await dispatch(settings, process)

    return run("dispatcher", settings, body)


async def dispatch(settings: DispatcherSettings, process: Process) -> None:
    """Dispatch until the process is stopped."""
    async with (
        await KubeClient.connect() as kube,
        await KubeClient.connect() as election,
        open_backbone(settings, process, service="dispatcher") as backbone,
    ):
        if backbone is None:
            return

        def dispatcher() -> Dispatcher:
            """A new one for each time of leading: what it remembers is over once another replica has led."""
            return Dispatcher(
                Reconciler(
                    kube=kube,
                    store=backbone.store,
                    now=now,
                    namespace=settings.operator_namespace,
                    grant=settings.spoke_permissions,
                ),
                backbone,
            )

        await lead(
            election,
            name="kmm-hub-dispatcher",
            namespace=settings.operator_namespace,
            identity=make_identity(),
            stop=process.stop,
            work=lambda leading: dispatcher().run(leading, resync_seconds=settings.resync_seconds),
            terms=Terms(lease_seconds=settings.leader_lease_seconds),
            checks=process.checks,
        )

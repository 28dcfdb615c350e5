"""The dispatcher's composition: announcements in, passes of the reconciler, status reports, the sweeper."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Collection, Iterable

import structlog
from pydantic import Field, field_validator

from services.dispatcher.permissions import Grant
from services.dispatcher.reconcile import Reconciler
from shared.bus.port import Done, Retry, Verdict
from shared.bus.topology import CHANGES
from shared.domain.backoff import retry_delay
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
MAX_RETRY_SECONDS = 30.0
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
        self._again: dict[Changed, float] = {}
        self._failures: dict[Changed, int] = {}
        self._to_report: set[str] = set()
        self._reporting = asyncio.Event()
        self._retrying = asyncio.Event()

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
            verdict = await self._pass({Changed(kind=Kind.EVERYTHING, name="resync")})
            await pause(stop, min(verdict.seconds, every) if isinstance(verdict, Retry) else every)

    async def retry(self, stop: asyncio.Event) -> None:
        """Look again at whatever the API server did not take."""
        while not stop.is_set():
            due = {change for change, when in self._again.items() if when <= _time()}
            for change in due:
                del self._again[change]
            if due and isinstance(await self._pass(due), Retry):
                self._again |= dict.fromkeys(due, _time() + RETRY_SECONDS)
            await _either(stop, self._retrying, seconds=min(self._again.values(), default=math.inf) - _time())

    async def report(self, stop: asyncio.Event) -> None:
        """Write the status of modules that were touched."""
        while not stop.is_set():
            await _either(stop, self._reporting)
            await pause(stop, REPORT_SECONDS)
            names, self._to_report = self._to_report, set()
            if stop.is_set() or not names:
                continue
            try:
                async with self._turn:
                    failed = await self._reconciler.report(names)
                self._look_again(Changed(kind=Kind.MODULE, name=name) for name in failed)
            except StoreUnavailable as error:
                log.warning("status.failed", error=str(error))
                self._touch(names)
                await pause(stop, RETRY_SECONDS)

    async def sweep(self, stop: asyncio.Event) -> None:
        """Announce artifacts that should have moved by now."""
        while not stop.is_set():
            try:
                async with self._backbone.store.begin() as transaction:
                    announced = await artifacts.announce_overdue(transaction)
                if announced:
                    log.info("artifacts.announced_again", count=announced)
                    fail_point(FailPoint.SWEEP_ANNOUNCED)
                    self._backbone.relay.wake()
            except StoreUnavailable as error:
                log.warning("sweep.failed", error=str(error))
            await pause(stop, SWEEP_SECONDS)

    async def _pass(self, changes: Collection[Changed]) -> Verdict:
        try:
            async with self._turn:
                outcome = await self._reconciler.reconcile(changes)
        except StoreUnavailable as error:
            log.warning("pass.failed", error=str(error))
            return Retry(seconds=RETRY_SECONDS)
        if outcome.has_announced:
            self._backbone.relay.wake()
        for change in set(changes) - outcome.failed:
            self._failures.pop(change, None)
        self._look_again(outcome.failed)
        self._touch(outcome.touched)
        return Done()

    def _touch(self, names: Collection[str]) -> None:
        """Let the status of modules be written soon."""
        if names:
            self._to_report |= set(names)
            self._reporting.set()

    def _look_again(self, changes: Iterable[Changed]) -> None:
        """Plan another look, later each time that it fails again."""
        for change in changes:
            failures = self._failures[change] = self._failures.get(change, 0) + 1
            delay = min(retry_delay(failures, jitter=random.random()), MAX_RETRY_SECONDS)  # noqa: S311 - no secret
            self._again.setdefault(change, _time() + delay)
            self._retrying.set()


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
    event.clear()


def _time() -> float:
    """Seconds on the event loop's clock, which no change of the date moves."""
    return asyncio.get_running_loop().time()


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

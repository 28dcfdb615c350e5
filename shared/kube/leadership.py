"""Leader election: `lead` runs a piece of work in one replica at a time. The rules stand in shared.domain.leadership.

What a leader does may still be on its way when another one takes over (a packet, a process that was frozen in the
middle of a write): election spares double work; it does not replace what makes a write harmless if it comes twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import structlog
from prometheus_client import Gauge

from shared.domain.errors import HubError
from shared.domain.leadership import (
    LeaseRecord,
    Seen,
    Terms,
    Wait,
    held_spec,
    next_step,
    observe,
    read_lease,
    released_spec,
)
from shared.kube.client import LEASES, Resource
from shared.kube.errors import Conflict, Forbidden, NotFound
from shared.runtime import clock
from shared.runtime.fail_point import FailPoint, fail_point
from shared.runtime.pause import pause

log = structlog.get_logger()

LEADING = Gauge("kmmhub_leading", "1 while this replica leads, 0 while it stands by, by lease.", ["lease"])

Work: TypeAlias = Callable[[asyncio.Event], Awaitable[None]]
Check: TypeAlias = Callable[[], bool]


class LeaseApi(Protocol):
    """What the election needs of the API server; `shared.kube.client.KubeClient` has it."""

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> dict[str, Any]:
        """Read one object. Raises NotFound."""
        ...

    async def create(
        self, resource: Resource, body: Mapping[str, Any], *, namespace: str | None = None
    ) -> dict[str, Any]:
        """Create an object. Raises Conflict if it exists, NotFound if its namespace does not."""
        ...

    async def merge_patch(
        self, resource: Resource, name: str, body: Mapping[str, Any], *, namespace: str | None = None
    ) -> dict[str, Any]:
        """Change an object; a resourceVersion in the body must be the stored one. Raises NotFound, Conflict."""
        ...


def make_identity() -> str:
    """An identity for `lead`: the host's name (a pod's own), and what sets this life apart from earlier ones."""
    return f"{socket.gethostname()}_{uuid.uuid4().hex[:12]}"


async def lead(
    kube: LeaseApi,
    *,
    name: str,
    namespace: str,
    identity: str,
    stop: asyncio.Event,
    work: Work,
    terms: Terms,
    checks: dict[str, Check] | None = None,
    wall: Callable[[], dt.datetime] = clock.now,
) -> None:
    """Run `work` whenever this replica leads, until `stop` is set; otherwise stand by.

    Args:
        kube: requests of the election take turns with others on it; a client of its own never waits for them.
        name: the Lease, in `namespace`; made if it does not exist.
        identity: see `make_identity`.
        work: gets an event that is set when leadership ends, or `stop` is. It must then end: as soon as another may
            lead, it is cancelled. The Lease is given back once it has ended. Work that returns earlier gives it
            back, too. What it raises is raised.
        terms: how long the Lease lasts.
        checks: gets a check `lease` for readiness: a replica is ready if it leads, or could take over. The metric
            `kmmhub_leading` says which.
        wall: the time of day, for people who read the Lease.
    """
    candidate = Candidate(kube, name=name, namespace=namespace, identity=identity, terms=terms, wall=wall)
    if checks is not None:
        checks["lease"] = lambda: candidate.is_in_contact
    while not stop.is_set():
        wait = await candidate.attempt()
        if candidate.is_leading:
            await candidate.serve(stop, work)
            wait = terms.poll_interval
        await pause(stop, wait)


@dataclass(slots=True, kw_only=True)
class _Term:
    """One time of leading."""

    over: asyncio.Event
    working: asyncio.Future[None]
    renewing: asyncio.Task[None]
    timers: tuple[asyncio.TimerHandle, ...] = ()


class Candidate:
    """One replica's part in the election for one Lease. Lives in one event loop; time is that loop's."""

    def __init__(
        self,
        kube: LeaseApi,
        *,
        name: str,
        namespace: str,
        identity: str,
        terms: Terms,
        wall: Callable[[], dt.datetime],
    ) -> None:
        self._kube = kube
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._terms = terms
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._seen: Seen | None = None
        self._renewed: float | None = None
        self._contact: float | None = None
        self._term: _Term | None = None
        self._last_problem = ""
        LEADING.labels(name).set(0)

    @property
    def is_leading(self) -> bool:
        """Whether this replica leads now, by its own clock."""
        return self._renewed is not None and self._loop.time() < self._renewed + self._terms.renew_seconds

    @property
    def is_in_contact(self) -> bool:
        """Whether this replica read the Lease lately: it leads, or it can take over."""
        return self._contact is not None and self._loop.time() < self._contact + self._terms.lease_seconds

    async def attempt(self) -> float:
        """Look at the Lease, and hold it if the rules say so. Returns after how many seconds to do so again."""
        try:
            async with asyncio.timeout(self._terms.request_seconds):
                seconds = await self._attempt()
        except Conflict:  # somebody else wrote first; the next look tells who
            seconds = self._terms.poll_interval
        except (HubError, TimeoutError) as error:
            self._report(error)
            return self._terms.poll_interval
        self._last_problem = ""
        return seconds

    async def serve(self, stop: asyncio.Event, work: Work) -> None:
        """Run `work` while leading. Raises what it raises."""
        log.info("leader.elected", lease=self._name, identity=self._identity)
        LEADING.labels(self._name).set(1)
        over = asyncio.Event()
        term = self._term = _Term(
            over=over,
            working=asyncio.ensure_future(work(over)),
            renewing=asyncio.create_task(self._keep_renewing()),
        )
        stopping = asyncio.create_task(stop.wait())
        self._set_timers(term)
        try:
            happenings: set[asyncio.Future[Any]] = {term.working, term.renewing, stopping}
            await asyncio.wait(happenings, return_when=asyncio.FIRST_COMPLETED)
            over.set()
            await asyncio.wait({term.working})  # a timer cancels it when another may lead
        finally:
            for task in (term.working, stopping, term.renewing):
                task.cancel()
            await asyncio.gather(term.working, stopping, term.renewing, return_exceptions=True)
            self._term = None
            for timer in term.timers:
                timer.cancel()
            LEADING.labels(self._name).set(0)
            await self._release()
        if not term.working.cancelled():
            term.working.result()

    async def _attempt(self) -> float:
        stored = await self._read()
        now = self._loop.time()
        self._seen = observe(self._seen, stored, now)
        self._contact = now
        step = next_step(self._seen, identity=self._identity, now=now, terms=self._terms)
        if isinstance(step, Wait):
            if self._term is not None:
                self._lose(f"{step.holder} holds the lease", working_too=True)
            return step.seconds
        spec = held_spec(step, identity=self._identity, terms=self._terms, wall=self._wall())
        sent = self._loop.time()
        if step.creates:
            await self._create(spec)
        else:
            assert stored is not None
            await self._patch(spec, version=stored.version)
        fail_point(FailPoint.LEADERSHIP_HELD)
        self._renewed = sent
        if self._term is not None:
            self._set_timers(self._term)
        return self._terms.renew_interval

    async def _keep_renewing(self) -> None:
        """Renew until cancelled, which `_lose` does."""
        wait = self._terms.renew_interval
        while True:
            await asyncio.sleep(wait)
            wait = await self.attempt()

    def _set_timers(self, term: _Term) -> None:
        """Timers call at once what must happen: after a freeze they run before any task goes on."""
        assert self._renewed is not None
        for timer in term.timers:
            timer.cancel()
        term.timers = (
            self._loop.call_at(
                self._renewed + self._terms.renew_seconds, self._lose, "it could not be renewed in time"
            ),
            self._loop.call_at(self._renewed + self._terms.lease_seconds, term.working.cancel),
        )

    def _lose(self, reason: str, working_too: bool = False) -> None:
        term = self._term
        if term is None or self._renewed is None:
            return
        log.warning("leader.lost", lease=self._name, identity=self._identity, reason=reason)
        self._renewed = None
        LEADING.labels(self._name).set(0)
        term.over.set()
        term.renewing.cancel()
        if working_too:
            term.working.cancel()

    async def _release(self) -> None:
        """Give the Lease back if it is still ours, so that another one need not wait until it runs out."""
        was_leading, self._renewed = self.is_leading, None
        if not was_leading:
            return
        with contextlib.suppress(HubError, TimeoutError):  # it runs out by itself
            async with asyncio.timeout(self._terms.request_seconds):
                stored = await self._read()
                if stored is not None and stored.holder == self._identity:
                    await self._patch(released_spec(self._wall()), version=stored.version)
                    log.info("leader.released", lease=self._name, identity=self._identity)

    async def _read(self) -> LeaseRecord | None:
        try:
            return read_lease(await self._kube.get(LEASES, self._name, namespace=self._namespace))
        except NotFound:
            return None

    async def _create(self, spec: Mapping[str, Any]) -> None:
        metadata = {"name": self._name, "namespace": self._namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        await self._kube.create(LEASES, body, namespace=self._namespace)

    async def _patch(self, spec: Mapping[str, Any], *, version: str) -> None:
        body = {"metadata": {"resourceVersion": version}, "spec": spec}
        await self._kube.merge_patch(LEASES, self._name, body, namespace=self._namespace)

    def _report(self, error: HubError | TimeoutError) -> None:
        """Say once what keeps this replica from leading, and what to do."""
        lease = f"lease {self._namespace}/{self._name}"
        match error:
            case Forbidden():
                cure = (
                    "give this service's account get, create and patch on leases (coordination.k8s.io) there"
                )
                problem = f"{lease}: {error}; {cure}"
            case NotFound():
                problem = f"{lease}: {error}; create the namespace, or set OPERATOR_NAMESPACE"
            case TimeoutError():
                problem = (
                    f"{lease}: the API server did not answer in {self._terms.request_seconds:.1f} seconds"
                )
            case _:
                problem = f"{lease}: {error}"
        if problem != self._last_problem:
            self._last_problem = problem
            log.warning("leader.no_lease", error=problem)

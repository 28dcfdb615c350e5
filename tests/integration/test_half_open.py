"""Connections that lie: they stand, and nothing comes. Each is noticed within seconds, told, and made anew after."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import asyncpg
import pytest
import sqlalchemy as sa
from broker import Broker
from cut_line import CutLine, cut_line
from pydantic import SecretStr
from running_services import eventually

from localhub.hub import HubAddresses
from shared.bus import jetstream
from shared.bus.connection import CLOSE_TIMEOUT_SECONDS, FLUSH_TIMEOUT_SECONDS
from shared.bus.jetstream import Bus, BusUnavailable
from shared.bus.streams import open_administrator
from shared.domain.leadership import Terms
from shared.events.messages import SUBJECT_ROOT, Changed, Kind
from shared.kube.client import CONFIG_MAPS, KubeClient
from shared.kube.errors import ApiUnavailable
from shared.kube.leadership import lead, make_identity
from shared.relay.backbone import open_backbone
from shared.runtime.health import Check, make_server
from shared.runtime.keepalive import UNACKNOWLEDGED_SECONDS
from shared.runtime.process import Process
from shared.runtime.settings import ServiceSettings
from shared.store import database, outbox
from shared.store.database import connect
from shared.store.migrate import upgrade
from shared.store.port import StoreUnavailable
from shared.store.postgres import PostgresStore

pytestmark = pytest.mark.integration

SUBJECT = f"{SUBJECT_ROOT}.changed.cluster.x"
LEFT_BEHIND = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
LAG = 3.0
"""What a busy machine may be late."""

CLOSE_SECONDS = 2.0
"""For how long SQLAlchemy says goodbye to a connection that does not answer."""

NOTICED_SECONDS = database.PING_SECONDS + CLOSE_SECONDS + database.CONNECT_SECONDS + LAG
BUS_NOTICED_SECONDS = 12.0 + LAG


class Line(CutLine):
    """A line that can also forget its connections, as a firewall does: they stand dead, and new ones work."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._fresh: CutLine | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fresh is not None:
            await self._fresh.serve(reader, writer)
        else:
            await super().serve(reader, writer)

    def forget(self) -> None:
        self.silence()
        self._fresh = CutLine(*self._target)

    async def end(self) -> None:
        await super().end()
        if self._fresh is not None:
            await self._fresh.end()


@contextlib.asynccontextmanager
async def line_to(url: str) -> AsyncIterator[tuple[Line, str]]:
    """A line to a server, and the address that goes through it."""
    parts = urlsplit(url)
    line = Line(parts.hostname or "", parts.port or 0)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    user, at, _ = parts.netloc.rpartition("@")
    try:
        yield line, urlunsplit(parts._replace(netloc=f"{user}{at}{host}"))
    finally:
        server.close()
        await line.end()
        await server.wait_closed()


class FreezingBroker(Broker):
    """A server that can stop in the middle of everything, while its host's network goes on."""

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        stopped = os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)
        assert stopped is not None  # until then it may still answer

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[FreezingBroker]:
    running = FreezingBroker(tmp_path)
    running.start()
    yield running
    running.kill()
    gc.collect()  # the client leaves attempts to connect that failed to the collector, which warns


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Bus]:
    """A bus that is closed whatever happens."""
    bus = await jetstream.connect(url, name="test")
    try:
        yield bus
    finally:
        await bus.close()


async def is_true(check: Check, what: str, *, seconds: float) -> None:
    async def look() -> bool:
        return check()

    await eventually(look, what=what, seconds=seconds)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took < seconds, f"it took {took:.1f} seconds"


def sockets_to(url: str) -> list[socket.socket]:
    """Our own open sockets to a server, opened once more to look at them."""
    port = urlsplit(url).port
    found: list[socket.socket] = []
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if entry.readlink().name.startswith("socket:"):
                candidate = socket.socket(fileno=os.dup(int(entry.name)))
                found.append(candidate)
    for candidate in found.copy():
        if not _leads_to(candidate, port):
            found.remove(candidate)
            candidate.close()
    return found


def _leads_to(candidate: socket.socket, port: int | None) -> bool:
    try:
        return candidate.family == socket.AF_INET and candidate.getpeername()[1] == port
    except OSError:
        return False  # it listens


def assert_watched(url: str) -> None:
    found = sockets_to(url)
    try:
        assert found
        for one in found:
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            limit = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert limit == UNACKNOWLEDGED_SECONDS * 1000
    finally:
        for one in found:
            one.close()


async def test_both_ends_of_a_connection_to_postgres_probe_the_other(database_url: str) -> None:
    async with line_to(database_url) as (_, url):
        engine = connect(url, application="test")
        async with engine.connect() as connection:
            assert_watched(url)
            for name, value in (("tcp_keepalives_idle", "5"), ("tcp_user_timeout", "15000")):
                assert (await connection.execute(sa.text(f"SHOW {name}"))).scalar() == value
        await engine.dispose()


@pytest.mark.parametrize("idle", [1, 5], ids=["one-connection", "many-connections"])
async def test_a_pooled_connection_that_answers_no_more_is_noticed_and_replaced(
    database_url: str, idle: int
) -> None:
    async with line_to(database_url) as (line, url):
        engine = connect(url, application="test", pool_size=5)
        store = PostgresStore(engine)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(idle):
                await stack.enter_async_context(engine.connect())
        line.silence()
        with within(NOTICED_SECONDS), pytest.raises(StoreUnavailable):
            async with store.begin():
                pass
        line.cut()
        line.speak()
        with within(LAG):
            async with store.begin():
                pass
        await engine.dispose()


async def test_a_pooled_connection_whose_driver_lost_its_way_is_replaced(database_url: str) -> None:
    """A statement that was cut short may leave the driver in a state that it calls its own bug."""

    async def lost(*_: object, **__: object) -> None:
        raise asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")

    engine = connect(database_url, application="test", pool_size=1)
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    driver.fetchrow = lost
    async with PostgresStore(engine).begin() as transaction:
        assert await transaction.now()
    with pytest.raises(StoreUnavailable, match="state 12"):
        async with PostgresStore(engine).begin():
            await lost()
    await engine.dispose()


async def test_dead_connections_cost_one_ping_where_the_server_lives(database_url: str) -> None:
    """A firewall forgot the connections that stand; new ones work."""
    async with line_to(database_url) as (line, url):
        engine = connect(url, application="test", pool_size=5)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(5):
                await stack.enter_async_context(engine.connect())
        line.forget()
        with within(database.PING_SECONDS + 5 * CLOSE_SECONDS + LAG):
            for _ in range(5):
                async with engine.connect() as connection:
                    assert (await connection.execute(sa.text("SELECT 1"))).scalar() == 1
        await engine.dispose()


async def test_a_statement_whose_answer_never_comes_ends(database_url: str) -> None:
    async with line_to(database_url) as (line, url):
        engine = connect(url, application="test")
        store = PostgresStore(engine)

        async def ask() -> None:
            async with store.begin():
                line.silence()
                async with store.begin():
                    pass

        limit = database.STATEMENT_TIMEOUT_SECONDS + CLOSE_SECONDS + NOTICED_SECONDS
        with within(limit), pytest.raises(StoreUnavailable):
            await ask()
        await engine.dispose()


@LEFT_BEHIND
@pytest.mark.parametrize("how", ["frozen-server", "dead-line"])
async def test_a_bus_that_answers_no_more_is_noticed_and_used_again(broker: FreezingBroker, how: str) -> None:
    administrator = await open_administrator(broker.url)
    await administrator.ensure()
    await administrator.close()
    async with line_to(broker.url) as (line, url), connected(url) as bus:
        await bus.publish(SUBJECT, b"{}", message_id="before")

        if how == "frozen-server":
            broker.freeze()
        else:
            line.silence()
        silent = time.monotonic()
        while bus.is_connected:
            with within(jetstream.PUBLISH_TIMEOUT_SECONDS + LAG), pytest.raises(BusUnavailable):
                await bus.publish(SUBJECT, b"{}", message_id="during")
            assert time.monotonic() - silent < BUS_NOTICED_SECONDS + jetstream.PUBLISH_TIMEOUT_SECONDS
        with within(jetstream.PUBLISH_TIMEOUT_SECONDS + LAG), pytest.raises(BusUnavailable):
            await bus.publish(SUBJECT, b"{}", message_id="after")

        if how == "frozen-server":
            broker.thaw()
        line.cut()
        line.speak()
        await is_true(lambda: bus.is_connected, "it is connected again", seconds=15)
        await bus.publish(SUBJECT, b"{}", message_id="again")


@LEFT_BEHIND
async def test_a_frozen_bus_does_not_hold_up_a_stop(broker: FreezingBroker) -> None:
    async with connected(broker.url) as bus:
        broker.freeze()
        with within(2 * CLOSE_TIMEOUT_SECONDS + LAG):
            await bus.close()


@LEFT_BEHIND
async def test_many_messages_to_a_frozen_bus_fail_in_time(broker: FreezingBroker) -> None:
    """More than the sockets' buffers and the client's queue take."""
    async with connected(broker.url) as bus:
        broker.freeze()
        payload = b"x" * 60_000
        with within(FLUSH_TIMEOUT_SECONDS + jetstream.PUBLISH_TIMEOUT_SECONDS + LAG):
            ends = await asyncio.gather(
                *(bus.publish(SUBJECT, payload, message_id=str(n)) for n in range(1500)),
                return_exceptions=True,
            )
        assert {type(end) for end in ends} == {BusUnavailable}
        with within(2 * CLOSE_TIMEOUT_SECONDS + LAG):
            await bus.close()


@LEFT_BEHIND
async def test_a_connection_that_takes_nothing_more_is_left_for_a_new_one(broker: FreezingBroker) -> None:
    """The client closes the old one first, and waits until all is sent that nobody takes."""
    administrator = await open_administrator(broker.url)
    await administrator.ensure()
    await administrator.close()
    async with line_to(broker.url) as (line, url), connected(url) as bus:
        line.forget()
        payload = b"x" * 60_000
        await asyncio.gather(
            *(bus.publish(SUBJECT, payload, message_id=str(n)) for n in range(300)), return_exceptions=True
        )

        async def look() -> bool:
            try:
                await bus.publish(SUBJECT, b"{}", message_id="at last")
            except BusUnavailable:
                return False
            return True

        await eventually(look, what="it is published", seconds=BUS_NOTICED_SECONDS + UNACKNOWLEDGED_SECONDS)


@contextlib.asynccontextmanager
async def readiness(process: Process) -> AsyncIterator[str]:
    """The address of the real /readyz."""
    server, listener = make_server("127.0.0.1:0", process.checks)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/readyz"
    finally:
        server.should_exit = True
        await serving


@LEFT_BEHIND
async def test_readiness_tells_a_silent_postgres_and_a_frozen_bus(
    database_url: str, broker: FreezingBroker
) -> None:
    await asyncio.to_thread(upgrade, database_url)
    administrator = await open_administrator(broker.url)
    await administrator.ensure()
    await administrator.close()
    async with line_to(database_url) as (line, url):
        settings = ServiceSettings(nats_url=SecretStr(broker.url), database_url=SecretStr(url))
        process = Process()
        async with (
            open_backbone(settings, process, service="dispatcher") as backbone,
            readiness(process) as address,
            aiohttp.ClientSession() as session,
        ):
            assert backbone is not None

            async def ready(expected: int, **checks: bool) -> None:
                async def look() -> bool:
                    async with session.get(address) as answer:
                        told = await answer.json()
                        assert (answer.status, {name: told[name] for name in checks}) == (expected, checks)
                        return True

                await eventually(look, what=f"{expected} {checks}", seconds=limit)

            limit = 5.0
            await ready(200, outbox=True, bus=True)
            line.silence()
            limit = NOTICED_SECONDS
            await ready(503, outbox=False, bus=True)
            line.cut()
            line.speak()
            limit = database.STATEMENT_TIMEOUT_SECONDS
            await ready(200, outbox=True, bus=True)

            broker.freeze()
            limit = BUS_NOTICED_SECONDS
            await ready(503, bus=False)
            broker.thaw()
            limit = 15.0
            await ready(200, outbox=True, bus=True)

            async with backbone.store.begin() as transaction:
                await outbox.announce(transaction, [Changed(kind=Kind.CLUSTER, name="c")])
            broker.freeze()
            backbone.relay.wake()
            limit = jetstream.PUBLISH_TIMEOUT_SECONDS + LAG
            await ready(503, outbox=False)
            broker.thaw()
            limit = 15.0
            await ready(200, outbox=True, bus=True)


async def test_requests_to_a_silent_api_server_end_and_readiness_tells(
    hub: HubAddresses, tmp_path: Path
) -> None:
    weak = tmp_path / "weak"
    terms = Terms(lease_seconds=3)
    process = Process()

    async def work(over: asyncio.Event) -> None:
        await over.wait()

    async with (
        cut_line(hub.kubeconfig, weak) as line,
        await KubeClient.connect(weak) as kube,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(
            lead(
                kube,
                name="half-open",
                namespace="default",
                identity=make_identity(),
                stop=process.stop,
                work=work,
                terms=terms,
                checks=process.checks,
            )
        )
        await asyncio.sleep(0)
        await is_true(process.checks["lease"], "it is ready", seconds=5)
        await kube.list_page(CONFIG_MAPS, limit=1)
        line.silence()
        await is_true(lambda: not process.checks["lease"](), "unready", seconds=terms.lease_seconds + LAG)
        with within(15 + LAG), pytest.raises(ApiUnavailable):
            await kube.list_page(CONFIG_MAPS, limit=1)
        line.cut()
        line.speak()
        await is_true(process.checks["lease"], "it is ready again", seconds=5)
        process.stop.set()


async def test_sockets_to_the_api_server_probe_it(hub: HubAddresses, tmp_path: Path) -> None:
    weak = tmp_path / "weak"
    async with cut_line(hub.kubeconfig, weak), await KubeClient.connect(weak) as kube:
        await kube.list_page(CONFIG_MAPS, limit=1)
        server = next(line for line in weak.read_text().splitlines() if "server: " in line)
        assert_watched(server.split("server: ")[1].strip())

"""Connecting to NATS as one user, and hearing what the server refuses.

A server refuses a publication or subscription without an answer to it: it sends one line on the connection, which names
the subject. Whoever waits for an answer would wait in vain, so that line is logged, counted, and ends the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from prometheus_client import Counter

from shared.bus.nkey import Nkey, read_nkey
from shared.bus.permissions import inbox_prefix
from shared.bus.port import BusUnavailable
from shared.domain.errors import PermanentError
from shared.runtime.keepalive import keep_alive

__all__ = [
    "WHAT_TO_DO",
    "BusAddressInvalid",
    "BusDenied",
    "BusUnavailable",
    "Denials",
    "close_client",
    "open_client",
]

log = structlog.get_logger()

CONNECT_TIMEOUT_SECONDS = 5
FLUSH_TIMEOUT_SECONDS = 2
"""For how long a publication waits for room where much waits to be sent. The client's default is for ever."""
CLOSE_TIMEOUT_SECONDS = 2
DENIED_SECONDS = 60.0
"""For how long a refusal is held against the process's readiness."""

DENIALS = Counter("kmmhub_bus_denied_total", "Refusals of the NATS server, by action.", ["action"])
WHAT_TO_DO = (
    "the user that NATS_URL or NATS_NKEY_SEED names lacks the permission: give the service its own user, with the "
    "permissions of deploy/nats"
)

# nats-py passes the server's words on in lower case.
_DENIAL = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)
_REFUSED = re.compile(r"authorization violation|authentication", re.IGNORECASE)


class BusDenied(BusUnavailable):
    """NATS refuses what we may not do; it goes on once somebody has put the permissions right."""

    reason = "BusDenied"


class BusAddressInvalid(PermanentError):
    """An address of NATS that cannot be read."""

    reason = "BusAddressInvalid"


class Denials:
    """Refusals of the server: heard here, told to whoever waits for an answer."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Timeout]] = {}
        self._last: float | None = None

    @property
    def are_recent(self) -> bool:
        """Whether the server refused anything within the last minute."""
        return self._last is not None and time.monotonic() - self._last < DENIED_SECONDS

    def heard(self, error: Exception) -> bool:
        """Take note of an error of the connection. Returns whether it is a refusal."""
        found = _DENIAL.search(str(error))
        if found is None:
            return False
        action, subject = found.group(1).lower(), found.group(2)
        self._last = time.monotonic()
        DENIALS.labels(action).inc()
        log.error("bus.denied", action=action, subject=subject, what_to_do=WHAT_TO_DO)
        for limit in self._waiting.pop(subject.lower(), ()):
            limit.reschedule(0)
        return True

    @contextlib.contextmanager
    def raised(self, subject: str, limit: asyncio.Timeout) -> Iterator[None]:
        """End `limit` as soon as the server refuses the publication on `subject`."""
        waiting = self._waiting.setdefault(subject.lower(), set())
        waiting.add(limit)
        try:
            yield
        finally:
            waiting.discard(limit)
            if not waiting and self._waiting.get(subject.lower()) is waiting:
                del self._waiting[subject.lower()]


class _SturdyClient(Client):
    """A client that no message can stop: the library's reading loop ends at one that it cannot decode."""

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            found: dict[str, str] | None = await super()._process_headers(headers)
        except (ValueError, LookupError) as error:  # whatever it is, the message itself can be handled
            log.warning("bus.headers_unreadable", error=repr(error))
            return None
        return found

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        message: Msg = super()._build_message(sid, _text(subject), _text(reply), data, headers)
        return message


class _NkeyClient(_SturdyClient):
    """A client that signs by our own `Nkey`: the library's way needs a further package for the same signature."""

    def __init__(self, nkey: Nkey) -> None:
        super().__init__()
        self._public_nkey = nkey.public


async def open_client(
    url: str,
    *,
    name: str,
    nkey_seed: Path | None = None,
    denials: Denials,
    on_closed: Callable[[], None] = lambda: None,
) -> Client:
    """Connect to NATS.

    Reconnects for ever, and notices a connection on which nothing comes within twelve seconds, at the third ping (the
    client's defaults give up after two minutes and notice after six).

    Args:
        url: `nats://[user:password@]host:port`, several with commas between.
        name: of the process: begins its inboxes, see `shared.bus.permissions`; the server shows `kmmhub-<name>`.
        nkey_seed: file with the seed of the user's nkey, instead of a password.
        denials: told what the server refuses.
        on_closed: called when the connection has ended for good, by us or because the server threw us out.

    Raises:
        BusUnavailable: the server cannot be reached now, or does not admit us.
        InvalidNkey: the file holds no seed.
    """
    nkey = None if nkey_seed is None else read_nkey(nkey_seed)
    last_error: Exception | None = None
    is_open = False

    async def on_error(error: Exception) -> None:
        nonlocal last_error
        # A refusal says more than the end of the connection that follows it.
        if not _REFUSED.search(str(last_error)):
            last_error = error
        if not denials.heard(error):
            log.warning("bus.error", error=repr(error))

    async def closed() -> None:
        if is_open:
            on_closed()

    async def reconnected() -> None:
        _keep_alive(client)

    client = _SturdyClient() if nkey is None else _NkeyClient(nkey)
    try:
        # The client's own limit is for one attempt, and reconnecting for ever includes the first connection.
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            await client.connect(
                url.split(","),
                name=f"kmmhub-{name}",
                inbox_prefix=inbox_prefix(name),
                signature_cb=None if nkey is None else nkey.sign,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                ping_interval=4,
                max_outstanding_pings=2,
                flusher_queue_size=0,  # without limit: waiting for room in this one has no limit in time
                flush_timeout=FLUSH_TIMEOUT_SECONDS,
                error_cb=on_error,
                closed_cb=closed,
                reconnected_cb=reconnected,
            )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        await client.close()
        raise BusUnavailable(_unreachable(last_error or error)) from error
    except ValueError as error:
        raise BusAddressInvalid(
            "NATS_URL cannot be read; write it like nats://user:password@host:port"
        ) from error
    is_open = True
    _keep_alive(client)
    return client


async def close_client(client: Client) -> None:
    """Disconnect for good, without waiting for a server that takes nothing any more."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await client.close()
    except TimeoutError:
        writer = _writer(client)
        if writer is not None:
            writer.transport.abort()


def _text(name: bytes) -> bytes:
    """A name that decodes: others may put any bytes into a subject."""
    return name.decode(errors="replace").encode()


def _keep_alive(client: Client) -> None:
    """Let the kernel give up what nobody takes: the client waits for that, without a limit, before it reconnects."""
    writer = _writer(client)
    if writer is not None:
        keep_alive(writer.get_extra_info("socket"))


def _writer(client: Client) -> asyncio.StreamWriter | None:
    """The connection below the client, to which the library offers no way."""
    transport = client._transport
    return transport._io_writer if isinstance(transport, TcpTransport) else None


def _unreachable(error: Exception) -> str:
    if _REFUSED.search(str(error)):
        return f"NATS does not admit us: {error}; are NATS_URL's user and password, or NATS_NKEY_SEED, right?"
    return f"NATS cannot be reached: {error!r}; is NATS_URL right?"

"""Making streams and consumers: the work of one user, who may do that and nothing else.

Whatever is missing is made, whatever differs is brought to its configuration. A stream is replaced, with what waits in
it, only where the server takes no other way: its retention cannot become another one. What was lost is found by the
dispatcher's next look at everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import errors as js_errors
from nats.js.api import ConsumerConfig, StreamConfig
from prometheus_client import Counter

from shared.bus.connection import WHAT_TO_DO, BusDenied, BusUnavailable, Denials, close_client, open_client
from shared.bus.topology import QUEUES, Queue
from shared.runtime.pause import pause

log = structlog.get_logger()

API_TIMEOUT_SECONDS = 5.0
WATCH_SECONDS = 2.0
"""How soon a stream that is lost is missed."""

CHANGES_MADE = Counter("kmmhub_streams_changes_total", "Streams and consumers made or changed.", ["action"])


class Action(StrEnum):
    """What was done to a stream or consumer."""

    CREATED = "created"
    CHANGED = "changed"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was done to one stream, or to one consumer of it.

    Attributes:
        consumer: None where the stream itself is meant.
    """

    stream: str
    consumer: str | None
    action: Action


class Administrator:
    """A connection of the user `streams`."""

    def __init__(self, client: Client, denials: Denials) -> None:
        self._client = client
        self._denials = denials
        self._jetstream = client.jetstream(timeout=API_TIMEOUT_SECONDS)
        self.is_done = False
        """Whether at the last look everything was there, or could be made."""

    async def ensure(self, queues: Collection[Queue] = QUEUES) -> list[Result]:
        """Make what is missing, and bring the others to their configuration.

        Returns:
            What was done, stream by stream, each before its consumer.

        Raises:
            BusDenied: our user may not do that.
            BusUnavailable: NATS does not answer, or does not take a configuration.
        """
        results: list[Result] = []
        for queue in queues:
            try:
                stream = await self._ensure_stream(queue)
                consumer = await self._ensure_consumer(queue)
            except (nats.errors.Error, js_errors.Error, TimeoutError) as error:
                if self._denials.are_recent:
                    raise BusDenied(f"NATS refuses us stream {queue.stream}: {WHAT_TO_DO}") from error
                message = (
                    f"stream {queue.stream} could not be prepared: {error!r}; does NATS run with JetStream?"
                )
                raise BusUnavailable(message) from error
            results += [
                Result(stream=queue.stream, consumer=None, action=stream),
                Result(stream=queue.stream, consumer=queue.consumer, action=consumer),
            ]
        return results

    async def watch(self, stop: asyncio.Event, queues: Collection[Queue] = QUEUES) -> None:
        """Look again and again until `stop` is set; what was lost is there again within seconds."""
        while not stop.is_set():
            try:
                results = await self.ensure(queues)
            except BusUnavailable as error:
                self.is_done = False
                log.warning("streams.failed", error=str(error))
            else:
                self.is_done = True
                report(results)
            await pause(stop, WATCH_SECONDS)

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands now."""
        return self._client.is_connected

    async def close(self) -> None:
        """Disconnect."""
        await close_client(self._client)

    async def _ensure_stream(self, queue: Queue) -> Action:
        wanted = queue.stream_config()
        try:
            present = (await self._jetstream.stream_info(queue.stream)).config
        except js_errors.NotFoundError:
            await self._jetstream.add_stream(wanted)
            return Action.CREATED
        if _agrees(present, wanted):
            return Action.UNCHANGED
        if present.retention != wanted.retention:
            # NATS ("JetStream, Streams, Retention"): nothing becomes a work queue, or stops being one.
            log.warning("streams.replacing", stream=queue.stream, retention=queue.retention.value)
            await self._jetstream.delete_stream(queue.stream)
            await self._jetstream.add_stream(wanted)
            return Action.REPLACED
        await self._jetstream.update_stream(wanted)
        return Action.CHANGED

    async def _ensure_consumer(self, queue: Queue) -> Action:
        wanted = queue.consumer_config()
        try:
            present = (await self._jetstream.consumer_info(queue.stream, queue.consumer)).config
        except js_errors.NotFoundError:
            await self._jetstream.add_consumer(queue.stream, wanted)
            return Action.CREATED
        if _agrees(present, wanted):
            return Action.UNCHANGED
        await self._jetstream.add_consumer(queue.stream, wanted)
        return Action.CHANGED


async def open_administrator(
    url: str,
    *,
    name: str = "streams",
    nkey_seed: Path | None = None,
    on_closed: Callable[[], None] = lambda: None,
) -> Administrator:
    """Connect as the user `streams`; arguments and errors as of `shared.bus.connection.open_client`."""
    denials = Denials()
    client = await open_client(url, name=name, nkey_seed=nkey_seed, denials=denials, on_closed=on_closed)
    return Administrator(client, denials)


def report(results: Sequence[Result]) -> None:
    """Log and count what was made or changed."""
    for result in results:
        if result.action is not Action.UNCHANGED:
            CHANGES_MADE.labels(result.action.value).inc()
            log.info(
                f"streams.{result.action}",
                stream=result.stream,
                consumer=result.consumer or "the stream itself",
            )


def _agrees(present: StreamConfig | ConsumerConfig, wanted: StreamConfig | ConsumerConfig) -> bool:
    """Whether everything that we ask for is so; the server adds defaults to what we leave open."""
    has = present.as_dict()
    return all(has.get(name) == value for name, value in wanted.as_dict().items())

"""Messages that no handler can take: kept with their cause until a person decides (`kmmhub deadletters`).

The bus hands out deliveries and knows nothing of the store; what stands here makes its handlers from a service's own,
which get messages that were read and never see what cannot be.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

import structlog
from prometheus_client import Counter
from pydantic import ValidationError

from shared.bus.port import BatchHandler, Delivery, Done, Handler, Retry, Verdict
from shared.bus.topology import Queue
from shared.domain.backoff import retry_delay
from shared.domain.canonical import storable_text
from shared.domain.errors import MAX_MESSAGE_CHARACTERS, HubError, TransientError
from shared.events.messages import UnreadableMessage
from shared.runtime.fail_point import FailPoint, fail_point
from shared.store.port import Store, StoreUnavailable

log = structlog.get_logger()

M = TypeVar("M")
Decode: TypeAlias = Callable[[bytes], M]
"""Reads a payload. Raises UnreadableMessage."""

MOST_DELIVERIES = 8
"""A message whose handler still raises at this delivery is buried: some two to four minutes after the first."""

APART_DELIVERIES = 3
"""From this delivery on, messages of a batch that fails are handled one by one."""

BURIED = Counter("kmmhub_dead_letters_total", "Messages that could not be handled, by queue.", ["queue"])

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class DeadLetters(Generic[M]):
    """Turns a service's handlers of messages into the bus's handlers of deliveries.

    A message that cannot be read is buried at once. One whose handler raises comes again, later each time, and is
    buried at the eighth delivery, whoever got the others; a TransientError is the outside's fault and buries nothing.
    What is buried is acknowledged after its row is committed: it is in the queue, in the table, or shortly in both.
    """

    def __init__(
        self,
        store: Store,
        queue: Queue,
        decode: Decode[M],
        *,
        pause: Callable[[int], float] = lambda deliveries: retry_delay(deliveries, jitter=random.random()),  # noqa: S311
    ) -> None:
        """Letters of one queue.

        Args:
            store: where they are kept.
            queue: that they come from.
            decode: reads a payload.
            pause: seconds until a message comes again that failed at this delivery.
        """
        self._store = store
        self._queue = queue.stream
        self._decode = decode
        self._pause = pause

    def guarded(self, handle: Callable[[M], Awaitable[Verdict]]) -> Handler:
        """The handler of single messages."""

        async def guarded(delivery: Delivery) -> Verdict:
            try:
                return await handle(self._decode(delivery.payload))
            except Exception as error:  # noqa: BLE001 - whatever it is, the message has a way out
                return await self._failed(delivery, error)

        return guarded

    def guarded_batch(self, handle: Callable[[Sequence[M]], Awaitable[Verdict]]) -> BatchHandler:
        """The handler of batches; `handle` gives one verdict for all that it gets."""

        async def one(message: M) -> Verdict:
            return await handle([message])

        alone = self.guarded(one)

        async def guarded(deliveries: Sequence[Delivery]) -> Sequence[Verdict]:
            verdicts: dict[int, Verdict] = {}
            messages: dict[int, M] = {}
            for place, delivery in enumerate(deliveries):
                try:
                    messages[place] = self._decode(delivery.payload)
                except UnreadableMessage as error:
                    verdicts[place] = await self.bury(delivery, cause_of(error))
            if len(messages) == 1:
                (place,) = messages
                verdicts[place] = await alone(deliveries[place])
            elif messages:
                verdicts |= await self._together(handle, alone, deliveries, messages)
            return [verdicts[place] for place in range(len(deliveries))]

        return guarded

    async def bury(self, delivery: Delivery, cause: str) -> Verdict:
        """Keep a message with its cause. Returns Done once that is committed, Retry if the store is away."""
        try:
            async with self._store.begin() as transaction:
                number = await transaction.bury(
                    queue=self._queue,
                    subject=delivery.subject,
                    payload=delivery.payload,
                    cause=cause,
                    deliveries=delivery.deliveries,
                )
        except StoreUnavailable as error:
            log.warning("letter.not_buried", queue=self._queue, subject=delivery.subject, error=str(error))
            return self._again(delivery)
        fail_point(FailPoint.LETTER_BURIED)
        BURIED.labels(self._queue).inc()
        log.warning("letter.buried", id=number, queue=self._queue, subject=delivery.subject, cause=cause)
        return Done()

    async def _together(
        self,
        handle: Callable[[Sequence[M]], Awaitable[Verdict]],
        alone: Handler,
        deliveries: Sequence[Delivery],
        messages: Mapping[int, M],
    ) -> dict[int, Verdict]:
        """Handle messages, by place among the deliveries, at once; if that fails, each that did before alone."""
        try:
            return dict.fromkeys(messages, await handle([*messages.values()]))
        except TransientError as error:
            log.warning("messages.not_handled", queue=self._queue, count=len(messages), error=cause_of(error))
            is_apart = False
        except Exception:
            log.exception("messages.failed", queue=self._queue, count=len(messages))
            is_apart = True
        verdicts: dict[int, Verdict] = {}
        for place in messages:
            delivery = deliveries[place]
            has_failed_before = is_apart and delivery.deliveries >= APART_DELIVERIES
            verdicts[place] = await alone(delivery) if has_failed_before else self._again(delivery)
        return verdicts

    async def _failed(self, delivery: Delivery, error: Exception) -> Verdict:
        cause = cause_of(error)
        if isinstance(error, UnreadableMessage):
            return await self.bury(delivery, cause)
        seen = {"queue": self._queue, "subject": delivery.subject, "deliveries": delivery.deliveries}
        if isinstance(error, TransientError):
            log.warning("message.not_handled", **seen, error=cause)
            return self._again(delivery)
        log.error("message.failed", **seen, exc_info=error)
        if delivery.deliveries >= MOST_DELIVERIES:
            return await self.bury(delivery, cause)
        return self._again(delivery)

    def _again(self, delivery: Delivery) -> Retry:
        return Retry(seconds=self._pause(delivery.deliveries))


def cause_of(error: Exception) -> str:
    """An exception in words, for a person and for the store. Pure.

    Neither the user and password of an address stand in it, nor the input that a model refused.
    """
    name, text = (error.reason if isinstance(error, HubError) else type(error).__name__), str(error)
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        text = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in problems)
    cause = storable_text(_CREDENTIALS.sub("…", f"{name}: {text}" if text else name))
    return cause if len(cause) <= MAX_MESSAGE_CHARACTERS else f"{cause[: MAX_MESSAGE_CHARACTERS - 1]}…"

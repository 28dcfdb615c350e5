"""What has to be looked at again, later each time that it fails again."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from shared.domain.backoff import retry_delay
from shared.runtime.clock import elapsed

MAX_RETRY_SECONDS = 30.0

K = TypeVar("K", bound=Hashable)


class Again(Generic[K]):
    """Keys that failed, each with the count of its failures and the time of its next look, on the loop's clock.

    Whoever takes keys looks at them and says how it went: a key is in here from its first failure until it succeeds,
    and what is gone succeeds. So there are never more of them than things that fail now.

    Attributes:
        planned: set whenever a look is planned; whoever waits clears it.
    """

    def __init__(self) -> None:
        self.planned = asyncio.Event()
        self._failures: dict[K, int] = {}
        self._due: dict[K, float] = {}

    def __len__(self) -> int:
        return len(self._failures.keys() | self._due.keys())

    def failed(self, keys: Iterable[K]) -> None:
        """Plan another look at each, unless an earlier one is planned already."""
        for key in keys:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = min(retry_delay(failures, jitter=random.random()), MAX_RETRY_SECONDS)  # noqa: S311 - no secret
            self._due.setdefault(key, elapsed() + delay)
            self.planned.set()

    def plan(self, keys: Iterable[K], seconds: float) -> None:
        """Look at these in so many seconds, which is no failure of theirs."""
        for key in keys:
            self._due.setdefault(key, elapsed() + seconds)
            self.planned.set()

    def succeeded(self, keys: Iterable[K]) -> None:
        """Forget their failures and what was planned."""
        for key in keys:
            self._failures.pop(key, None)
            self._due.pop(key, None)

    def take(self) -> set[K]:
        """Those whose time has come; they are not planned any more."""
        now = elapsed()
        taken = {key for key, when in self._due.items() if when <= now}
        for key in taken:
            del self._due[key]
        return taken

    def seconds_left(self) -> float:
        """Until the next one's time comes; infinite if none is planned."""
        return min(self._due.values(), default=math.inf) - elapsed()

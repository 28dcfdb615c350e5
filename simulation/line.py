"""The way from one simulated process to whatever it stands on: where delays, faults and death happen."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass


class LineBroken(Exception):
    """The other side could not be reached, or its answer was lost; ports turn it into their own error."""


@dataclass(slots=True, kw_only=True)
class Weather:
    """How bad the lines are now; the nemesis changes it.

    Attributes:
        loss: probability that a request never arrives.
        lost_answers: probability that it arrives, and the answer does not.
        delay: longest time of one way, in seconds.
    """

    loss: float = 0.0
    lost_answers: float = 0.0
    delay: float = 0.005


class Line:
    """One process's line to one part. A process that is dead has no effect any more, whatever its code still does."""

    def __init__(self, name: str, weather: Weather, chance: random.Random, *, to: str = "") -> None:
        """`name`: the process; `to`: what the line leads to."""
        self.name = name
        self.to = to
        self.is_dead = False
        self.is_cut = False
        self._weather = weather
        self._chance = chance

    @contextlib.asynccontextmanager
    async def crossing(self, effect: str) -> AsyncIterator[None]:
        """Surround one effect, which must not await. Before it and after it the process may die.

        Raises:
            LineBroken: before the effect, which then does not happen, or after it, which then did.
            CancelledError: the process is dead.
        """
        await self._way()
        if self.is_cut or self._chance.random() < self._weather.loss:
            raise LineBroken(f"{self.name}: {effect} did not arrive")
        yield
        await self._way()
        if self.is_cut or self._chance.random() < self._weather.lost_answers:
            raise LineBroken(f"{self.name}: the answer to {effect} was lost")

    async def _way(self) -> None:
        self._check()
        await asyncio.sleep(self._chance.random() * self._weather.delay)
        self._check()

    def _check(self) -> None:
        if self.is_dead:
            raise asyncio.CancelledError(f"{self.name}: the process is dead")

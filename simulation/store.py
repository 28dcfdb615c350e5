"""Postgres as a value in memory: transactions that are atomic, row locks that wait, and a clock of its own.

Rules that matter to the services, as PostgreSQL 16's documentation has them (chapters 13.2.1, read committed, and
13.3.2, row-level locks): a statement sees what is committed when it begins, and what its own transaction wrote; a row
that another transaction wrote or locked is waited for and read again; ids are given before the commit. The contract
tests hold them against a real server.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shared.domain.artifact import EPOCH
from shared.store.port import StoreUnavailable
from simulation.line import Line, LineBroken
from simulation.store_rows import Rows

T = TypeVar("T")
Key = tuple[str, object]
"""(table, primary key)."""

Change = tuple[Key, Any, Any]
"""A row's key, the row before and after; None where there is none."""

IDLE_SECONDS = 10.0
"""As `shared.store.database.IDLE_IN_TRANSACTION_SECONDS`: how long a silent client keeps its locks."""

STATEMENT_SECONDS = 30.0
"""As `shared.store.database.STATEMENT_TIMEOUT_SECONDS`: how long a statement waits for a lock."""

START = EPOCH + dt.timedelta(days=20_000)


@dataclass(slots=True)
class StoreState:
    """What is committed, and who holds which row.

    Attributes:
        clock: the loop's time in seconds.
        is_down: nobody can connect; open transactions are lost.
        observe: told of each commit: whose it is, when its transaction began, and each row that it changed.
    """

    clock: Callable[[], float]
    observe: Callable[[str, dt.datetime, list[Change]], None] = lambda *_: None
    rows: dict[Key, Any] = field(default_factory=dict)
    is_down: bool = False
    last_id: int = 0
    commits: int = 0
    holders: dict[Key, SimulatedTransaction] = field(default_factory=dict)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def now(self) -> dt.datetime:
        """The database's clock."""
        return START + dt.timedelta(seconds=self.clock())

    def next_id(self) -> int:
        """Ids are given at once, whether or not the transaction commits."""
        self.last_id += 1
        return self.last_id

    def apply(self, name: str, began: dt.datetime, writes: Mapping[Key, Any]) -> None:
        """Commit somebody's writes."""
        changes = [(key, self.rows.get(key), row) for key, row in writes.items()]
        for key, _, row in changes:
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        if changes:
            self.commits += 1
            self.observe(name, began, changes)

    def crash(self) -> None:
        """Kill the server and start it: what was committed stays, every open transaction is lost."""
        for transaction in list(dict.fromkeys(self.holders.values())):
            transaction.abort()

    def table(self, table: str) -> dict[object, Any]:
        """The committed rows of a table, by primary key: for whoever watches the simulation."""
        return {key: row for (name, key), row in self.rows.items() if name == table}

    async def hold(self, key: Key, transaction: SimulatedTransaction) -> None:
        """Lock a row, waiting for other holders.

        Raises:
            StoreUnavailable: it took longer than a statement may.
        """
        deadline = self.clock() + STATEMENT_SECONDS
        while (holder := self.holders.get(key)) not in {None, transaction}:
            assert holder is not None
            left = holder.last_heard + IDLE_SECONDS - self.clock()
            if left <= 0 and not holder.is_waiting:
                holder.abort()
                continue
            if self.clock() >= deadline:
                raise StoreUnavailable(f"a lock on {key} was waited for too long")
            transaction.is_waiting = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(left, 0.1)):
                    await self._released.wait()
            transaction.is_waiting = False
        transaction.check()
        self.holders[key] = transaction

    def release(self, transaction: SimulatedTransaction) -> None:
        """Drop all locks of a transaction and let the waiting ones look again."""
        self.holders = {key: holder for key, holder in self.holders.items() if holder is not transaction}
        self._released.set()
        self._released = asyncio.Event()


class SimulatedTransaction(Rows):
    """`shared.store.port.Transaction` on a StoreState."""

    def __init__(self, state: StoreState, line: Line) -> None:
        self._state = state
        self._line = line
        self._began = state.now()
        self._writes: dict[Key, Any] = {}
        self._is_lost = False
        self.is_waiting = False
        self.last_heard = state.clock()

    def __hash__(self) -> int:
        return id(self)

    def check(self) -> None:
        """Raises StoreUnavailable if the server dropped this transaction."""
        if self._is_lost or self._state.is_down:
            raise StoreUnavailable("the connection to the store was lost")

    def abort(self) -> None:
        """The server drops it: nothing that it wrote happened."""
        self._is_lost = True
        self._state.release(self)

    async def commit(self) -> None:
        """Make everything that was written visible at once. Raises StoreUnavailable."""
        try:
            async with self._line.crossing("store.commit"):
                self.check()
                self._state.apply(self._line.name, self._began, self._writes)
                self._state.release(self)
        except LineBroken as error:
            raise StoreUnavailable(str(error)) from error

    async def now(self) -> dt.datetime:
        """The time at which the transaction began."""
        return self._began

    async def _run(self, effect: str, run: Callable[[], T], *, hold: Iterable[Key] = ()) -> T:
        """One statement: lock rows, then read or write."""
        try:
            self.check()
            for key in hold:
                await self._state.hold(key, self)
            async with self._line.crossing(f"store.{effect}"):
                self.check()
                self.last_heard = self._state.clock()
                return run()
        except LineBroken as error:
            self._is_lost = True
            raise StoreUnavailable(str(error)) from error

    def _is_free(self, key: Key) -> bool:
        return self._state.holders.get(key) in {None, self}

    def _take(self, key: Key) -> None:
        self._state.holders[key] = self

    def _next_id(self) -> int:
        return self._state.next_id()

    def _get(self, table: str, key: object) -> Any:
        full = (table, key)
        return self._writes[full] if full in self._writes else self._state.rows.get(full)

    def _put(self, table: str, key: object, row: Any) -> None:
        self._writes[table, key] = row

    def _all(self, table: str) -> dict[Any, Any]:
        rows = self._state.table(table)
        rows |= {key: row for (name, key), row in self._writes.items() if name == table}
        return {key: row for key, row in rows.items() if row is not None}


class SimulatedStore:
    """`shared.store.port.Store` of one process."""

    def __init__(self, state: StoreState, line: Line) -> None:
        self._state = state
        self._line = line

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncIterator[SimulatedTransaction]:
        """A transaction that commits at the end of the block."""
        transaction = SimulatedTransaction(self._state, self._line)
        try:
            transaction.check()
            yield transaction
            await transaction.commit()
        finally:
            self._state.release(transaction)

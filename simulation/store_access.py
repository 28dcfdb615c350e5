"""What a transaction of the simulated store can do with a row: all that its statements stand on."""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class RowAccess(ABC):
    """Rows by table and key; `_run` is one statement."""

    _began: dt.datetime

    @abstractmethod
    async def _run(
        self, effect: str, run: Callable[[], T], *, hold: Iterable[tuple[str, object]] = ()
    ) -> T: ...
    @abstractmethod
    def _is_free(self, key: tuple[str, object]) -> bool: ...
    @abstractmethod
    def _take(self, key: tuple[str, object]) -> None: ...
    @abstractmethod
    def _next_id(self) -> int: ...
    @abstractmethod
    def _get(self, table: str, key: object) -> Any: ...
    @abstractmethod
    def _put(self, table: str, key: object, row: Any) -> None: ...
    @abstractmethod
    def _all(self, table: str) -> dict[Any, Any]: ...


def row_keys(table: str, keys: Iterable[object]) -> list[tuple[str, object]]:
    """Keys of rows of one table, as `_run` holds them."""
    return [(table, key) for key in keys]

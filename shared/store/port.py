"""What the services ask of the store: rows that can be read, locked and written in a transaction. No rule stands here.

`shared.store.postgres` is the store; the simulation has another one, which passes the same contract tests.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

from shared.domain.artifact import Artifact, ArtifactKey, Stage
from shared.domain.errors import TransientError
from shared.domain.work import ObservedWork, StoredWork

Row: TypeAlias = Mapping[str, Any]
"""A row of a table of facts, by column."""


MAX_DEAD_LETTERS = 10_000
"""More than any person looks through. A payload has at most 64 KiB, nearly all have some hundred bytes."""


class StoreUnavailable(TransientError):
    """The store does not answer, refuses, or rolled the transaction back; nothing of it happened, or all of it."""

    reason = "DatabaseUnavailable"


class Facts(StrEnum):
    """Tables of objects as last seen, keyed by `name`."""

    CLUSTERS = "clusters"
    MODULES = "modules"
    CONFIG_MAPS = "config_maps"
    SECRETS = "secrets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """Artifacts that no other transaction can write until this one ends.

    Attributes:
        now: the store's clock.
        artifacts: by key, as far as they exist.
    """

    now: dt.datetime
    artifacts: Mapping[ArtifactKey, Artifact]


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A message that commits together with the fact it announces.

    `message_id` None: each is another message, however equal.
    """

    subject: str
    payload: bytes
    message_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """One announcement that waits to be published."""

    id: int
    subject: str
    message_id: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that no handler could take, kept with its cause until a person decides.

    Attributes:
        id: given by the store.
        queue: the stream it came from.
        cause: why it could not be handled.
        deliveries: how many times it was handed out.
        died_at: by the store's clock.
    """

    id: int
    queue: str
    subject: str
    payload: bytes
    cause: str
    deliveries: int
    died_at: dt.datetime


class ArtifactRows(Protocol):
    """Artifacts, and which module wants which of them for which kernel."""

    async def now(self) -> dt.datetime:
        """The store's clock: the same for a whole transaction."""

    async def add_artifacts(self, new: Iterable[Artifact]) -> list[ArtifactKey]:
        """Insert those whose keys do not exist. Returns the keys of those that were inserted."""

    async def read_artifacts(self, keys: Collection[str]) -> dict[ArtifactKey, Artifact]:
        """Those that exist, as committed."""

    async def lock_artifacts(self, keys: Collection[str]) -> Locked:
        """Those that exist; waits for other holders."""

    async def lock_overdue_artifacts(self, *, limit: int) -> Locked:
        """Some that have not ended and whose `announce_after` is over; those that others hold are left out."""

    async def due_artifacts(self, stage: Stage, *, since_seconds: float, limit: int) -> list[ArtifactKey]:
        """Some that a worker of this stage could have taken for so many seconds, oldest first."""

    async def put_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """Write artifacts that this transaction holds."""

    async def put_module_kernels(self, wanted: Mapping[tuple[str, str], str]) -> set[str]:
        """Store which artifact key each (module, kernel) wants. Returns keys that replaced another one."""

    async def keep_module_kernels(
        self, places: Collection[tuple[str, str]], *, of: Collection[str] | None, unread: Collection[str]
    ) -> None:
        """Forget what is wanted for other (module, kernel) places of the modules `of` (None: of all).

        Those of the modules `unread` stay.
        """

    async def lock_unneeded_artifacts(self, *, limit: int) -> Locked:
        """Some that no module wants and that somebody would try again, or show; those held by others are left out."""

    async def read_artifact_keys(self, module: str) -> set[str]:
        """Keys that a module wants."""

    async def read_places(self, keys: Collection[str]) -> set[tuple[str, str]]:
        """(module, cluster) pairs: the module wants one of these artifacts for a kernel that the cluster runs."""


class FactRows(Protocol):
    """Objects as last seen, and whether all of a kind were ever listed."""

    async def read_facts(self, table: Facts, names: Collection[str] | None = None) -> dict[str, Row]:
        """Rows by name; all of them if `names` is None."""

    async def lock_facts(self, table: Facts, names: Collection[str]) -> dict[str, Row]:
        """The same, held until the transaction ends."""

    async def put_facts(self, table: Facts, rows: Sequence[Row]) -> None:
        """Insert or replace rows, at most one per name."""

    async def remove_facts(self, table: Facts, names: Collection[str]) -> set[str]:
        """Delete rows. Returns the names of those that were there."""

    async def mark_synced(self, resource: str, *, resource_version: int) -> None:
        """Note that a resource was listed completely."""

    async def synced_resources(self) -> set[str]:
        """Resources that were listed completely at least once."""


class WorkRows(Protocol):
    """ManifestWorks as last known. Of two observations the one with the newer resourceVersion wins."""

    async def record_works(
        self, observed: Sequence[ObservedWork], *, is_own_write: bool
    ) -> set[tuple[str, str]]:
        """Store works unless something newer is known.

        Args:
            observed: at most one entry per work.
            is_own_write: the content is what we just wrote; later observations are compared to it. It also wins
                over an observation of the same resourceVersion, to which it adds what it alone knows.

        Returns:
            (cluster, name) of those that were stored.
        """

    async def mark_works_gone(
        self, keys: Iterable[tuple[str, str]], *, resource_version: int
    ) -> set[tuple[str, str]]:
        """Record that works no longer exist as of `resource_version`. Returns those for which that was news."""

    async def read_works(
        self, *, modules: Collection[str] | None, clusters: Collection[str] = ()
    ) -> dict[tuple[str, str], StoredWork]:
        """Works that bear these modules' names or labels (None: all), or in these clusters, by (name, cluster).

        Left out is what decides nothing, however much of it there is: works of others, except under the name of a
        module that is stored or under the reserved one, which must not be overwritten; and works that are gone, except
        those in `clusters` that are gone themselves: their modules still count them.
        """

    async def forget_gone_works(self, *, older_than_seconds: float, limit: int) -> None:
        """Delete what is known of up to `limit` works that went that long ago; those that others hold stay."""

    async def known_works(self) -> set[tuple[str, str]]:
        """(cluster, name) of those that are not gone."""


class Outbox(Protocol):
    """Announcements on their way to the bus, and messages that it delivered in vain."""

    async def announce(self, announcements: Iterable[Announcement]) -> None:
        """Store announcements in this transaction."""

    async def lock_outbox(self, *, limit: int, subjects: Sequence[str] = ("",)) -> list[OutboxRow]:
        """Some rows that no other relay holds, in the order of their ids, whose subjects begin with one of these.

        By existence, not by "id greater than the last": ids commit out of order.
        """

    async def delete_from_outbox(self, ids: Collection[int]) -> None:
        """Forget rows that were published."""

    async def count_outbox(self) -> int:
        """How many announcements wait."""

    async def bury(self, *, queue: str, subject: str, payload: bytes, cause: str, deliveries: int) -> int:
        """Keep a message that cannot be handled. Returns its id; the same message again is not kept twice.

        Of more than MAX_DEAD_LETTERS the oldest are forgotten.
        """

    async def count_dead_letters(self) -> int:
        """How many messages wait for a person."""

    async def read_dead_letters(self) -> list[DeadLetter]:
        """All of them, oldest first."""

    async def take_dead_letters(self, ids: Collection[int]) -> list[DeadLetter]:
        """Remove some and return those that were there."""


class Transaction(ArtifactRows, FactRows, WorkRows, Outbox, Protocol):
    """Everything that happens in it is committed together, or not at all."""


class Store(Protocol):
    """Opens transactions."""

    def begin(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction that commits at the end of the block, and rolls back if the block raises.

        Raises:
            StoreUnavailable: at any step inside, or at the commit.
        """

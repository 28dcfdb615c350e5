"""Facts into the store, each change with its announcement in the same transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.watcher.facts import Row
from shared.domain.work import ObservedWork
from shared.events.messages import Changed, Kind
from shared.store.outbox import announce
from shared.store.port import Facts, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class FactTable:
    """Where facts of a kind go.

    Attributes:
        table: keyed by `name`.
        kind: announced when a fact changes.
        quiet: columns that are stored but whose change is no news.
        kept_without_claim: columns that keep their value while `claim_is_present` is false.
    """

    table: Facts
    kind: Kind
    quiet: frozenset[str] = frozenset({"resource_version"})
    kept_without_claim: frozenset[str] = frozenset()


CLUSTERS = FactTable(
    table=Facts.CLUSTERS, kind=Kind.CLUSTER, kept_without_claim=frozenset({"kernels", "invalid_kernels"})
)
MODULES = FactTable(table=Facts.MODULES, kind=Kind.MODULE, quiet=frozenset({"resource_version", "status"}))
CONFIG_MAPS = FactTable(table=Facts.CONFIG_MAPS, kind=Kind.CONFIG_MAP)
SECRETS = FactTable(table=Facts.SECRETS, kind=Kind.SECRET)

GONE_KEPT_SECONDS = 24 * 3600.0
"""How long it is known of a work that it is gone: longer than an older event or answer can be under way."""

FORGOTTEN_AT_ONCE = 5000
"""Traces of works that one batch of deletions takes with it: more than most leave, and done within moments."""


async def record_facts(transaction: Transaction, facts: FactTable, rows: Sequence[Row]) -> int:
    """Store rows (at most one per name) and announce those that are news. Returns how many were."""
    if not rows:
        return 0
    known = await transaction.lock_facts(facts.table, [row["name"] for row in rows])
    rows = [row for row in rows if not is_outdated(row, known.get(row["name"]))]
    new = [keep_last_known(facts, row, known.get(row["name"])) for row in rows]
    changed = [row for row in new if row != {key: known.get(row["name"], {}).get(key) for key in row}]
    await transaction.put_facts(facts.table, changed)
    news = [row["name"] for row in changed if is_news(facts, row, known.get(row["name"]))]
    await announce(transaction, (Changed(kind=facts.kind, name=name) for name in news))
    return len(news)


async def forget_facts(transaction: Transaction, facts: FactTable, gone: Mapping[str, int]) -> None:
    """Remove objects that no longer exist, and announce it.

    Args:
        gone: names, and the resourceVersion as of which each is gone; what was seen later stays.
    """
    known = await transaction.lock_facts(facts.table, gone.keys())
    names = [name for name, row in known.items() if row["resource_version"] <= gone[name]]
    removed = await transaction.remove_facts(facts.table, names)
    await announce(transaction, (Changed(kind=facts.kind, name=name) for name in sorted(removed)))


async def keep_only_facts(
    transaction: Transaction, facts: FactTable, names: Collection[str], *, resource_version: int
) -> None:
    """After a complete list as of a version: forget everything that was not in it."""
    known = await transaction.read_facts(facts.table)
    missing = known.keys() - set(names)
    await forget_facts(transaction, facts, dict.fromkeys(sorted(missing), resource_version))


async def record_observed_works(transaction: Transaction, observed: Sequence[ObservedWork]) -> None:
    """Store works as seen, deleted ones too, announcing those whose stored state moved."""
    await _announce_works(transaction, await transaction.record_works(observed, is_own_write=False))
    if any(work.is_gone for work in observed):
        await _forget_gone(transaction)


async def keep_only_works(
    transaction: Transaction, keys: Collection[tuple[str, str]], *, resource_version: int
) -> None:
    """After a complete list: works that it lacks are gone, as of its version."""
    missing = await transaction.known_works() - set(keys)
    gone = await transaction.mark_works_gone(sorted(missing), resource_version=resource_version)
    await _announce_works(transaction, gone)
    await _forget_gone(transaction)


async def mark_synced(transaction: Transaction, resource: str, *, resource_version: int) -> None:
    """Note that a resource was listed completely; once, because what later lists find is announced one by one.

    Until then nobody may have looked at what was announced, therefore everything is.
    """
    if resource in await transaction.synced_resources():
        return
    await transaction.mark_synced(resource, resource_version=resource_version)
    await announce(transaction, [Changed(kind=Kind.EVERYTHING, name=resource)])


def is_outdated(row: Row, known: Mapping[str, object] | None) -> bool:
    """Whether something newer is known: a watcher that leads no more may still have an old batch in hand.

    A hub that is restored from a backup must let its revisions grow on, as Kubernetes asks (`etcdutl snapshot restore
    --bump-revision`).
    """
    return known is not None and row["resource_version"] < int(str(known["resource_version"]))


def keep_last_known(facts: FactTable, row: Row, known: Mapping[str, object] | None) -> Row:
    """A cluster whose claim is missing still runs the kernels that it last named; another one of its name does not."""
    if known is None or not facts.kept_without_claim or row["claim_is_present"] or known["uid"] != row["uid"]:
        return row
    return row | {column: known[column] for column in facts.kept_without_claim}


def is_news(facts: FactTable, row: Row, known: Mapping[str, object] | None) -> bool:
    """Whether anything but quiet columns differs from what was known."""
    if known is None:
        return True
    return any(value != known[column] for column, value in row.items() if column not in facts.quiet)


async def _forget_gone(transaction: Transaction) -> None:
    """Whoever leaves traces takes old ones away: they never become many more than a day's."""
    await transaction.forget_gone_works(older_than_seconds=GONE_KEPT_SECONDS, limit=FORGOTTEN_AT_ONCE)


async def _announce_works(transaction: Transaction, keys: Iterable[tuple[str, str]]) -> None:
    await announce(
        transaction, (Changed(kind=Kind.WORK, namespace=cluster, name=name) for cluster, name in sorted(keys))
    )

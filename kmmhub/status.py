"""`kmmhub status`: where each module stands, per cluster and per kernel."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from services.dispatcher import gather
from services.dispatcher.assemble import Shipment
from services.dispatcher.catalog import Catalog, ReadModule
from services.dispatcher.demand import Wanted
from services.dispatcher.picture import Picture, take_picture
from services.dispatcher.reconcile import REFUSALS
from services.dispatcher.scope import Pair, Scope
from services.dispatcher.status import Survey, module_status, report_clusters
from services.dispatcher.stored import StoredModule
from services.dispatcher.survey import survey_module
from shared.domain.errors import PermanentError
from shared.runtime.clock import now
from shared.store.database import connect, explained_failures
from shared.store.postgres import PostgresStore

PIPE_WIDTH = 4096
"""Columns where the output is no terminal: more than the longest message takes."""


class NoSuchModule(PermanentError):
    """The hub has no ManagedClusterModule of that name."""

    reason = "NoSuchModule"


def show_status(module: str | None, *, database_url: str, namespace: str, as_json: bool) -> int:
    """Print where modules stand: conditions, every cluster, every kernel.

    Args:
        module: one module, None for all.
        database_url: the services' database, where everything that they know is.
        namespace: the operator's.
        as_json: print `{"modules": […], "dead_letters": count}` instead of tables.

    Returns:
        The exit status: 0 if all that was shown is Ready.

    Raises:
        NoSuchModule: there is no module of that name.
        DatabaseUnavailable: Postgres does not answer, or lacks the schema.
    """
    with explained_failures(database_url):
        found, letters = asyncio.run(_read(database_url, namespace, module))
    if as_json:
        print(json.dumps({"modules": found, "dead_letters": letters}, indent=2))
    else:
        for one in found:
            _show(_console(), one)
        if letters:
            subject = "1 dead letter waits" if letters == 1 else f"{letters} dead letters wait"
            print(f"{subject}: kmmhub deadletters list")
    return 0 if all(one["ready"] for one in found) else 1


async def _read(database_url: str, namespace: str, module: str | None) -> tuple[list[dict[str, Any]], int]:
    """The modules, and how many messages no service could handle."""
    engine = connect(database_url, application="kmmhub-status", pool_size=1)
    try:
        async with PostgresStore(engine).begin() as transaction:
            catalog = Catalog()
            modules = {
                name: catalog.read(one) for name, one in (await gather.read_modules(transaction)).items()
            }
            if module is not None and module not in modules:
                raise NoSuchModule(
                    f"no ManagedClusterModule {module!r}; there are: {', '.join(sorted(modules)) or 'none'}"
                )
            letters = await transaction.count_dead_letters()
            names = sorted(modules) if module is None else [module]
            picture = await take_picture(
                transaction, modules, Scope(modules=frozenset(names)), namespace=namespace
            )
    finally:
        await engine.dispose()
    return [_describe(picture, modules[name]) for name in names], letters


def _describe(picture: Picture, read: ReadModule) -> dict[str, Any]:
    """One module as JSON: stable names, for scripts."""
    survey = survey_module(picture, read, _refusals(read.stored))
    conditions = _conditions(read.stored, survey)
    kernels = {place.cluster: place.kernels for place in survey.places}
    return {
        "name": read.module.name,
        "ready": any(one["type"] == "Ready" and one["status"] == "True" for one in conditions),
        "conditions": conditions,
        "clusters": [
            {
                "cluster": report.cluster,
                "phase": report.phase.value,
                "reason": report.reason,
                "message": report.message,
                "kernels": list(kernels[report.cluster]),
                "attention": [
                    {"kernel": one.kernel, "reason": one.reason, "message": one.message}
                    for one in report.attention
                ],
            }
            for report in report_clusters(survey)
        ],
        "kernels": [
            _kernel(picture, read.module.name, kernel, kernels) for kernel in sorted(survey.outcomes)
        ],
    }


def _refusals(module: StoredModule) -> dict[Pair, tuple[str, str]]:
    """What the API server answered to the dispatcher, as far as the module's status tells it."""
    told = [entry for entry in reversed(module.status.get("attention") or []) if entry["reason"] in REFUSALS]
    return {(module.name, entry["cluster"]): (entry["reason"], entry["message"]) for entry in told}


def _conditions(module: StoredModule, survey: Survey) -> list[dict[str, Any]]:
    """The conditions that the module bears; those that it will get, where none were written for its spec yet."""
    written: list[dict[str, Any]] = module.status.get("conditions") or []
    if written and module.status.get("observedGeneration") == module.generation:
        return written
    time = now().strftime("%Y-%m-%dT%H:%M:%SZ")
    expected: list[dict[str, Any]] = module_status(survey, previous=module.status, now=time)["conditions"]
    return expected


def _kernel(
    picture: Picture, module: str, kernel: Any, kernels: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    need, outcome = picture.needs[module, kernel], picture.outcomes[module, kernel]
    return {
        "kernel": kernel,
        "clusters": sum(kernel in runs for runs in kernels.values()),
        "image": need.request.target if isinstance(need, Wanted) else None,
        "shipped": outcome.image if isinstance(outcome, Shipment) else None,
        "artifact": need.request.key if isinstance(need, Wanted) else None,
        "reason": "Ready" if isinstance(outcome, Shipment) else outcome.reason,
        "message": "" if isinstance(outcome, Shipment) else outcome.message,
    }


def _console() -> Console:
    """A pipe has no width: its lines are not folded, so that they can be searched."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def _show(console: Console, module: Mapping[str, Any]) -> None:
    console.print(
        f"[bold]{module['name']}[/bold]  {'Ready' if module['ready'] else 'not Ready'}", highlight=False
    )
    _table(console, _shortened(module["conditions"]), ("type", "status", "reason", "message"))
    _table(console, module["kernels"], ("kernel", "clusters", "reason", "shipped", "message"))
    _table(console, _shortened(module["clusters"]), ("cluster", "phase", "reason", "message"))


def _shortened(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the first line of their messages: the end of a build's log stands once, at its kernel."""
    return [
        {**row, "message": first + (" …" if rest else "")}
        for row in rows
        for first, _, rest in [row["message"].partition("\n")]
    ]


def _table(console: Console, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    if not rows:
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for row in rows:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in columns))
    console.print(table)
    console.print()

"""`python -m chaos --seed n --faults 200`: chaos on real processes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import signal
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import structlog
import typer

from chaos.plan import Plan, make_plan
from chaos.run import CONVERGENCE_SECONDS, RESYNC_SECONDS, SILENT_RESYNCS, Report, Settings, run
from shared.domain.errors import HubError


def chaos(  # noqa: PLR0917 - each is an option
    seed: Annotated[int, typer.Option(help="Decides everything that happens.")] = 1,
    faults: Annotated[int, typer.Option(min=1, help="How many.")] = 200,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would happen, and end.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave hub, logs and journal.")] = False,
    directory: Annotated[
        Path | None, typer.Option(help="Where everything lies; a new one by default.")
    ] = None,
    resync: Annotated[
        float, typer.Option(min=1, help="Seconds between the dispatcher's comparisons of everything.")
    ] = RESYNC_SECONDS,
    bound: Annotated[
        float, typer.Option(min=1, help="Seconds after the last fault in which everything must converge.")
    ] = CONVERGENCE_SECONDS,
    output: Annotated[
        Literal["text", "json"], typer.Option("-o", help="How the report is printed.")
    ] = "text",
) -> None:
    """Break a real hub in every way that a seed says, and check that it keeps its promises."""
    # What the run's own clients meet while servers are away is no news.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    planned = make_plan(seed, faults)
    if plan:
        _print_plan(planned, output)
        return
    place = directory or Path(tempfile.mkdtemp(prefix="kmmhub-chaos-"))
    place.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        directory=place,
        resync_seconds=resync,
        silence_seconds=min(resync, RESYNC_SECONDS) * SILENT_RESYNCS,
        convergence_seconds=bound,
        keep=keep,
    )
    typer.echo(f"seed {seed}, {faults} faults; journal and logs in {place}", err=True)
    try:
        report = asyncio.run(_until_stopped(planned, settings))
    except HubError as error:
        typer.echo(f"the hub cannot be started: {error}", err=True)
        raise typer.Exit(2) from error
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise typer.Exit(130) from None
    typer.echo(json.dumps(dataclasses.asdict(report)) if output == "json" else _text(report))
    raise typer.Exit(1 if report.breaches else 0)


async def _until_stopped(plan: Plan, settings: Settings) -> Report:
    """The run; SIGTERM ends it as an interrupt does, so that nothing stays behind."""
    running = asyncio.ensure_future(run(plan, settings, lambda line: typer.echo(line, err=True)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    return await running


def _print_plan(plan: Plan, output: str) -> None:
    if output == "json":
        typer.echo(json.dumps(dataclasses.asdict(plan)))
        return
    for action in plan.first:
        typer.echo(f"first: {action}")
    at = 0.0
    for fault in plan.faults:
        where = f" ({fault.target})" if fault.target else ""
        typer.echo(f"{at:7.1f} s  {fault.number:3}. {fault.kind}{where} for {fault.seconds} s")
        for action in fault.actions:
            typer.echo(f"                {action}")
        at += fault.gap


def _text(report: Report) -> str:
    lines = [f"seed {report.seed}: {sum(report.faults.values())} faults in {report.seconds:.0f} s"]
    lines += [f"  {count:4} × {kind}" for kind, count in sorted(report.faults.items())]
    lines += [f"  {count:4} × {kind}: not possible on this machine" for kind, count in report.skipped.items()]
    lines.append("seen: " + ", ".join(f"{count} {name}" for name, count in report.counts.items()))
    if report.converged_seconds is not None:
        lines.append(f"converged {report.converged_seconds:.0f} s after the last fault")
    if report.retried:
        lines.append(f"tried again by the user: {', '.join(report.retried)}")
    if report.restarts:
        lines.append(f"ended by themselves: {report.restarts}")
    lines += [
        f"BREACH of {one.invariant} at {one.when:.0f} s, {one.where}: {one.what}" for one in report.breaches
    ]
    lines.append(
        "no breach"
        if not report.breaches
        else f"{len(report.breaches)} breaches; seed {report.seed} shows them"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(chaos)

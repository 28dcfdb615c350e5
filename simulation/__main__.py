"""`python -m simulation --seed 1 --seeds 1000`: simulate so many seeds on all cores, and say what was found."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace

import structlog

from simulation.bugs import BUGS, planted
from simulation.seed import Options, Report, run_seed
from simulation.world import Healers

HASH_SEED = "PYTHONHASHSEED"
"""Sets of strings iterate in another order in each process, unless this is set."""


@dataclass(slots=True)
class Figures:
    """What all seeds together come to."""

    seeds: int = 0
    virtual_seconds: float = 0.0
    steps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    failed: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Count a seed."""
        self.seeds += 1
        self.virtual_seconds += report.seconds
        self.steps += report.steps
        self.faults += report.faults
        self.slowest = max(self.slowest, report.converged_in or 0.0)
        if report.breaches:
            self.failed.append(report)


def main() -> int:
    """Returns the exit status: 0 if no seed failed."""
    arguments = _parser().parse_args()
    if os.environ.get(HASH_SEED) != "0":  # noqa: TID251 - a Python process reads it before any code of ours runs
        command = [sys.executable, "-m", "simulation", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {HASH_SEED: "0"})  # noqa: S606, TID251 - ourselves again
    healers = Healers(**dict.fromkeys(arguments.without, False))
    options = Options(steps=arguments.steps, gentle=arguments.gentle, healers=healers)
    figures, began = Figures(), time.monotonic()
    for report in _run(range(arguments.seed, arguments.seed + arguments.seeds), options, arguments):
        figures.add(report)
        _progress(figures, arguments.seeds, began)
        if figures.failed and arguments.stop:
            break
    seconds = time.monotonic() - began
    print(file=sys.stderr)
    if arguments.output == "json":
        print(json.dumps(_as_json(figures, seconds)))
    else:
        _tell(figures, seconds, journal=arguments.journal)
    return 1 if figures.failed else 0


def _run(seeds: range, options: Options, arguments: argparse.Namespace) -> Iterator[Report]:
    if arguments.jobs == 1:
        yield from (_one(seed, options, arguments.bug) for seed in seeds)
        return
    pool = ProcessPoolExecutor(arguments.jobs)
    try:
        waiting = {pool.submit(_one, seed, options, arguments.bug) for seed in seeds}
        for future in as_completed(waiting):
            waiting.discard(future)
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _one(seed: int, options: Options, bug: str | None) -> Report:
    # The journal tells what happened; services' logs are half of the time.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with planted(bug):
        return run_seed(seed, options)


def _progress(figures: Figures, of: int, began: float) -> None:
    if sys.stderr.isatty() or figures.seeds % 100 == 0 or figures.seeds == of:
        speed = figures.seeds / (time.monotonic() - began)
        line = f"{figures.seeds} of {of} seeds, {len(figures.failed)} failed, {speed:.1f} seeds a second"
        print(f"\r{line}" if sys.stderr.isatty() else line, end="", file=sys.stderr, flush=True)
        if not sys.stderr.isatty():
            print(file=sys.stderr)


def _tell(figures: Figures, seconds: float, *, journal: bool) -> None:
    for report in sorted(figures.failed, key=lambda one: one.seed)[:10]:
        print(f"seed {report.seed} failed:")
        for breach in report.breaches[:10]:
            print(f"  {breach}")
        lines = report.journal if journal else report.journal[-25:]
        print("\n".join(f"    {line}" for line in lines))
        print(f"  again: make sim SEED={report.seed} SEEDS=1")
    faults = ", ".join(f"{count} {name}" for name, count in sorted(figures.faults.items()))
    print(
        f"{figures.seeds} seeds, {len(figures.failed)} failed; {figures.virtual_seconds / 3600:.1f} simulated hours, "
        f"{figures.steps} steps, in {seconds:.1f} s: {figures.steps / seconds:.0f} steps a second\n"
        f"faults: {faults}\nthe slowest seed converged {figures.slowest:.0f} s after its last fault"
    )


def _as_json(figures: Figures, seconds: float) -> dict[str, object]:
    return {
        "seeds": figures.seeds,
        "simulatedHours": figures.virtual_seconds / 3600,
        "steps": figures.steps,
        "seconds": seconds,
        "stepsPerSecond": figures.steps / seconds,
        "faults": dict(figures.faults),
        "slowestConvergence": figures.slowest,
        "failed": [
            asdict(replace(report, faults=Counter())) | {"faults": dict(report.faults)}
            for report in figures.failed
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--steps", type=int, default=Options().steps, help="acts and faults of each seed")
    parser.add_argument("--gentle", action="store_true", help="no fault kills or loses anything")
    parser.add_argument(
        "--without", action="append", default=[], choices=list(asdict(Healers())), help="leave a healer out"
    )
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant a bug that must be found")
    parser.add_argument("--stop", action="store_true", help="stop at the first seed that fails")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--journal", action="store_true", help="print whole journals of failed seeds")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    return parser


if __name__ == "__main__":
    sys.exit(main())

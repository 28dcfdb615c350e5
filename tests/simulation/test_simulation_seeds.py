"""Thousands of seeds, with and without what heals; and each planted bug is found."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simulation.bugs import BUGS

ROOT = Path(__file__).parents[2]
NO_HEALERS = ["--gentle", "--without", "sweeps", "--without", "polls", "--without", "resyncs"]

pytestmark = pytest.mark.timeout(3000)


def simulate(*arguments: str) -> dict[str, Any]:
    """The figures of a run, with its failed seeds."""
    ended = subprocess.run(
        [sys.executable, "-m", "simulation", "-o", "json", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2900,
        check=False,
    )
    assert ended.returncode in {0, 1}, ended.stderr[-3000:]
    figures: dict[str, Any] = json.loads(ended.stdout)
    assert (ended.returncode == 1) == bool(figures["failed"])
    return figures


def failures(figures: dict[str, Any]) -> list[str]:
    """Seeds with their first breach, for people."""
    return [f"seed {one['seed']}: {one['breaches'][0]}" for one in figures["failed"]]


@pytest.mark.parametrize(
    ("seeds", "without"),
    [
        (1500, []),
        (200, ["--without", "sweeps"]),
        (200, ["--without", "polls"]),
        (300, NO_HEALERS),
    ],
    ids=["everything", "without-sweeper", "without-polls", "gentle-without-healers"],
)
def test_nothing_is_lost_and_nothing_done_twice(seeds: int, without: list[str]) -> None:
    figures = simulate("--seed", "1", "--seeds", str(seeds), *without)

    assert failures(figures) == []
    assert figures["seeds"] == seeds
    assert figures["simulatedHours"] > seeds / 10
    assert sum(figures["faults"].values()) > 5 * seeds


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    without = NO_HEALERS if BUGS[bug].gentle else []
    for healer in BUGS[bug].without:
        without = [*without, "--without", healer]
    figures = simulate("--seed", "1", "--seeds", "300", "--bug", bug, "--stop", *without)

    assert figures["failed"], f"{BUGS[bug].what}: not found in {figures['seeds']} seeds"


def test_a_seed_repeats_a_failure_exactly() -> None:
    arguments = ("--seed", "1", "--seeds", "12", "--bug", "dispatch-unsigned")
    first, again = (sorted(simulate(*arguments)["failed"], key=lambda one: one["seed"]) for _ in range(2))

    assert first
    for one in (*first, *again):
        del one["wall_seconds"]
    assert first == again

"""A short run of chaos: the command itself, on real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localhub import processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

FAULTS = 12


def chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chaos", *arguments],
        cwd=Path(__file__).parents[2],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def test_a_short_run_keeps_every_promise_and_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = tmp_path / "chaos"
    ended = chaos(
        "--seed", "5", "--faults", str(FAULTS), "--resync", "2", "--directory", str(directory), "-o", "json"
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-3000:]
    report = json.loads(ended.stdout)
    assert report["seed"] == 5
    assert report["breaches"] == []
    assert report["converged_seconds"] is not None
    assert sum(report["faults"].values()) + sum(report["skipped"].values()) == FAULTS
    # What it judged was there to be judged.
    for name in ("works", "images", "build stages", "announcements judged", "changes of artifacts"):
        assert report["counts"][name] > 0, report["counts"]

    journal = [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]
    assert [line["number"] for line in journal if line["event"] == "fault"] == list(range(1, FAULTS + 1))
    assert (
        len([line for line in journal if line["event"] == "user"]) == report["counts"]["things the user did"]
    )

    assert processes.running(directory / "hub") == {}
    ours = f"{directory}/".encode()
    left = [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and ours in _environment(entry) and int(entry.name) != os.getpid()
    ]
    assert left == []
    assert str(directory) not in Path("/proc/mounts").read_text()


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def test_the_plan_is_printed_and_is_the_same_each_time() -> None:
    first, again, other = (chaos("--seed", seed, "--faults", "30", "--plan", "-o", "json") for seed in "889")
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    assert first.stdout != other.stdout
    assert len(json.loads(first.stdout)["faults"]) == 30

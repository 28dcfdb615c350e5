"""Places where a service may die: read from the environment, listed in full, each in one line of the services."""

import ast
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.runtime import fail_point as module
from shared.runtime.fail_point import FailPoint, FailPointInvalid, FailPointSettings, read_trigger

ROOT = Path(__file__).parents[3]
HERE = Path(module.__file__).relative_to(ROOT)

DIES = """
import sys
from shared.runtime.fail_point import FailPoint, FailPointSettings, arm_fail_point, fail_point
arm_fail_point(FailPointSettings())
for turn in range(3):
    fail_point(FailPoint.TAG_MOVED)
    print(turn, flush=True)
    fail_point(FailPoint.WORK_STORED)
"""


def settings(trigger: str, file: Path | None = None) -> FailPointSettings:
    return FailPointSettings.model_validate({"KMMHUB_FAIL_POINT": trigger, "KMMHUB_FAIL_POINT_FILE": file})


def run(trigger: str, file: Path) -> subprocess.Popen[str]:
    environment = {"PATH": os.defpath, "KMMHUB_FAIL_POINT": trigger, "KMMHUB_FAIL_POINT_FILE": str(file)}
    return subprocess.Popen(
        [sys.executable, "-c", DIES], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == "fail_point":
                yield node


def used() -> Iterator[str]:
    """The name of each call in the services; the source text where it is not one of the list."""
    for folder in ("services", "shared"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for call in calls(ast.parse(path.read_text())):
                (argument,) = call.args
                is_listed = isinstance(argument, ast.Attribute) and ast.unparse(argument.value) == "FailPoint"
                yield argument.attr if is_listed else f"{path}: {ast.unparse(call)}"


def test_every_place_stands_in_one_line_and_no_line_names_another() -> None:
    assert Counter(used()) == Counter(point.name for point in FailPoint)


def test_without_the_variable_nothing_happens(tmp_path: Path) -> None:
    assert read_trigger(settings("")) is None
    assert run("", tmp_path / "hit").communicate(timeout=30)[0].split() == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("trigger", "passed"), [("tag_moved=kill", 0), ("work_stored=kill", 1), ("work_stored=kill@3", 3)]
)
def test_it_dies_the_nth_time_and_never_again(tmp_path: Path, trigger: str, passed: int) -> None:
    file = tmp_path / "hit"
    first, again = run(trigger, file), None
    assert len(first.communicate(timeout=30)[0].split()) == passed
    assert first.returncode == -signal.SIGKILL
    assert file.read_text() == trigger.partition("=")[0]
    again = run(trigger, file)
    assert len(again.communicate(timeout=30)[0].split()) == 3
    assert again.returncode == 0


def test_it_freezes_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "hit"
    frozen = run("tag_moved=stop@2", file)
    _, status = os.waitpid(frozen.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert file.read_text() == "tag_moved"
    frozen.send_signal(signal.SIGCONT)
    assert len(frozen.communicate(timeout=30)[0].split()) == 3
    assert frozen.returncode == 0


@pytest.mark.parametrize("trigger", ["tag_move=kill", "=kill", "TAG_MOVED=kill", "x"])
def test_an_unknown_place_is_refused_with_the_list(trigger: str, tmp_path: Path) -> None:
    with pytest.raises(FailPointInvalid) as refused:
        read_trigger(settings(trigger, tmp_path / "hit"))
    assert all(point in str(refused.value) for point in FailPoint)


@pytest.mark.parametrize("what", ["", "=", "=term", "=kill@0", "=kill@", "=stop@-1", "=kill@x", "=kill@²"])
def test_what_cannot_happen_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(FailPointInvalid):
        read_trigger(settings(f"tag_moved{what}", tmp_path / "hit"))


def test_a_place_needs_its_file() -> None:
    with pytest.raises(FailPointInvalid, match="KMMHUB_FAIL_POINT_FILE"):
        read_trigger(settings("tag_moved=kill"))

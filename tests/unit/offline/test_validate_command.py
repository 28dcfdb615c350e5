"""`kmmhub validate`: statuses, JSON, warnings, several modules, changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import Json, cluster, module, run, spec_of

MAPPING = {"regexp": "^5", "containerImage": "i:t"}
REFUSED = module(spec_of({**MAPPING, "regexp": "("}), name="bad")
PATH = "spec.moduleSpec.moduleLoader.container.kernelMappings[0].regexp"


def test_an_allowed_module() -> None:
    assert run("validate", "-f", "-", documents=[module()]).out == "m: allowed\n"
    ended = run("validate", "-f", "-", "-o", "json", documents=[module()])
    assert (ended.status, json.loads(ended.out), ended.err) == (0, {"allowed": True, "errors": []}, "")


def test_a_refused_module_says_what_to_write() -> None:
    ended = run("validate", "-f", "-", documents=[REFUSED])
    first, second = ended.out.splitlines()
    assert (ended.status, first) == (1, "bad: not allowed")
    assert second.startswith(f"  {PATH}: '(' is not valid RE2: ")
    assert "write a pattern" in second


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_errors_for_programs(form: str) -> None:
    ended = run("validate", "-f", "-", "-o", form, documents=[REFUSED])
    (error,) = yaml.safe_load(ended.out)["errors"]
    assert set(error) == {"path", "reason", "message"}
    assert (error["path"], error["reason"]) == (PATH, "FieldValueInvalid")


def test_several_modules_are_all_judged_and_named() -> None:
    documents = [module(), cluster("c1"), REFUSED, module({"selector": {}}, name="third")]
    ended = run("validate", "-f", "-", "-o", "json", documents=documents)
    answer = json.loads(ended.out)
    assert (ended.status, answer["allowed"]) == (1, False)
    assert [(error["module"], error["path"]) for error in answer["errors"]] == [
        ("bad", PATH),
        ("third", "spec.spokeNamespace"),
    ]
    assert ended.err == "standard input, document 2: skipped, it is a ManagedCluster\n"


def test_what_will_not_work_is_warned_of_beside_the_answer() -> None:
    spec = spec_of({**MAPPING, "containerImage": "Some:t", "contanerImage": "i:t"})
    ended = run("validate", "-f", "-", "-o", "json", documents=[module(spec)])
    assert (ended.status, json.loads(ended.out)["allowed"]) == (0, True)
    unknown, image = ended.err.splitlines()
    assert unknown.startswith(
        "m: warning: spec.moduleSpec.moduleLoader.container.kernelMappings[0].contanerImage: "
    )
    assert image.startswith(
        "m: warning: spec.moduleSpec.moduleLoader.container.kernelMappings[0].containerImage: "
    )


def test_a_change_is_judged_with_the_module(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump_all([cluster("c"), module(), module(name="other")]))
    ended = run("validate", "-f", "-", "--old", str(old), documents=[module(spec_of(MAPPING, version="v2"))])
    assert ended.status == 1
    assert "container.version: " in ended.out
    assert run("validate", "-f", "-", "--old", str(old), documents=[module()]).status == 0


def test_a_module_that_was_wrong_before_is_still_wrong(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump(REFUSED))
    ended = run("validate", "-f", "-", "--old", str(old), "-o", "json", documents=[REFUSED])
    assert (ended.status, len(json.loads(ended.out)["errors"])) == (1, 1)


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [
        ([], "standard input: has no ManagedClusterModule"),
        ([cluster("c")], "standard input: has no ManagedClusterModule"),
        ([module(), module()], "standard input, document 2: module 'm' was in standard input, document 1"),
        ([{"spec": {}}], "standard input, document 1: kind is missing"),
    ],
)
def test_input_that_cannot_be_used(documents: list[Json], complaint: str) -> None:
    ended = run("validate", "-f", "-", documents=documents)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"kmmhub validate: {complaint}")


def test_an_old_file_that_cannot_be_used() -> None:
    ended = run("validate", "-f", "-", "--old", "-", documents=[module()])
    assert ended.status == 2
    assert "both standard input" in ended.err


def test_a_module_of_another_name_is_no_change_of_the_old_one(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump(module(name="another")))
    ended = run("validate", "-f", "-", "--old", str(old), documents=[module()])
    assert ended.status == 1
    assert "m: not allowed" in ended.out
    assert "metadata.name: the two files name different modules: --old has another;" in ended.out


def test_text_from_files_does_not_steer_the_terminal() -> None:
    ended = run(
        "validate", "-f", "-", documents=[module(spec_of({**MAPPING, "literal": "\x1b[2J"}), name="a\x1b\nb")]
    )
    assert ended.status == 1
    assert "\x1b" not in ended.out + ended.err
    assert "a\\x1b\\nb: not allowed" in ended.out


@pytest.mark.parametrize(("document", "status"), [(module(), 0), (REFUSED, 1), ({"kind": "X"}, 2)])
def test_the_program_ends_with_these_statuses(tmp_path: Path, document: Json, status: int) -> None:
    file = tmp_path / "module.yaml"
    file.write_text(yaml.safe_dump(document))
    ended = subprocess.run(
        [sys.executable, "-m", "kmmhub.main", "validate", "-f", str(file)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == status

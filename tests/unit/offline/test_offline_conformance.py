"""The shared conformance cases of KMM's hub, through the offline commands.

The case file lies beside the checkout; without it these tests are skipped, and the tables in the other files here
cover the same rules.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Json, cluster, module, run

CASES = Path(__file__).parents[4] / "shared" / "conformance" / "cases.yaml"


def validated(given: Json, folder: Path) -> Json:
    arguments = ["validate", "-f", "-", "-o", "json"]
    if "old" in given:
        old = folder / "old.yaml"
        old.write_text(yaml.safe_dump(module() | given["old"]), encoding="utf-8")
        arguments += ["--old", str(old)]
    ended = run(*arguments, documents=[module() | given["managedClusterModule"]])
    answer: Json = json.loads(ended.out)
    assert ended.status == (0 if answer["allowed"] else 1)
    assert answer["allowed"] is not bool(answer["errors"])
    return answer


def resolved(given: Json, _folder: Path) -> Json:
    spec = {"spokeNamespace": given["namespace"], "selector": {}, "moduleSpec": given["moduleSpec"]}
    document = module(spec, name=given["name"])
    ended = run("explain", "-f", "-", f"--kernel={given['kernel']}", "-o", "json", documents=[document])
    answer: Json = json.loads(ended.out)
    assert ended.status == (0 if answer["error"] is None else 1)
    return {**answer, "image": answer["containerImage"]}


def rendered(given: Json, _folder: Path) -> Json:
    mcm = module() | given["managedClusterModule"]
    labels = mcm["spec"]["selector"]
    documents = [mcm, cluster(given["cluster"], *given["kernels"], labels=labels)]
    ended = run("render", "-f", "-", documents=documents)
    assert ended.status == 0
    (work,) = yaml.safe_load_all(ended.out)
    (shipped,) = work["spec"]["workload"]["manifests"]
    (config,) = work["spec"]["manifestConfigs"]
    container = shipped["spec"]["moduleLoader"]["container"]
    return {
        "name": work["metadata"]["name"],
        "namespace": work["metadata"]["namespace"],
        "labels": work["metadata"]["labels"],
        "ownerKinds": [owner["kind"] for owner in work["metadata"]["ownerReferences"]],
        "module": {
            "apiVersion": shipped["apiVersion"],
            "kind": shipped["kind"],
            **{key: shipped["metadata"][key] for key in ("name", "namespace")},
        },
        "kernelMappings": container["kernelMappings"],
        "containerImage": container.get("containerImage"),
        "containerHasBuild": "build" in container,
        "containerHasSign": "sign" in container,
        "resourceIdentifier": config["resourceIdentifier"],
        "feedbackPaths": [
            f"{path['name']}={path['path']}" for rule in config["feedbackRules"] for path in rule["jsonPaths"]
        ],
        "updateStrategy": config.get("updateStrategy"),
        "deleteOption": work["spec"].get("deleteOption"),
    }


def pinned(given: Json, folder: Path) -> Json:
    """What the registry would answer is told by --digests; without an answer there is nothing to pin to."""
    mapping = {"regexp": "^5", "containerImage": given["image"]}
    spec = module()["spec"]
    spec["moduleSpec"]["moduleLoader"]["container"]["kernelMappings"] = [mapping]
    arguments = ["render", "-f", "-"]
    if not given.get("registryError"):
        known = folder / "digests.yaml"
        reference = given["image"] if ":" in given["image"] else f"{given['image']}:latest"
        known.write_text(yaml.safe_dump({reference: given["registryDigest"]}), encoding="utf-8")
        arguments += ["--digests", str(known)]
    ended = run(*arguments, documents=[module(spec), cluster("c1", "5.1.1")])
    (work,) = yaml.safe_load_all(ended.out)
    (shipped,) = work["spec"]["workload"]["manifests"]
    return {"image": shipped["spec"]["moduleLoader"]["container"]["kernelMappings"][0]["containerImage"]}


COMMANDS = {
    "validate": validated,
    "validate-update": validated,
    "crd-schema": validated,
    "resolve": resolved,
    "manifestwork": rendered,
    "tag-to-digest": pinned,
}
NOT_PRINTED = {"tolerationKeys", "lookedUp", "registryCalls"}
"""What the commands do not show; the tests of the domain cover it."""


def cases() -> list[Any]:
    if not CASES.is_file():
        skip = pytest.mark.skip(reason="the conformance cases are not beside this checkout")
        return [pytest.param({}, marks=skip, id="cases")]
    stored = yaml.safe_load(CASES.read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["id"]) for case in stored if case["kind"] in COMMANDS]


@pytest.mark.parametrize("case", cases())
def test_case(case: Json, tmp_path: Path) -> None:
    answer = COMMANDS[case["kind"]](case["input"], tmp_path)
    expected = {name: value for name, value in case["expect"].items() if name not in NOT_PRINTED}
    assert {name: answer.get(name) for name in expected} == expected

"""`kmmhub explain`: which mapping, why not the others, and what follows."""

import json
from typing import Any

import pytest
import yaml
from command_line import Ended, Json, cluster, module, run, spec_of

MAPPINGS = "spec.moduleSpec.moduleLoader.container.kernelMappings"
KEYS = [
    "kernelVersion",
    "matched",
    "containerImage",
    "build",
    "sign",
    "registryTLS",
    "inTreeModulesToRemove",
    "error",
    "message",
]


def explained(kernel: str, *mappings: Json, **container: Any) -> Json:
    ended = explain(kernel, "-o", "json", documents=[module(spec_of(*mappings, **container))])
    answer: Json = json.loads(ended.out)
    assert list(answer) == KEYS
    assert ended.status == (0 if answer["error"] is None else 1)
    return answer


def explain(kernel: str, *arguments: str, documents: list[Json]) -> Ended:
    return run("explain", "-f", "-", "--kernel", kernel, *arguments, documents=documents)


def image(number: int, **match: str) -> Json:
    return {**match, "containerImage": f"r.example/k:{number}"}


def test_the_first_mapping_wins_and_the_earlier_ones_say_why_not() -> None:
    mappings = [
        image(0, literal="5.2.2"),
        image(1, regexp="^6"),
        image(2, regexp="^5"),
        image(3, literal="5.1.1"),
    ]
    answer = explained("5.1.1", *mappings)
    assert (answer["matched"], answer["containerImage"]) == (2, "r.example/k:2")
    assert answer["message"] == (
        "kernelMappings[2]: regexp '^5' is found in it; not kernelMappings[0]: literal '5.2.2' is another kernel; "
        "not kernelMappings[1]: regexp '^6' is not found in it"
    )


def test_words_for_people() -> None:
    spec = spec_of(image(0, regexp="^6"), image(1, literal="5.1.1"), inTreeModulesToRemove=["old"])
    ended = explain("5.1.1", documents=[module(spec)])
    assert ended.out == (
        "module m, kernel 5.1.1\n"
        "  kernelMappings[0] no: regexp '^6' is not found in it\n"
        "  kernelMappings[1] yes\n"
        '    containerImage: "r.example/k:1"\n'
        "    build: null\n"
        "    sign: null\n"
        "    registryTLS: {}\n"
        '    inTreeModulesToRemove: ["old"]\n'
    )


def test_everything_that_a_kernel_inherits() -> None:
    build = {
        "dockerfileConfigMap": {"name": "outer"},
        "buildArgs": [{"name": "A", "value": "1"}],
        "kanikoParams": {"tag": "v1"},
        "selector": {"b": "node"},
        "secrets": [{"name": "s1"}],
        "baseImageRegistryTLS": {"insecure": True},
    }
    sign = {"keySecret": {"name": "k"}, "certSecret": {"name": "c"}, "filesToSign": ["/opt/${KERNEL_X}.ko"]}
    mapping = {
        "regexp": "^5",
        "containerImage": "r.example/${MOD_NAME}/${MOD_NAMESPACE}:${KERNEL_FULL_VERSION}",
        "build": {"dockerfileConfigMap": {"name": "inner"}, "selector": {"ignored": "yes"}},
        "sign": {**sign, "unsignedImage": "u:${KERNEL_XYZ}", "filesToSign": ["/opt/b.ko"]},
        "registryTLS": {"insecureSkipTLSVerify": True, "insecure": False},
        "inTreeModuleToRemove": "old",
    }
    assert explained("5.1.1-a+b", mapping, build=build, sign=sign) == {
        "kernelVersion": "5.1.1-a+b",
        "matched": 0,
        "containerImage": "r.example/m/s:5.1.1-a_b",
        "build": {**build, "dockerfileConfigMap": {"name": "inner"}},
        "sign": {
            "unsignedImage": "u:5.1.1",
            "unsignedImageRegistryTLS": {},
            "keySecret": {"name": "k"},
            "certSecret": {"name": "c"},
            "filesToSign": ["/opt/5.ko", "/opt/b.ko"],
        },
        "registryTLS": {"insecureSkipTLSVerify": True},
        "inTreeModulesToRemove": ["old"],
        "error": None,
        "message": "kernelMappings[0]: regexp '^5' is found in it",
    }


def test_one_plus_is_cut_as_from_a_claim() -> None:
    mappings = [image(0, literal="5.1.1+"), image(1, literal="5.1.1")]
    assert [explained(kernel, *mappings)["matched"] for kernel in ("5.1.1", "5.1.1+", "5.1.1++")] == [1, 1, 0]
    assert explained("5.1.1+", *mappings)["kernelVersion"] == "5.1.1"


@pytest.mark.parametrize(
    ("kernel", "mapping", "error", "matched", "message"),
    [
        (
            "6.1.1",
            image(0, regexp="^5"),
            "no-match",
            None,
            f"{MAPPINGS}: none of 1 entries takes",
        ),
        (
            "5.1.1",
            image(0, regexp="("),
            "invalid",
            None,
            f"{MAPPINGS}[0].regexp: '(' is not valid RE2",
        ),
        (
            "5.1.1",
            {"regexp": "5", "containerImage": ""},
            "invalid",
            0,
            f"{MAPPINGS}[0].containerImage",
        ),
        (
            "5.1.1",
            {"regexp": "5", "containerImage": "${"},
            "invalid",
            0,
            f"{MAPPINGS}[0].containerImage",
        ),
        ("5", image(0, regexp="5"), "invalid", 0, f"{MAPPINGS}[0]: takes a malformed kernel"),
    ],
)
def test_why_there_is_nothing(
    kernel: str, mapping: Json, error: str, matched: int | None, message: str
) -> None:
    answer = explained(kernel, mapping)
    assert (answer["error"], answer["matched"]) == (error, matched)
    assert answer["message"].startswith(message)
    assert {answer[key] for key in KEYS[2:7]} == {None}


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (
            {"spokeNamespace": "s", "selector": {}, "moduleSpec": {"selector": {}}},
            "no-match",
            "no moduleLoader",
        ),
        ({"selector": {}}, "invalid", "spec.spokeNamespace: missing"),
        ([], "invalid", "spec.spokeNamespace: missing"),
    ],
)
def test_modules_without_mappings(spec: Any, error: str, message: str) -> None:
    ended = explain("5.1.1", "-o", "yaml", documents=[module() | {"spec": spec}])
    answer = yaml.safe_load(ended.out)
    assert (ended.status, answer["error"]) == (1, error)
    assert message in answer["message"]


def test_what_will_go_wrong_later_is_noted() -> None:
    spec = spec_of({"regexp": "5", "containerImage": "Some Image:t"})
    ended = explain(" 5.1.1", documents=[module(spec)])
    kernel, reference = ended.err.splitlines()
    assert ended.status == 0
    assert kernel.startswith("note: in a cluster's claim this entry would be left out: kernel ' 5.1.1'")
    assert reference.startswith("note: image 'Some Image:t'")


def test_a_module_that_is_not_allowed_is_still_explained() -> None:
    ended = explain("5.1.1", documents=[module(spec_of({"regexp": "5", "containerImage": "untagged"}))])
    assert (ended.status, ended.err) == (0, "note: m is not allowed as it is; see kmmhub validate\n")


def test_one_of_several_modules_is_chosen_by_name() -> None:
    documents = [cluster("c"), module(name="one"), module(name="two")]
    ended = explain("5.1.1", documents=documents)
    assert (ended.status, ended.out) == (2, "")
    assert "these modules: one, two; choose one with --module" in ended.err
    assert explain("5.1.1", "--module", "two", documents=documents).out.startswith("module two, ")
    assert "none is called 'three'" in explain("5.1.1", "--module", "three", documents=documents).err

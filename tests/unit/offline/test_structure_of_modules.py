"""What the API server says about an object's structure, said without one."""

import copy
from typing import Any

import pytest
import yaml
from command_line import Json, module, spec_of
from hypothesis import given
from hypothesis import strategies as st

from kmmhub.crds import CRD_DIRECTORY
from kmmhub.offline.structure import check_structure
from shared.api.managed_cluster_module import ManagedClusterModule

CONTAINER = "spec.moduleSpec.moduleLoader.container"
MAPPING = {"regexp": "r", "containerImage": "i:t"}
PLUGIN = {"container": {"image": "i:t"}}


def with_plugin(**fields: Any) -> Json:
    return {
        "spokeNamespace": "s",
        "selector": {},
        "moduleSpec": {"selector": {}, "devicePlugin": PLUGIN | fields},
    }


def with_sign(**fields: Any) -> Json:
    sign = {"keySecret": {"name": "k"}, "certSecret": {"name": "c"}, **fields}
    return spec_of({**MAPPING, "sign": sign})


WRONG: list[tuple[str, Json, str, str]] = [
    ("no-selector", {"spokeNamespace": "s"}, "spec.selector", "Required"),
    ("no-namespace", {"selector": {}}, "spec.spokeNamespace", "Required"),
    ("selector-number", {"spokeNamespace": "s", "selector": {"a": 1}}, "spec.selector.a", "TypeInvalid"),
    (
        "no-node-selector",
        {"spokeNamespace": "s", "selector": {}, "moduleSpec": {}},
        "spec.moduleSpec.selector",
        "Required",
    ),
    ("no-image-key", spec_of({"regexp": "r"}), f"{CONTAINER}.kernelMappings[0].containerImage", "Required"),
    ("no-mappings", spec_of(kernelMappings=[]), f"{CONTAINER}.kernelMappings", "Required"),
    ("mapping-text", spec_of(kernelMappings=["r"]), f"{CONTAINER}.kernelMappings[0]", "TypeInvalid"),
    ("no-modprobe", spec_of(modprobe=None), f"{CONTAINER}.modprobe", "Required"),
    (
        "regexp-number",
        spec_of({**MAPPING, "regexp": 5.1}),
        f"{CONTAINER}.kernelMappings[0].regexp",
        "TypeInvalid",
    ),
    (
        "tls-text",
        spec_of(MAPPING, registryTLS={"insecure": "true"}),
        f"{CONTAINER}.registryTLS.insecure",
        "TypeInvalid",
    ),
    (
        "no-raw-load",
        spec_of(MAPPING, modprobe={"rawArgs": {"load": []}}),
        f"{CONTAINER}.modprobe.rawArgs.load",
        "Required",
    ),
    (
        "null-secret",
        with_sign(keySecret=None),
        f"{CONTAINER}.kernelMappings[0].sign.keySecret",
        "Required",
    ),
    (
        "null-in-list",
        with_sign(filesToSign=[None]),
        f"{CONTAINER}.kernelMappings[0].sign.filesToSign[0]",
        "TypeInvalid",
    ),
    (
        "volume-no-name",
        with_plugin(volumes=[{"hostPath": {"path": "/dev"}}]),
        "spec.moduleSpec.devicePlugin.volumes[0].name",
        "Required",
    ),
    (
        "quantity",
        with_plugin(container={"image": "i", "resources": {"limits": {"cpu": "a lot"}}}),
        "spec.moduleSpec.devicePlugin.container.resources.limits.cpu",
        "Invalid",
    ),
    (
        "quantity-list",
        with_plugin(container={"image": "i", "resources": {"limits": {"cpu": [1]}}}),
        "spec.moduleSpec.devicePlugin.container.resources.limits.cpu",
        "TypeInvalid",
    ),
    (
        "claim-twice",
        with_plugin(container={"image": "i", "resources": {"claims": [{"name": "a"}, {"name": "a"}]}}),
        "spec.moduleSpec.devicePlugin.container.resources.claims[1]",
        "Duplicate",
    ),
    (
        "int32",
        with_plugin(volumes=[{"name": "v", "secret": {"defaultMode": 2**31}}]),
        "spec.moduleSpec.devicePlugin.volumes[0].secret.defaultMode",
        "Invalid",
    ),
]


@pytest.mark.parametrize(("spec", "path", "reason"), [pytest.param(*one[1:], id=one[0]) for one in WRONG])
def test_the_one_field_that_is_wrong_is_named(spec: Json, path: str, reason: str) -> None:
    (violation,) = check_structure(module(spec)).violations
    assert (violation.path, violation.reason) == (path, f"FieldValue{reason}")
    assert "write" in violation.message


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"apiVersion": "hub.kmm.sigs.x-k8s.io/v1"}, "apiVersion"),
        ({"apiVersion": None}, "apiVersion"),
        ({"metadata": {}}, "metadata.name"),
        ({"metadata": {"name": "Not_Valid"}}, "metadata.name"),
        ({"metadata": {"name": 5}}, "metadata.name"),
        ({"metadata": None}, "metadata.name"),
        ({"spec": []}, "spec"),
    ],
)
def test_what_every_object_needs(changes: Json, path: str) -> None:
    (violation,) = check_structure(module() | changes).violations
    assert violation.path == path


def test_a_missing_field_is_described_in_the_words_of_the_crd() -> None:
    (violation,) = check_structure(module(with_sign(certSecret=None))).violations
    assert (
        violation.message
        == "missing; write an object: Secret that holds the certificate under the key `cert`"
    )


def test_content_is_what_the_server_would_keep() -> None:
    given_module = module(
        spec_of(
            {**MAPPING, "literal": None, "typo": 1},
            modprobe={"moduleName": "kmod", "dirName": None},
            imagePullPolicy=None,
        ),
        generateName=None,
    )
    before = copy.deepcopy(given_module)
    structure = check_structure(given_module)
    assert structure.violations == ()
    assert structure.unknown == (f"{CONTAINER}.kernelMappings[0].typo",)
    container = structure.content["spec"]["moduleSpec"]["moduleLoader"]["container"]
    assert container == {"modprobe": {"moduleName": "kmod", "dirName": "/opt"}, "kernelMappings": [MAPPING]}
    assert given_module == before


def test_keywords_that_this_walk_does_not_know_would_be_noticed() -> None:
    """Whatever else a CRD can say must be thought about before it is used there."""
    known = {
        "description", "type", "required", "properties", "items", "additionalProperties", "default", "pattern",
        "enum", "format", "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum", "anyOf",
        "maxProperties",
        "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-validations",
    }  # fmt: skip
    file = CRD_DIRECTORY / "hub.kmm.sigs.x-k8s.io_managedclustermodules.yaml"
    crd = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert keywords(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]) <= known


def keywords(schema: Json) -> set[str]:
    children = [
        *schema.get("properties", {}).values(),
        schema.get("items"),
        schema.get("additionalProperties"),
    ]
    return set(schema).union(*(keywords(child) for child in children if isinstance(child, dict)))


LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a", "r"])
BROKEN = st.fixed_dictionaries(
    {},
    optional={
        "regexp": LEAVES,
        "literal": LEAVES,
        "containerImage": LEAVES,
        "inTreeModulesToRemove": LEAVES | st.lists(LEAVES, max_size=2),
        "registryTLS": LEAVES | st.fixed_dictionaries({}, optional={"insecure": LEAVES}),
        "sign": LEAVES
        | st.fixed_dictionaries(
            {},
            optional={
                "keySecret": LEAVES | st.fixed_dictionaries({}, optional={"name": LEAVES}),
                "certSecret": st.fixed_dictionaries({"name": LEAVES}),
            },
        ),
        "build": st.fixed_dictionaries(
            {"dockerfileConfigMap": st.just({"name": "d"})},
            optional={
                "buildArgs": st.lists(st.fixed_dictionaries({"name": LEAVES, "value": LEAVES}), max_size=1)
            },
        ),
    },
)


@given(st.lists(BROKEN, max_size=2))
def test_model_and_crd_agree_about_what_is_wrong(mappings: list[Json]) -> None:
    document = module(spec_of(kernelMappings=mappings))
    try:
        ManagedClusterModule.from_manifest(document)
        fits = True
    except ValueError:
        fits = False
    assert fits is not bool(check_structure(document).violations)

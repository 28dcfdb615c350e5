"""Parsing a module's spec: every field that the hub reads, Go's nulls, and messages that say where and what."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.artifact import Access
from shared.domain.module import (
    Build,
    InvalidModule,
    KernelMapping,
    ModuleLoader,
    ModuleSpec,
    Sign,
    parse_module,
    worker_tolerations,
)

CONTAINER = "spec.moduleSpec.moduleLoader.container"


def spec(container: Any = None, **module: Any) -> dict[str, Any]:
    loader = {} if container is None else {"moduleLoader": {"container": container}}
    return {
        "spokeNamespace": "spoke",
        "selector": {"a": "b"},
        "moduleSpec": {"selector": {}, **loader, **module},
    }


def loader_of(container: dict[str, Any]) -> ModuleLoader:
    loader = parse_module(spec(container)).loader
    assert loader is not None
    return loader


def test_everything_set() -> None:
    raw = spec(
        {
            "containerImage": "r.example/k:${KERNEL_XYZ}",
            "modprobe": {"moduleName": "kmod", "dirName": "/modules"},
            "registryTLS": {"insecure": True},
            "inTreeModulesToRemove": ["x"],
            "build": {
                "dockerfileConfigMap": {"name": "df"},
                "buildArgs": [{"name": "z", "value": "1"}, {"name": "a", "value": ""}],
                "secrets": [{"name": "s1"}, {"name": "s2"}],
                "baseImageRegistryTLS": {"insecureSkipTLSVerify": True},
                "kanikoParams": {"tag": "debug"},
                "selector": {"n": "1"},
            },
            "kernelMappings": [
                {"literal": "1.2.3", "containerImage": "", "inTreeModuleToRemove": "y"},
                {
                    "regexp": "^5",
                    "containerImage": "r.example/five:1",
                    "registryTLS": {},
                    "inTreeModulesToRemove": [],
                    "sign": {
                        "keySecret": {"name": "k"},
                        "certSecret": {"name": "c"},
                        "unsignedImage": "r.example/u:1",
                        "unsignedImageRegistryTLS": {"insecure": True, "insecureSkipTLSVerify": True},
                        "filesToSign": ["/opt/*.ko"],
                    },
                },
            ],
        },
        imageRepoSecret={"name": "pull"},
        imageRebuildTriggerGeneration=7,
        tolerations=[{"key": "mine", "operator": "Exists"}],
        somethingNew={"from": "the future"},
    )
    parsed = parse_module(raw)
    assert parsed == ModuleSpec(
        spoke_namespace="spoke",
        selector={"a": "b"},
        module_spec=raw["moduleSpec"],
        image_repo_secret="pull",
        rebuild_trigger=7,
        tolerations=({"key": "mine", "operator": "Exists"},),
        loader=ModuleLoader(
            container_image="r.example/k:${KERNEL_XYZ}",
            tls=Access(insecure=True),
            in_tree_modules=("x",),
            in_tree_module=None,
            dir_name="/modules",
            build=Build(
                dockerfile_config_map="df",
                build_args=(("z", "1"), ("a", "")),
                secrets=("s1", "s2"),
                base_image_tls=Access(skip_tls_verify=True),
                selector=(("n", "1"),),
                kaniko_tag="debug",
            ),
            sign=None,
            mappings=(
                KernelMapping(
                    literal="1.2.3",
                    regexp=None,
                    container_image=None,
                    build=None,
                    sign=None,
                    tls=None,
                    in_tree_modules=None,
                    in_tree_module="y",
                ),
                KernelMapping(
                    literal=None,
                    regexp="^5",
                    container_image="r.example/five:1",
                    build=None,
                    sign=Sign(
                        key_secret="k",
                        cert_secret="c",
                        unsigned_image="r.example/u:1",
                        unsigned_tls=Access(insecure=True, skip_tls_verify=True),
                        files=("/opt/*.ko",),
                    ),
                    tls=Access(),
                    in_tree_modules=(),
                    in_tree_module=None,
                ),
            ),
        ),
    )
    assert parsed.module_spec is raw["moduleSpec"]


def test_nulls_and_empty_texts_are_absent() -> None:
    container = {
        "containerImage": None,
        "modprobe": {"dirName": ""},
        "registryTLS": None,
        "build": {"dockerfileConfigMap": None, "buildArgs": None, "secrets": None, "kanikoParams": None},
        "sign": {"keySecret": None, "certSecret": None, "filesToSign": None, "unsignedImage": ""},
        "inTreeModulesToRemove": None,
        "inTreeModuleToRemove": "",
        "kernelMappings": [{"literal": "", "regexp": "", "build": None, "sign": None}],
    }
    loader = loader_of(container)
    assert loader.container_image is None
    assert loader.tls is None
    assert loader.build == Build(dockerfile_config_map=None)
    assert loader.sign == Sign(key_secret=None, cert_secret=None)
    assert loader.in_tree_modules is None
    assert loader.in_tree_module is None
    assert loader.dir_name == "/opt"
    assert loader.mappings[0] == KernelMapping(
        literal=None,
        regexp=None,
        container_image=None,
        build=None,
        sign=None,
        tls=None,
        in_tree_modules=None,
        in_tree_module=None,
    )


def test_a_module_without_loader() -> None:
    for module in ({"devicePlugin": {"container": {"image": "i:t"}}}, {"moduleLoader": None}):
        assert parse_module(spec(**module)).loader is None
    assert parse_module({"spokeNamespace": "s", "selector": {}, "moduleSpec": None}).module_spec == {}


def test_the_selector_cannot_be_changed() -> None:
    selector: Any = parse_module(spec()).selector
    with pytest.raises(TypeError):
        selector["x"] = "y"


@pytest.mark.parametrize(
    ("raw", "path", "instead"),
    [
        ({"selector": {}}, "spec.spokeNamespace", "missing; write the namespace"),
        ({"spokeNamespace": 3, "selector": {}}, "spec.spokeNamespace", "is a number; write a text"),
        ({"spokeNamespace": "s"}, "spec.selector", "{} for every cluster"),
        ({"spokeNamespace": "s", "selector": {"a": 1}}, "spec.selector.a", "is a number; write a text"),
        ({"spokeNamespace": "s", "selector": []}, "spec.selector", "is a list; write an object"),
        (spec(imageRepoSecret="x"), "spec.moduleSpec.imageRepoSecret", "is a text; write an object"),
        (spec(imageRepoSecret={}), "spec.moduleSpec.imageRepoSecret.name", "write the name of a Secret"),
        (
            spec(imageRebuildTriggerGeneration="1"),
            "spec.moduleSpec.imageRebuildTriggerGeneration",
            "is a text; write a whole number",
        ),
        (
            spec(imageRebuildTriggerGeneration=True),
            "spec.moduleSpec.imageRebuildTriggerGeneration",
            "is a boolean; write a whole number",
        ),
        (spec(moduleLoader={}), CONTAINER, "missing; write an object"),
        (spec(tolerations=["x"]), "spec.moduleSpec.tolerations[0]", "is a text; write an object"),
        (spec({"kernelMappings": {}}), f"{CONTAINER}.kernelMappings", "is an object; write a list"),
        (spec({"kernelMappings": [{}, None]}), f"{CONTAINER}.kernelMappings[1]", "is null; write an object"),
        (
            spec({"kernelMappings": [{}, {}, {"sign": {"keySecret": {"name": ""}}}]}),
            f"{CONTAINER}.kernelMappings[2].sign.keySecret.name",
            "missing; write the name of a Secret",
        ),
        (
            spec({"build": {"dockerfileConfigMap": {}}}),
            f"{CONTAINER}.build.dockerfileConfigMap.name",
            "write the name of a ConfigMap",
        ),
        (spec({"build": {"buildArgs": [{"value": "x"}]}}), f"{CONTAINER}.build.buildArgs[0].name", "missing"),
        (spec({"registryTLS": {"insecure": "yes"}}), f"{CONTAINER}.registryTLS.insecure", "true or false"),
        (
            spec({"inTreeModulesToRemove": ["a", 2]}),
            f"{CONTAINER}.inTreeModulesToRemove[1]",
            "is a number; write a text",
        ),
    ],
)
def test_errors_name_the_field_and_what_to_write(raw: dict[str, Any], path: str, instead: str) -> None:
    with pytest.raises(InvalidModule) as error:
        parse_module(raw)
    assert str(error.value).startswith(f"{path}: ")
    assert instead in str(error.value)


def test_worker_tolerations_add_node_pressure() -> None:
    parsed = parse_module(spec(tolerations=[{"key": "mine", "operator": "Exists"}]))
    assert [toleration["key"] for toleration in worker_tolerations(parsed)] == [
        "mine",
        "node.kubernetes.io/disk-pressure",
        "node.kubernetes.io/memory-pressure",
        "node.kubernetes.io/pid-pressure",
    ]
    assert {toleration["operator"] for toleration in worker_tolerations(parsed)} == {"Exists"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "containerImage",
    "modprobe",
    "registryTLS",
    "build",
    "sign",
    "kernelMappings",
    "inTreeModulesToRemove",
    "inTreeModuleToRemove",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_parsed_or_refused(container: dict[str, Any]) -> None:
    try:
        parsed = parse_module(spec(container))
    except InvalidModule:
        return
    assert parsed.loader is not None
    assert len(parsed.loader.mappings) == len(container.get("kernelMappings") or ())

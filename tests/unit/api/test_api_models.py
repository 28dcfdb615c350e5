"""The models read what the API server accepts, refuse what it refuses, and write what they read."""

from copy import deepcopy
from typing import Any

import pytest
from pydantic import ValidationError

from shared.api.base import Condition
from shared.api.managed_cluster_module import ManagedClusterModule
from shared.api.module import Module

PLUGIN: dict[str, Any] = {"container": {"image": "registry.example/plugin:1"}}


def managed_cluster_module() -> dict[str, Any]:
    """A module with one mapping, as a user writes it."""
    return {
        "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
        "kind": "ManagedClusterModule",
        "metadata": {"name": "simple"},
        "spec": {
            "selector": {"site": "north"},
            "spokeNamespace": "kmm",
            "moduleSpec": {
                "selector": {},
                "moduleLoader": {
                    "container": {
                        "modprobe": {"moduleName": "simple"},
                        "kernelMappings": [
                            {"regexp": "^6\\.", "containerImage": "registry.example/simple:1"}
                        ],
                    }
                },
            },
        },
    }


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that most cases change."""
    part: dict[str, Any] = manifest["spec"]["moduleSpec"]["moduleLoader"]["container"]
    return part


def test_a_manifest_survives_reading_and_writing_with_defaults_spelled_out() -> None:
    manifest = managed_cluster_module()
    container(manifest)["registryTLS"] = {"insecureSkipTLSVerify": True}
    container(manifest)["build"] = {
        "dockerfileConfigMap": {"name": "recipe"},
        "baseImageRegistryTLS": {"insecure": False},
        "buildArgs": [{"name": "A", "value": ""}],
    }
    container(manifest)["sign"] = {
        "keySecret": {"name": "k"},
        "certSecret": {},
        "unsignedImageRegistryTLS": {},
    }
    expected = deepcopy(manifest)
    container(expected)["modprobe"]["dirName"] = "/opt"
    container(expected)["sign"]["certSecret"] = {"name": ""}

    assert ManagedClusterModule.from_manifest(manifest).to_manifest() == expected


def test_metadata_that_the_hub_does_not_read_is_kept() -> None:
    metadata = {"name": "m", "selfLink": "/m", "ownerReferences": [{"uid": "1"}], "generation": 3}

    assert Module.from_manifest({"metadata": metadata}).to_manifest()["metadata"] == metadata


def test_nulls_of_go_programs_are_fields_left_out() -> None:
    spec = {
        "selector": {"a": "b", "c": None},
        "devicePlugin": None,
        "moduleLoader": {
            "container": {
                "modprobe": {"moduleName": "simple", "dirName": None},
                "kernelMappings": [
                    {
                        "literal": "6.1.0",
                        "regexp": "",
                        "containerImage": "r.example/i:1",
                        "build": None,
                        "sign": None,
                    }
                ],
                "inTreeModulesToRemove": None,
            }
        },
    }

    written = Module.from_manifest({"metadata": {"name": "m"}, "spec": spec}).to_manifest()

    assert written["spec"] == {
        "selector": {"a": "b"},
        "moduleLoader": {
            "container": {
                "modprobe": {"moduleName": "simple", "dirName": "/opt"},
                "kernelMappings": [{"literal": "6.1.0", "regexp": "", "containerImage": "r.example/i:1"}],
            }
        },
    }


def test_opaque_json_keeps_its_nulls() -> None:
    parameters = {"limit": None, "nested": {"list": [None]}}
    spec = {
        "selector": {},
        "dra": PLUGIN
        | {
            "driverName": "gpu.example",
            "deviceClasses": [
                {"name": "gpu", "config": [{"opaque": {"driver": "gpu.example", "parameters": parameters}}]}
            ],
            "volumes": [{"name": "dev", "hostPath": {"path": "/dev", "type": None}}],
        },
    }

    dra = Module.from_manifest({"metadata": {"name": "m"}, "spec": spec}).to_manifest()["spec"]["dra"]

    assert dra["deviceClasses"][0]["config"][0]["opaque"]["parameters"] == parameters
    assert dra["volumes"] == [{"name": "dev", "hostPath": {"path": "/dev", "type": None}}]


def test_unknown_fields_are_dropped() -> None:
    manifest = managed_cluster_module()
    container(manifest)["colour"] = "blue"

    assert "colour" not in container(ManagedClusterModule.from_manifest(manifest).to_manifest())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("selector", None),
        ("spokeNamespace", None),
        ("moduleSpec.selector", None),
        ("moduleSpec.moduleLoader.container", None),
        ("moduleSpec.moduleLoader.container.modprobe", None),
        ("moduleSpec.moduleLoader.container.kernelMappings", None),
        ("moduleSpec.moduleLoader.container.kernelMappings", []),
        ("moduleSpec.moduleLoader.container.kernelMappings", [{"literal": "6.1.0"}]),
        ("moduleSpec.moduleLoader.container.version", 1),
        ("moduleSpec.moduleLoader.container.registryTLS", {"insecure": "true"}),
        ("moduleSpec.moduleLoader.container.modprobe.args", {"load": []}),
        ("moduleSpec.moduleLoader.container.modprobe.rawArgs", {"unload": []}),
        ("moduleSpec.moduleLoader.container.build", {"buildArgs": []}),
        (
            "moduleSpec.moduleLoader.container.build",
            {"dockerfileConfigMap": {}, "buildArgs": [{"name": "A"}]},
        ),
        ("moduleSpec.moduleLoader.container.sign", {"keySecret": {"name": "k"}}),
        ("moduleSpec.imageRebuildTriggerGeneration", "1"),
        ("moduleSpec.devicePlugin", {"container": {}}),
        ("moduleSpec.devicePlugin", {"initContainer": {"image": "i"}}),
        ("moduleSpec.dra", PLUGIN),
        ("moduleSpec.dra", PLUGIN | {"driverName": "d", "deviceClasses": [{"name": "Not_DNS"}]}),
        (
            "moduleSpec.dra",
            PLUGIN | {"driverName": "d", "deviceClasses": [{"name": "a", "config": [{}] * 33}]},
        ),
    ],
)
def test_what_the_crd_refuses_is_refused(path: str, value: Any) -> None:
    manifest = managed_cluster_module()
    parent = manifest["spec"]
    *parents, last = path.split(".")
    for name in parents:
        parent = parent[name]
    parent[last] = value

    with pytest.raises(ValidationError, match=last):
        ManagedClusterModule.from_manifest(manifest)


def test_a_device_plugin_and_a_dra_driver_exclude_each_other() -> None:
    manifest = managed_cluster_module()
    manifest["spec"]["moduleSpec"] |= {"devicePlugin": PLUGIN}
    ManagedClusterModule.from_manifest(manifest)
    manifest["spec"]["moduleSpec"] |= {"dra": PLUGIN | {"driverName": "gpu.example"}}

    with pytest.raises(ValidationError, match="dra and devicePlugin must not both be set"):
        ManagedClusterModule.from_manifest(manifest)


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "true"},
        {"reason": ""},
        {"reason": "two words"},
        {"reason": "x" * 1025},
        {"message": "x" * 32769},
        {"type": "not a type"},
        {"lastTransitionTime": "yesterday"},
        {"observedGeneration": -1},
    ],
)
def test_conditions_obey_the_rules_of_kubernetes(wrong: dict[str, Any]) -> None:
    right = {
        "type": "Ready",
        "status": "True",
        "reason": "AllApplied",
        "message": "",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
        "observedGeneration": 1,
    }
    assert Condition.from_manifest(right).to_manifest() == right

    with pytest.raises(ValidationError):
        Condition.from_manifest(right | wrong)

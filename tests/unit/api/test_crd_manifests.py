"""The CRDs of the project say what kernel-module-management's say, and are structural."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kmmhub.crds import CRD_DIRECTORY, differences, render_crds
from shared.api.crd import KINDS, MANAGED_CLUSTER_MODULE, MODULE, Kind, crd_manifest
from shared.api.hub_rules import HUB_REFINEMENTS
from shared.api.rules import refined
from shared.domain.errors import PermanentError

CORE_TYPES = ("EnvVar", "ResourceRequirements", "Toleration", "Volume", "VolumeMount")
TEXT = {"type": "string"}
# Of each type a mark that is its name, and the fields that the hub's rules are about.
CORE_FIELDS: dict[str, Any] = {
    "Toleration": {"key": TEXT, "value": TEXT},
    "Volume": {"hostPath": {"type": "object", "properties": {"path": TEXT}}},
}
OPENAPI = {
    "components": {
        "schemas": {
            f"io.k8s.api.core.v1.{name}": {
                "type": "object",
                "properties": CORE_FIELDS.get(name, {}) | {name: TEXT},
            }
            for name in CORE_TYPES
        }
    }
}
LOADER = "moduleLoader.container"
MAPPING = f"{LOADER}.kernelMappings.[]"

MODULE_SPEC_FACTS: list[tuple[str, str, Any]] = [
    ("", "required", ["selector"]),
    ("selector", "additionalProperties", {"type": "string"}),
    ("moduleLoader", "required", ["container"]),
    (LOADER, "required", ["kernelMappings", "modprobe"]),
    (f"{LOADER}.kernelMappings", "minItems", 1),
    (MAPPING, "required", ["containerImage"]),
    (f"{LOADER}.modprobe", "required", None),
    (f"{LOADER}.modprobe.dirName", "default", "/opt"),
    (f"{LOADER}.modprobe.args.load", "minItems", 1),
    (f"{LOADER}.modprobe.args.unload", "minItems", 1),
    (f"{LOADER}.modprobe.rawArgs.load", "minItems", 1),
    (f"{LOADER}.modprobe.rawArgs.unload", "minItems", 1),
    (f"{LOADER}.modprobe.modulesLoadingOrder", "type", "array"),
    (f"{LOADER}.imagePullPolicy", "enum", None),
    (f"{LOADER}.registryTLS.insecureSkipTLSVerify", "type", "boolean"),
    (f"{LOADER}.registryTLS.insecure", "default", None),
    (f"{MAPPING}.build", "required", ["dockerfileConfigMap"]),
    (f"{MAPPING}.build.dockerfileConfigMap", "x-kubernetes-map-type", "atomic"),
    (f"{MAPPING}.build.dockerfileConfigMap.name", "default", ""),
    (f"{MAPPING}.build.buildArgs.[]", "required", ["name", "value"]),
    (f"{MAPPING}.build.baseImageRegistryTLS.insecure", "type", "boolean"),
    (f"{MAPPING}.build.kanikoParams.tag", "type", "string"),
    (f"{MAPPING}.sign", "required", ["certSecret", "keySecret"]),
    (f"{MAPPING}.sign.unsignedImageRegistryTLS.insecure", "type", "boolean"),
    (f"{MAPPING}.inTreeModuleToRemove", "type", "string"),
    (f"{MAPPING}.inTreeModulesToRemove", "type", "array"),
    ("devicePlugin", "required", ["container"]),
    ("devicePlugin.container", "required", ["image"]),
    ("devicePlugin.initContainer.volumeMounts.[].name", "type", "string"),
    ("devicePlugin.automountServiceAccountToken", "type", "boolean"),
    ("dra", "required", ["container", "driverName"]),
    ("dra.deviceClasses.[]", "required", ["name"]),
    ("dra.deviceClasses.[].selectors", "maxItems", 32),
    ("dra.deviceClasses.[].selectors.[].cel", "required", ["expression"]),
    ("dra.deviceClasses.[].config", "maxItems", 32),
    ("dra.deviceClasses.[].config.[].opaque", "required", ["driver", "parameters"]),
    ("dra.deviceClasses.[].config.[].opaque.parameters", "x-kubernetes-preserve-unknown-fields", True),
    ("imageRebuildTriggerGeneration", "type", "integer"),
    ("imageRebuildTriggerGeneration", "format", None),
    ("imageRepoSecret", "x-kubernetes-map-type", "atomic"),
    ("tolerations.[].tolerationSeconds", "format", "int64"),
    ("tolerations.[].effect", "enum", None),
    ("devicePlugin.volumes.[].hostPath", "required", ["path"]),
    ("devicePlugin.volumes.[].iscsi.iscsiInterface", "default", "default"),
    ("devicePlugin.volumes.[].emptyDir.sizeLimit", "x-kubernetes-int-or-string", True),
    ("devicePlugin.volumes.[].ephemeral.volumeClaimTemplate.metadata", "properties", None),
    ("devicePlugin.container.resources.claims", "x-kubernetes-list-map-keys", ["name"]),
    ("dra.container.env.[]", "required", ["name"]),
    ("dra.container.env.[].name", "default", None),
]


@functools.cache
def committed(kind: Kind) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((CRD_DIRECTORY / kind.file_name).read_text())
    return manifest


def root_schema(manifest: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def field(schema: dict[str, Any], path: str) -> dict[str, Any]:
    for name in path.split(".") if path else []:
        schema = schema["items"] if name == "[]" else schema["properties"][name]
    return schema


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from nodes(schema[keyword], f"{path}.[]")


def all_rules(schema: dict[str, Any]) -> Iterator[str]:
    for _, node in nodes(schema):
        yield from (entry["rule"] for entry in node.get("x-kubernetes-validations", []))


@pytest.mark.parametrize(("path", "keyword", "expected"), MODULE_SPEC_FACTS)
def test_both_kinds_have_the_same_module_spec(path: str, keyword: str, expected: Any) -> None:
    shipped = field(root_schema(committed(MODULE)), f"spec.{path}".rstrip("."))
    wrapped = field(root_schema(committed(MANAGED_CLUSTER_MODULE)), f"spec.moduleSpec.{path}".rstrip("."))

    assert (shipped.get(keyword), wrapped.get(keyword)) == (expected, expected)


def test_module_specs_differ_only_in_what_the_hub_refuses_on_top() -> None:
    shipped = field(root_schema(committed(MODULE)), "spec")
    wrapped = field(root_schema(committed(MANAGED_CLUSTER_MODULE)), "spec.moduleSpec")
    refinements = [
        replace(one, at=one.at.removeprefix("spec.moduleSpec."))
        for one in HUB_REFINEMENTS
        if one.at.startswith("spec.moduleSpec.")
    ]

    assert refined(shipped, refinements) | {"description": ""} == wrapped | {"description": ""}


def test_every_rule_of_the_hub_is_in_its_crd_and_none_in_the_modules() -> None:
    rules = {kind.plural: set(all_rules(root_schema(committed(kind)))) for kind in KINDS}

    one_plugin = "!has(self.dra) || !has(self.devicePlugin)"
    ours = {rule.holds for one in HUB_REFINEMENTS for rule in one.rules}
    assert rules == {MODULE.plural: {one_plugin}, MANAGED_CLUSTER_MODULE.plural: {one_plugin, *ours}}


def test_the_hubs_kind_is_named_as_upstream_and_easy_to_list() -> None:
    manifest = committed(MANAGED_CLUSTER_MODULE)
    version = manifest["spec"]["versions"][0]

    assert manifest["metadata"]["name"] == "managedclustermodules.hub.kmm.sigs.x-k8s.io"
    assert manifest["spec"]["scope"] == "Cluster"
    assert manifest["spec"]["names"] == {
        "kind": "ManagedClusterModule",
        "listKind": "ManagedClusterModuleList",
        "plural": "managedclustermodules",
        "singular": "managedclustermodule",
        "shortNames": ["mcm"],
        "categories": ["kmm"],
    }
    assert (version["name"], version["served"], version["storage"]) == ("v1beta1", True, True)
    assert version["subresources"] == {"status": {}}
    columns = [(column["name"], column.get("priority", 0)) for column in version["additionalPrinterColumns"]]
    names = ("Desired", "Applied", "Degraded", "Ready", "Reason", "Age")
    assert columns == [(name, 1 if name == "Reason" else 0) for name in names]


def test_the_spokes_kind_is_named_as_upstream() -> None:
    manifest = committed(MODULE)

    assert manifest["metadata"]["name"] == "modules.kmm.sigs.x-k8s.io"
    assert manifest["spec"]["scope"] == "Namespaced"
    assert manifest["spec"]["names"]["listKind"] == "ModuleList"
    assert "additionalPrinterColumns" not in manifest["spec"]["versions"][0]


def test_the_status_has_upstreams_counters_and_conditions_by_type() -> None:
    status = field(root_schema(committed(MANAGED_CLUSTER_MODULE)), "status")

    formats = {name: child.get("format") for name, child in status["properties"].items()}
    assert formats == {
        "conditions": None,
        "numberApplied": "int32",
        "numberDegraded": "int32",
        "numberDesired": "int32",
        "observedGeneration": "int64",
        "phases": None,
        "attention": None,
        "moduleLoader": None,
        "devicePlugin": None,
        "dra": None,
    }
    assert status["properties"]["phases"]["additionalProperties"] == {"type": "integer", "format": "int32"}
    assert status["properties"]["attention"]["maxItems"] == 20
    assert status["properties"]["attention"]["items"]["required"] == ["cluster", "message", "reason"]
    conditions = status["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert conditions["items"]["required"] == ["lastTransitionTime", "message", "reason", "status", "type"]
    assert conditions["items"]["properties"]["status"]["enum"] == ["True", "False", "Unknown"]
    assert conditions["items"]["properties"]["lastTransitionTime"]["format"] == "date-time"


def test_the_modules_status_counts_nodes_of_each_part() -> None:
    status = field(root_schema(committed(MODULE)), "status")["properties"]

    assert set(status) == {"moduleLoader", "devicePlugin", "dra", "imageRebuildTriggerGeneration"}
    assert status["imageRebuildTriggerGeneration"]["type"] == "integer"
    for part in ("moduleLoader", "devicePlugin", "dra"):
        formats = {name: child["format"] for name, child in status[part]["properties"].items()}
        names = ("availableNumber", "desiredNumber", "nodesMatchingSelectorNumber")
        assert formats == dict.fromkeys(names, "int32")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_every_node_is_structural(kind: Kind) -> None:
    for path, node in nodes(root_schema(committed(kind))):
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not {"$ref", "allOf", "oneOf", "nullable", "title"} & set(node), path
        for key in node.get("x-kubernetes-list-map-keys", []):
            items = node["items"]
            assert key in items.get("required", []) or "default" in items["properties"][key], path
        for name in node.get("required", []):
            assert "default" not in node["properties"][name], f"{path}.{name}"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_every_field_of_ours_is_described_in_one_line(kind: Kind) -> None:
    openapi_fields = {path for path, node in nodes(root_schema(crd_manifest(kind, OPENAPI))) if path}
    ours = {
        path
        for path in openapi_fields
        if not path.endswith(".[]")
        and ".volumes.[]." not in path
        and ".tolerations.[]." not in path
        and path.rpartition(".")[2] not in {*CORE_TYPES, "apiVersion", "kind", "metadata"}
    }
    described = {
        path: node.get("description", "")
        for path, node in nodes(root_schema(committed(kind)))
        if path in ours
    }

    assert set(described) == ours
    assert [path for path, text in described.items() if not text or "\n" in text or len(text) > 120] == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_pod_types_come_from_the_given_document(kind: Kind) -> None:
    root = root_schema(crd_manifest(kind, OPENAPI))
    spec = field(root, "spec.moduleSpec" if kind is MANAGED_CLUSTER_MODULE else "spec")

    assert set(field(spec, "tolerations.[]")["properties"]) == {"Toleration", "key", "value"}
    assert list(field(spec, "dra.container.resources")["properties"]) == ["ResourceRequirements"]


def test_a_document_without_a_needed_type_is_refused() -> None:
    schemas = dict(OPENAPI["components"]["schemas"])
    del schemas["io.k8s.api.core.v1.Toleration"]

    with pytest.raises(PermanentError, match=r"core\.v1\.Toleration"):
        crd_manifest(MODULE, {"components": {"schemas": schemas}})


def test_a_document_of_something_else_is_refused() -> None:
    with pytest.raises(PermanentError, match="openapi/v3/api/v1"):
        crd_manifest(MODULE, {"swagger": "2.0"})


def test_rendering_is_stable_and_differences_name_the_changed_line(tmp_path: Path) -> None:
    files = render_crds(OPENAPI, "1.36")
    assert files == render_crds(OPENAPI, "1.36")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert differences(files, tmp_path) == ""

    (tmp_path / MODULE.file_name).write_text(
        files[MODULE.file_name].replace("scope: Namespaced", "scope: Cluster")
    )
    (tmp_path / MANAGED_CLUSTER_MODULE.file_name).unlink()
    diff = differences(files, tmp_path)

    assert "-  scope: Cluster" in diff
    assert "+  scope: Namespaced" in diff
    assert "+  name: managedclustermodules.hub.kmm.sigs.x-k8s.io" in diff

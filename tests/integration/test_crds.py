"""The CRDs on a real API server: established, accepting, refusing and defaulting as upstream's do."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crd_samples import DRA, IMAGE, PLUGIN, RAW_SPEC, RICH_SPEC, changed, managed_cluster_module, module
from kubectl import CRD_NAMES, Hub, Kubectl
from typer.testing import CliRunner

from kmmhub.crds import CRD_DIRECTORY, app, read_openapi
from shared.api.managed_cluster_module import ManagedClusterModule
from shared.api.module import Module

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def kubectl(hub: Hub) -> Kubectl:
    """A hub that has the CRDs of the project."""
    command = Kubectl(hub)
    command.apply_crds()
    return command


@pytest.fixture
def stored(kubectl: Kubectl) -> Iterator[dict[str, Any]]:
    """A ManagedClusterModule that the API server holds."""
    manifest = managed_cluster_module(RICH_SPEC)
    yield kubectl.read("create", "--filename=-", given=manifest)
    kubectl.run("delete", "managedclustermodule", manifest["metadata"]["name"], "--wait=false")


@pytest.mark.parametrize("name", CRD_NAMES)
def test_the_crds_are_structural_and_established(kubectl: Kubectl, name: str) -> None:
    conditions = kubectl.read("get", "crd", name)["status"]["conditions"]

    statuses = {condition["type"]: condition["status"] for condition in conditions}
    assert statuses == {"NamesAccepted": "True", "Established": "True"}


def test_the_committed_crds_are_what_this_servers_openapi_yields(hub: Hub) -> None:
    _, version = read_openapi(hub.kubeconfig)
    for path in CRD_DIRECTORY.glob("*.yaml"):
        if f"Kubernetes {version}." not in path.read_text().partition("\n")[0]:
            pytest.skip(
                f"{path.name} was made from another version of Kubernetes than this server's {version}"
            )

    outcome = CliRunner().invoke(app, ["check", "--openapi-from", str(hub.kubeconfig)])

    assert outcome.exit_code == 0, outcome.output


def test_crds_written_elsewhere_are_current_and_a_changed_one_is_not(hub: Hub, tmp_path: Path) -> None:
    arguments = ["--openapi-from", str(hub.kubeconfig), "--directory", str(tmp_path / "crds")]
    assert CliRunner().invoke(app, ["check", *arguments]).exit_code == 1
    assert CliRunner().invoke(app, ["write", *arguments]).exit_code == 0
    assert CliRunner().invoke(app, ["check", *arguments]).exit_code == 0
    path = tmp_path / "crds" / "kmm.sigs.x-k8s.io_modules.yaml"
    path.write_text(path.read_text().replace("default: /opt", "default: /usr"))

    outcome = CliRunner().invoke(app, ["check", *arguments])

    assert outcome.exit_code == 1
    assert "+" in outcome.output
    assert "default: /opt" in outcome.output


def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    cluster = {"name": "away", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "away", "context": {"cluster": "away", "user": "nobody"}}
    settings = {"clusters": [cluster], "contexts": [context], "users": [{"name": "nobody", "user": {}}]}
    kubeconfig.write_text(
        json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "away"} | settings)
    )

    outcome = CliRunner().invoke(app, ["check", "--openapi-from", str(kubeconfig)])

    assert outcome.exit_code == 1
    assert "does not answer" in outcome.output


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(RICH_SPEC, id="nearly every field"),
        pytest.param(RAW_SPEC, id="the other fields"),
        pytest.param({"selector": {}, "dra": DRA}, id="DRA driver alone"),
        pytest.param({"selector": {}, "devicePlugin": PLUGIN}, id="device plugin alone"),
        pytest.param(
            changed("moduleLoader.container.imagePullPolicy", "Sometimes"), id="no enum, as upstream"
        ),
    ],
)
def test_accepted_specs_are_stored_as_written_and_read_by_the_models(
    kubectl: Kubectl, spec: dict[str, Any]
) -> None:
    wrapped = kubectl.dry_run(managed_cluster_module(spec))
    shipped = kubectl.dry_run(module(spec))

    assert wrapped["spec"]["moduleSpec"] == spec
    assert shipped["spec"] == spec
    assert ManagedClusterModule.from_manifest(wrapped).to_manifest() == wrapped
    assert Module.from_manifest(shipped).to_manifest() == shipped


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        pytest.param(changed("selector", None), "selector: Required value", id="no selector"),
        pytest.param(RICH_SPEC | {"dra": DRA}, "dra and devicePlugin must not both be set", id="two plugins"),
        pytest.param(
            changed("moduleLoader.container.kernelMappings", []),
            "should have at least 1 items",
            id="no mappings",
        ),
        pytest.param(
            changed("moduleLoader.container.kernelMappings.0.containerImage", None),
            "containerImage: Required value",
            id="mapping without the key containerImage",
        ),
        pytest.param(
            changed("moduleLoader.container.modprobe", None), "modprobe: Required value", id="no modprobe"
        ),
        pytest.param(
            changed("moduleLoader.container.modprobe.rawArgs.load", [], RAW_SPEC),
            "at least 1 items",
            id="empty arguments",
        ),
        pytest.param(
            changed("moduleLoader.container.build.dockerfileConfigMap", None),
            "dockerfileConfigMap: Required value",
            id="build without a recipe",
        ),
        pytest.param(
            changed("moduleLoader.container.sign.certSecret", None),
            "certSecret: Required value",
            id="no certificate",
        ),
        pytest.param(
            changed("imageRebuildTriggerGeneration", "2"), "must be of type integer", id="text for a number"
        ),
        pytest.param(
            changed("devicePlugin.container.image", None), "image: Required value", id="plugin: no image"
        ),
        pytest.param(
            changed("devicePlugin.container.resources.requests", {"cpu": "a lot"}),
            "should match",
            id="no quantity",
        ),
        pytest.param(
            changed("devicePlugin.volumes.0.hostPath.path", None),
            "path: Required value",
            id="volume without a path",
        ),
        pytest.param(
            {"selector": {}, "dra": PLUGIN}, "driverName: Required value", id="driver without a name"
        ),
        pytest.param(
            {"selector": {}, "dra": DRA | {"deviceClasses": [{"name": "No_DNS"}]}},
            "should match",
            id="class name",
        ),
    ],
)
def test_wrong_specs_are_refused_by_both_kinds(kubectl: Kubectl, spec: dict[str, Any], reason: str) -> None:
    assert reason in kubectl.refusal(managed_cluster_module(spec))
    assert reason in kubectl.refusal(module(spec))


@pytest.mark.parametrize("field", ["selector", "spokeNamespace"])
def test_a_module_without_clusters_or_namespace_is_refused(kubectl: Kubectl, field: str) -> None:
    manifest = managed_cluster_module(RICH_SPEC)
    del manifest["spec"][field]

    assert f"spec.{field}: Required value" in kubectl.refusal(manifest)


def test_defaults_are_filled_in(kubectl: Kubectl) -> None:
    spec = {
        "selector": {},
        "imageRepoSecret": {},
        "moduleLoader": {
            "container": {
                "modprobe": {"moduleName": "simple"},
                "kernelMappings": [{"literal": "6.1.0", "containerImage": IMAGE}],
            }
        },
    }

    stored = kubectl.dry_run(module(spec))["spec"]

    assert stored["moduleLoader"]["container"]["modprobe"] == {"moduleName": "simple", "dirName": "/opt"}
    assert stored["imageRepoSecret"] == {"name": ""}


def test_a_module_of_a_go_hub_with_nulls_and_zero_values_is_accepted(kubectl: Kubectl) -> None:
    mapping = {
        "literal": "6.1.0",
        "containerImage": IMAGE,
        "inTreeModulesToRemove": None,
        "build": None,
        "registryTLS": None,
        "regexp": "",
        "inTreeModuleToRemove": "",
    }
    container = {
        "kernelMappings": [mapping],
        "modprobe": {"moduleName": "simple", "dirName": None},
        "registryTLS": {},
        "inTreeModuleToRemove": "",
        "inTreeModulesToRemove": None,
    }
    spec = {"devicePlugin": None, "moduleLoader": {"container": container}, "selector": {"a": "b"}}
    manifest = module(spec) | {"status": {"devicePlugin": {}, "dra": {}, "moduleLoader": {}}}

    answer = kubectl.dry_run(manifest)

    # The API server drops every null, and fills in a default where there is one; the model reads the same.
    kept = {"literal": "6.1.0", "containerImage": IMAGE, "regexp": "", "inTreeModuleToRemove": ""}
    modprobe = {"moduleName": "simple", "dirName": "/opt"}
    assert answer["spec"]["moduleLoader"]["container"] == {
        "kernelMappings": [kept],
        "modprobe": modprobe,
        "registryTLS": {},
        "inTreeModuleToRemove": "",
    }
    assert "devicePlugin" not in answer["spec"]
    assert Module.from_manifest(manifest).to_manifest()["spec"] == answer["spec"]


def condition(**changes: Any) -> dict[str, Any]:
    return {
        "type": "Ready",
        "status": "True",
        "reason": "AllApplied",
        "message": "on every cluster",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
        "observedGeneration": 1,
    } | changes


def test_status_is_written_apart_from_the_spec_and_shown_in_columns(
    kubectl: Kubectl, stored: dict[str, Any]
) -> None:
    name = stored["metadata"]["name"]
    status = {
        "numberDesired": 3,
        "numberApplied": 2,
        "numberDegraded": 1,
        "observedGeneration": 1,
        "phases": {"Applied": 2, "Waiting": 0, "Failed": 1},
        "moduleLoader": {"nodesMatchingSelectorNumber": 7, "desiredNumber": 7, "availableNumber": 6},
        "devicePlugin": {"nodesMatchingSelectorNumber": 0, "desiredNumber": 0, "availableNumber": 0},
        "dra": {"availableNumber": 1},
        "attention": [
            {"cluster": "north", "kernel": "6.1.0", "reason": "BuildFailed", "message": "see the log"},
            {"cluster": "south", "reason": "NoKernels", "message": "the cluster reports none"},
        ],
        "conditions": [condition(), condition(type="Degraded", status="Unknown")],
    }
    patch = json.dumps({"status": status, "spec": {"spokeNamespace": "ignored"}})

    written = kubectl.read("patch", "mcm", name, "--subresource=status", "--type=merge", f"--patch={patch}")

    assert written["status"] == status
    assert written["spec"] == stored["spec"]
    assert ManagedClusterModule.from_manifest(written).to_manifest() == written
    columns = kubectl.run("get", "mcm", name).stdout.split()
    assert columns[:6] == ["NAME", "DESIRED", "APPLIED", "DEGRADED", "READY", "AGE"]
    assert columns[6:11] == [name, "3", "2", "1", "True"]
    wide = kubectl.run("get", "mcm", name, "--output=wide").stdout.split()
    assert wide[:7] == ["NAME", "DESIRED", "APPLIED", "DEGRADED", "READY", "REASON", "AGE"]
    assert wide[7:13] == [name, "3", "2", "1", "True", "AllApplied"]
    assert name in kubectl.run("get", "kmm", "--output=name").stdout


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ([condition(status="Maybe")], "Unsupported value"),
        ([condition(reason="")], "should be at least 1 chars long"),
        ([condition(reason="two words")], "should match"),
        ([condition(), condition(status="False")], "Duplicate value"),
        ([condition(lastTransitionTime="now")], "must be of type date-time"),
    ],
)
def test_wrong_conditions_are_refused(
    kubectl: Kubectl, stored: dict[str, Any], conditions: list[dict[str, Any]], reason: str
) -> None:
    patch = json.dumps({"status": {"conditions": conditions}})

    done = kubectl.run(
        "patch", "mcm", stored["metadata"]["name"], "--subresource=status", "--type=merge", f"--patch={patch}"
    )

    assert done.returncode != 0
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"phases": {"Applied": "2"}}, "must be of type integer"),
        ({"attention": [{"cluster": "c", "reason": "R"}]}, "message: Required value"),
        (
            {"attention": [{"cluster": "c", "reason": "R", "message": "m"}] * 21},
            "must have at most 20 items",
        ),
    ],
)
def test_wrong_status_is_refused(
    kubectl: Kubectl, stored: dict[str, Any], status: dict[str, Any], reason: str
) -> None:
    patch = json.dumps({"status": status})

    done = kubectl.run(
        "patch", "mcm", stored["metadata"]["name"], "--subresource=status", "--type=merge", f"--patch={patch}"
    )

    assert done.returncode != 0
    assert reason in done.stderr


def test_kubectl_explains_the_fields(kubectl: Kubectl) -> None:
    explained = kubectl.run("explain", "managedclustermodule.spec.moduleSpec").stdout

    assert "Labels that a node must have." in explained
    assert "moduleLoader" in explained

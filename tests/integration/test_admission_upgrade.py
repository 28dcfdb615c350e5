"""Objects that are older than the rules: they can be updated and deleted, and what is wrong can only get better."""

import json
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from crd_samples import IMAGE, managed_cluster_module
from kubectl import Hub, Kubectl

from kmmhub.crds import read_openapi
from shared.api.crd import MANAGED_CLUSTER_MODULE, crd_manifest

pytestmark = pytest.mark.integration

# A group of its own, so that no other test meets a CRD without rules.
GROUP = "before.kmm.example"
RESOURCE = f"managedclustermodules.{GROUP}"
WRONG = {
    "metadata": {"name": "m" * 60, "finalizers": ["kmm.example/works"]},
    "spec": {
        "selector": {},
        "spokeNamespace": "Not_A_Namespace",
        "moduleSpec": {
            "selector": {},
            "tolerations": [{"key": "a b", "operator": "Newer"}],
            "devicePlugin": {
                "container": {"image": "i"},
                "volumes": [{"name": "v", "hostPath": {"path": "/etc"}}],
            },
            "moduleLoader": {
                "container": {
                    "inTreeModuleToRemove": "a",
                    "modprobe": {"dirName": "/opt", "modulesLoadingOrder": ["b", "b"]},
                    "kernelMappings": [
                        {"regexp": "(", "literal": "k", "containerImage": "registry:5000/image"},
                        {"containerImage": "", "inTreeModulesToRemove": []},
                    ],
                }
            },
        },
    },
}


def crd(openapi: dict[str, Any], **changes: Any) -> dict[str, Any]:
    kind = replace(MANAGED_CLUSTER_MODULE, group=GROUP, short_names=(), categories=(), **changes)
    return crd_manifest(kind, openapi)


@pytest.fixture(scope="module")
def kubectl(hub: Hub) -> Iterator[Kubectl]:
    """A hub whose CRD gets its rules only after an object broke them all."""
    command = Kubectl(hub)
    openapi, _ = read_openapi(hub.kubeconfig)
    command.read("apply", "--server-side", "--filename=-", given=crd(openapi, refinements=()))
    command.run("wait", "--for=condition=Established", "--timeout=30s", f"crd/{RESOURCE}")
    wrong = managed_cluster_module({}) | {"apiVersion": f"{GROUP}/v1beta1"} | deepcopy(WRONG)
    command.read("create", "--filename=-", given=wrong)
    command.read("apply", "--server-side", "--filename=-", given=crd(openapi))
    wrong["metadata"]["name"] = "fresh"
    until = time.monotonic() + 60
    while command.run("create", "--dry-run=server", "--filename=-", given=wrong).returncode == 0:
        assert time.monotonic() < until, "the API server does not enforce the new CRD"
        time.sleep(0.2)
    yield command
    command.run("delete", "crd", RESOURCE, "--wait=false")


def patch(kubectl: Kubectl, change: dict[str, Any], *options: str) -> str:
    """Change the object for a try; returns why that is refused, or nothing. Warnings are fine."""
    name = WRONG["metadata"]["name"]
    arguments = ("--type=merge", f"--patch={json.dumps(change)}", "--dry-run=server", *options)
    done = kubectl.run("patch", RESOURCE, str(name), *arguments)
    return done.stderr if done.returncode else ""


def module_spec(**changes: Any) -> dict[str, Any]:
    return {"spec": {"moduleSpec": changes}}


def container(**changes: Any) -> dict[str, Any]:
    return module_spec(moduleLoader={"container": changes})


@pytest.mark.parametrize(
    ("change", "options"),
    [
        pytest.param({"metadata": {"labels": {"a": "b"}}}, (), id="labels"),
        pytest.param({"metadata": {"finalizers": []}}, (), id="finalizers"),
        pytest.param({"status": {"numberDesired": 1}}, ("--subresource=status",), id="status"),
        pytest.param({"spec": {"selector": {"a": "b"}}}, (), id="selector of clusters"),
        pytest.param(module_spec(imageRebuildTriggerGeneration=1), (), id="trigger"),
        pytest.param(module_spec(devicePlugin=None), (), id="one wrong part goes"),
        pytest.param(
            module_spec(tolerations=[{"key": "a", "operator": "Exists"}]), (), id="one part is put right"
        ),
    ],
)
def test_what_leaves_the_wrong_parts_alone_is_accepted(
    kubectl: Kubectl, change: dict[str, Any], options: tuple[str, ...]
) -> None:
    assert patch(kubectl, change, *options) == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"spec": {"spokeNamespace": "Another_One"}}, "name of a namespace", id="namespace"),
        pytest.param({"spec": {"spokeNamespace": "kmm"}}, "41 characters together", id="names"),
        pytest.param(module_spec(tolerations=[{"key": "c d"}]), "key of a taint", id="toleration"),
        pytest.param(
            container(kernelMappings=[{"regexp": "[", "containerImage": IMAGE}]),
            "an RE2 expression",
            id="regexp",
        ),
        pytest.param(container(version="1"), "version cannot be added", id="version"),
    ],
)
def test_what_makes_another_wrong_part_is_refused(
    kubectl: Kubectl, change: dict[str, Any], says: str
) -> None:
    assert says in patch(kubectl, change)


def test_a_module_that_is_older_than_the_rules_can_be_deleted(kubectl: Kubectl) -> None:
    name = str(WRONG["metadata"]["name"])

    assert kubectl.run("delete", RESOURCE, name, "--wait=false").returncode == 0
    kubectl.read("patch", RESOURCE, name, "--type=merge", '--patch={"metadata":{"finalizers":[]}}')

    assert "NotFound" in kubectl.run("get", RESOURCE, name).stderr

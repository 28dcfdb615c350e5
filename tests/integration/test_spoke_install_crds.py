"""What `kmmhub spoke-install` prints, judged by real API servers with the CRDs of Open Cluster Management."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from spoke.kmm_manifests import kmm_manifests
from spoke.lane import refuse_foreign_hub
from typer.testing import CliRunner

from kmmhub.main import app
from localhub import ocm
from localhub.hub import HubAddresses
from localhub.progress import silent
from localhub.settings import LocalHubSettings
from localhub.spoke import Spoke

pytestmark = pytest.mark.integration

CRD_FILES = {
    ("ocm", "open-cluster-management.io/api"): (
        "cluster/v1beta1/0000_02_clusters.open-cluster-management.io_placements.crd.yaml",
        "cluster/v1beta2/0000_01_clusters.open-cluster-management.io_managedclustersetbindings.crd.yaml",
        "work/v1/0000_00_work.open-cluster-management.io_manifestworks.crd.yaml",
        "addon/v1alpha1/0000_00_addon.open-cluster-management.io_clustermanagementaddons.crd.yaml",
        "addon/v1alpha1/0000_01_addon.open-cluster-management.io_managedclusteraddons.crd.yaml",
        "addon/v1alpha1/0000_03_addon.open-cluster-management.io_addontemplates.crd.yaml",
    ),
    ("ocm-policy", "open-cluster-management.io/governance-policy-propagator"): (
        "deploy/crds/policy.open-cluster-management.io_policies.yaml",
        "deploy/crds/policy.open-cluster-management.io_placementbindings.yaml",
    ),
    ("ocm-policy", "open-cluster-management.io/config-policy-controller"): (
        "deploy/crds/policy.open-cluster-management.io_configurationpolicies.yaml",
        "deploy/crds/policy.open-cluster-management.io_operatorpolicies.yaml",
    ),
    ("ocm-policy", "open-cluster-management.io/multicloud-operators-subscription"): (
        "deploy/common/apps.open-cluster-management.io_placementrules_crd.yaml",
    ),
}
FOREIGN_GROUPS = {"operators.coreos.com"}
"""OLM's kinds inside of policies: their CRDs are not here."""


class Kubectl:
    """kubectl for one API server."""

    def __init__(self, program: Path, kubeconfig: Path) -> None:
        self._command = [str(program), f"--kubeconfig={kubeconfig}"]

    def run(self, *arguments: str, given: Any = None) -> str:
        """Run a command that must succeed. Returns its output."""
        done = subprocess.run(
            [*self._command, *arguments],
            input=None if given is None else json.dumps(given),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{json.dumps(given)[:2000]}"
        return done.stdout

    def accepts(self, item: dict[str, Any], *, namespace: str | None = None) -> None:
        """Fail unless the API server would take an object, with no field that it does not know."""
        place = [f"--namespace={namespace}"] if namespace else []
        arguments = ("create", "--dry-run=server", "--validate=strict", "--filename=-", *place)
        self.run(*arguments, given=item)


@pytest.fixture(scope="module")
def kubectl(hub: HubAddresses) -> Iterator[Kubectl]:
    """An empty API server with the CRDs of OCM's add-ons, placements, policies and works."""
    refuse_foreign_hub(hub)
    spoke = Spoke(hub.kubeconfig.parent, "spoke-install")
    try:
        command = Kubectl(hub.kubectl, spoke.up())
        cache = LocalHubSettings().cache
        for (folder, module), files in CRD_FILES.items():
            directory = ocm.fetch_module(module, cache, silent, folder=folder)
            paths = [f"--filename={directory / file}" for file in files]
            command.run("apply", "--server-side", *paths)
        command.run("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        for namespace in ("kmm-spokes", "east-1", "west-2"):
            command.run("create", "namespace", namespace)
        yield command
    finally:
        spoke.down(purge=True)


def printed(*arguments: str) -> list[dict[str, Any]]:
    """What the command prints."""
    outcome = CliRunner().invoke(app, ["spoke-install", *arguments])
    assert outcome.exit_code == 0, outcome.output
    return list(yaml.safe_load_all(outcome.stdout))


def inside(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects that an object carries, at any depth."""
    spec = item.get("spec") or {}
    carried = [one["objectDefinition"] for one in spec.get("policy-templates") or []]
    carried += [one["objectDefinition"] for one in spec.get("object-templates") or []]
    for one in carried:
        yield one
        yield from inside(one)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="all"),
        pytest.param(["--openshift", "--selector", "region=east,tier=edge"], id="OpenShift by label"),
        pytest.param(["--cluster", "east-1", "--cluster", "west-2"], id="by name"),
        pytest.param(["--method", "policy-legacy"], id="legacy"),
        pytest.param(
            ["--method", "policy-legacy", "--openshift", "--cluster", "east-1"], id="legacy by name"
        ),
    ],
)
def test_policies_are_valid_to_their_innermost_object(kubectl: Kubectl, arguments: list[str]) -> None:
    objects = printed(*arguments)

    for item in objects:
        if item["kind"] != "Namespace":
            kubectl.accepts(item)
    innermost = [one for item in objects for one in inside(item)]
    assert {"ConfigurationPolicy", "Namespace", "ClusterRole"} <= {one["kind"] for one in innermost}
    for one in innermost:
        if one["apiVersion"].partition("/")[0] not in FOREIGN_GROUPS:
            kubectl.accepts(one, namespace=None if one["kind"] == "Namespace" else "kmm-spokes")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--method", "addon"], id="add-on on all"),
        pytest.param(["--method", "addon", "--selector", "region=east"], id="add-on by label"),
        pytest.param(
            ["--method", "addon", "--cluster", "east-1", "--cluster", "west-2"], id="add-on by name"
        ),
        pytest.param(["--method", "manifestwork", "--cluster", "east-1", "--cluster", "west-2"], id="works"),
    ],
)
def test_what_carries_kmm_is_valid(kubectl: Kubectl, tmp_path: Path, arguments: list[str]) -> None:
    file = tmp_path / "kmm.yaml"
    file.write_text(yaml.safe_dump_all(kmm_manifests()))

    objects = printed(*arguments, "--manifests", str(file))

    for item in objects:
        if item["kind"] != "Namespace":
            kubectl.accepts(item)


def test_a_field_that_ocm_does_not_know_is_noticed(kubectl: Kubectl) -> None:
    (choice,) = [item for item in printed() if item["kind"] == "Placement"]
    choice["spec"]["tolerates"] = []

    with pytest.raises(AssertionError, match=r'unknown field "spec\.tolerates"'):
        kubectl.accepts(choice)

"""`kmmhub spoke-install`: selection, managed mode, what is refused. Objects are judged by API servers elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from spoke.kmm_manifests import NAMESPACE, kmm_manifests
from typer.testing import CliRunner

from kmmhub.main import app
from kmmhub.spoke.carried import MAX_MANIFEST_BYTES, UnusableManifests, addon, is_kept, managed, works
from kmmhub.spoke.policy import OPENSHIFT, UPSTREAM, legacy_policy, operator_policy
from kmmhub.spoke.rights import agent_role, installer_role, plural_of
from kmmhub.spoke.selection import Selection, UnusableOptions, placement_rule, read_selection
from services.dispatcher.permissions import assemble_permissions

EAST = Selection(clusters=("east-1", "east-2"))


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [item for item in objects if item["kind"] == kind]
    return found


def run(*arguments: str, given: str | None = None) -> Any:
    return CliRunner().invoke(app, ["spoke-install", *arguments], input=given)


def test_by_default_every_cluster_but_the_hub_itself_is_selected_and_kept_while_unreachable() -> None:
    objects = operator_policy(UPSTREAM, Selection(), namespace_name="kmm-spokes", cluster_set="global")

    spec = of_kind(objects, "Placement")["spec"]
    (predicate,) = spec["predicates"]
    assert predicate["requiredClusterSelector"]["labelSelector"] == {
        "matchExpressions": [{"key": "local-cluster", "operator": "NotIn", "values": ["true"]}]
    }
    assert {one["key"] for one in spec["tolerations"]} == {
        "cluster.open-cluster-management.io/unreachable",
        "cluster.open-cluster-management.io/unavailable",
    }


def test_a_named_selection_selects_nothing_where_its_label_is_missing() -> None:
    """A selector that a server could drop would select the whole fleet instead."""
    objects = operator_policy(OPENSHIFT, EAST, namespace_name="kmm-spokes", cluster_set="global")

    (predicate,) = of_kind(objects, "Placement")["spec"]["predicates"]
    assert predicate == {
        "requiredClusterSelector": {
            "labelSelector": {
                "matchExpressions": [{"key": "name", "operator": "In", "values": ["east-1", "east-2"]}]
            }
        }
    }


@pytest.mark.parametrize(("distribution", "place"), [(UPSTREAM, NAMESPACE), (OPENSHIFT, "openshift-kmm")])
def test_olm_installs_kmm_in_managed_mode(distribution: Any, place: str) -> None:
    objects = operator_policy(distribution, Selection(), namespace_name="n", cluster_set="global")

    templates = [one["objectDefinition"] for one in of_kind(objects, "Policy")["spec"]["policy-templates"]]
    subscription = of_kind(templates, "OperatorPolicy")["spec"]["subscription"]
    assert subscription["namespace"] == place
    assert subscription["config"]["env"] == [{"name": "KMM_MANAGED", "value": "1"}]


def test_the_legacy_policy_binds_the_agents_account_and_takes_names() -> None:
    objects = legacy_policy(OPENSHIFT, EAST, namespace_name="n")

    assert of_kind(objects, "PlacementRule")["spec"] == {"clusters": [{"name": "east-1"}, {"name": "east-2"}]}
    (template,) = of_kind(objects, "Policy")["spec"]["policy-templates"]
    carried = [one["objectDefinition"] for one in template["objectDefinition"]["spec"]["object-templates"]]
    assert of_kind(carried, "ClusterRoleBinding")["subjects"][0]["name"] == "klusterlet-work-sa"
    assert of_kind(carried, "Subscription")["spec"]["config"]["env"] == [
        {"name": "KMM_MANAGED", "value": "1"}
    ]
    assert of_kind(objects, "PlacementBinding")["placementRef"]["kind"] == "PlacementRule"


def test_a_placement_rule_selects_by_labels_where_no_cluster_is_named() -> None:
    rule = placement_rule(read_selection([], ["tier=edge"], only_openshift=False), namespace="n")

    assert rule["spec"]["clusterSelector"]["matchLabels"] == {"tier": "edge"}


def test_a_policy_whose_copies_would_have_too_long_a_name_is_refused() -> None:
    operator_policy(UPSTREAM, Selection(), namespace_name="n" * 51, cluster_set="global")
    with pytest.raises(UnusableOptions, match="51 characters"):
        operator_policy(UPSTREAM, Selection(), namespace_name="n" * 52, cluster_set="global")


@pytest.mark.parametrize(
    ("clusters", "selectors", "said"),
    [
        (["a"], ["b=c"], "exclude each other"),
        (["East_1"], [], "no name of a ManagedCluster"),
        (['a"] || true'], [], "no name of a ManagedCluster"),
        ([], ["tier"], "write key=value"),
        ([], ["tier=edge,=x"], "write key=value"),
        ([], ["tier=a b"], "write key=value"),
        ([], ["tier=a", "tier=b"], "no cluster has both"),
    ],
)
def test_selections_that_kubernetes_would_refuse_are_refused(
    clusters: list[str], selectors: list[str], said: str
) -> None:
    with pytest.raises(UnusableOptions, match=said):
        read_selection(clusters, selectors, only_openshift=False)


def test_the_operator_alone_is_put_into_managed_mode_and_the_input_stays_as_it_is() -> None:
    given = kmm_manifests()

    objects = managed(given)

    names = {
        item["metadata"]["name"]: item["spec"]["template"]["spec"]["containers"][0]["env"]
        for item in objects
        if item["kind"] == "Deployment"
    }
    wanted = {"name": "KMM_MANAGED", "value": "1"}
    assert wanted in names["kmm-operator-controller"]
    assert wanted not in names["kmm-operator-webhook"]
    assert given == kmm_manifests()


def test_another_managed_mode_is_overruled() -> None:
    given = kmm_manifests()
    (operator,) = [item for item in given if item["metadata"]["name"] == "kmm-operator-controller"][-1:]
    operator["spec"]["template"]["spec"]["containers"][0]["env"].append(
        {"name": "KMM_MANAGED", "value": "false"}
    )

    (done,) = [item for item in managed(given) if item["kind"] == "Deployment"][:1]

    environment = done["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [one["value"] for one in environment if one["name"] == "KMM_MANAGED"] == ["1"]


def test_namespaces_come_first_then_the_agents_rights() -> None:
    kinds = [(item["kind"], item["metadata"]["name"]) for item in managed(kmm_manifests())]

    assert kinds[:3] == [
        ("Namespace", NAMESPACE),
        ("ClusterRole", "open-cluster-management:klusterlet-work:kmm-module-manager"),
        ("ClusterRole", "open-cluster-management:klusterlet-work:kmm-installer"),
    ]
    assert ("Namespace", NAMESPACE) not in kinds[1:]


def test_the_agent_gets_rights_on_what_it_may_not_write_or_delete_and_on_nothing_else() -> None:
    role = installer_role(kmm_manifests())

    assert role is not None
    assert [(rule["apiGroups"], rule["resources"]) for rule in role["rules"]] == [
        (["admissionregistration.k8s.io"], ["validatingwebhookconfigurations"]),
        (["cert-manager.io"], ["issuers"]),
    ]
    assert installer_role([item for item in kmm_manifests() if item["kind"] == "Deployment"]) is None


def test_the_dispatcher_gives_the_same_role() -> None:
    """Two works that disagree about one object would undo each other for ever."""
    manifests = assemble_permissions("east-1", [NAMESPACE])["spec"]["workload"]["manifests"]

    assert of_kind(manifests, "ClusterRole") == agent_role()


@pytest.mark.parametrize(
    ("kind", "plural"),
    [
        ("Issuer", "issuers"),
        ("PriorityClass", "priorityclasses"),
        ("NetworkPolicy", "networkpolicies"),
        ("Gateway", "gateways"),
    ],
)
def test_plurals(kind: str, plural: str) -> None:
    assert plural_of(kind) == plural


def test_what_would_take_modules_with_it_stays_when_kmm_goes() -> None:
    objects = addon(kmm_manifests(), Selection(), namespace_name="kmm-spokes", cluster_set="global")

    carried = of_kind(objects, "AddOnTemplate")["spec"]["agentSpec"]["workload"]["manifests"]
    mark = "addon.open-cluster-management.io/deletion-orphan"
    kept = {item["kind"] for item in carried if mark in (item["metadata"].get("annotations") or {})}
    assert kept == {"Namespace", "CustomResourceDefinition", "ClusterRole"}
    gone = [item["metadata"]["name"] for item in carried if not is_kept(item)]
    assert "kmm-operator-manager-role" in gone


def test_other_manifests_are_another_template() -> None:
    def template(manifests: list[dict[str, Any]]) -> str:
        objects = addon(manifests, Selection(), namespace_name="n", cluster_set="global")
        name = of_kind(objects, "AddOnTemplate")["metadata"]["name"]
        config = of_kind(objects, "ClusterManagementAddOn")["spec"]["supportedConfigs"][0]
        assert config["defaultConfig"] == {"name": name}
        return str(name)

    changed = kmm_manifests()
    changed[1]["metadata"]["labels"] = {"version": "2"}

    assert template(kmm_manifests()) == template(kmm_manifests())
    assert template(changed) != template(kmm_manifests())


def test_named_clusters_get_the_addon_by_hand() -> None:
    objects = addon(kmm_manifests(), EAST, namespace_name="n", cluster_set="global")

    addons = [item["metadata"] for item in objects if item["kind"] == "ManagedClusterAddOn"]
    assert addons == [{"name": "kmm", "namespace": name} for name in EAST.clusters]
    assert of_kind(objects, "ClusterManagementAddOn")["spec"]["installStrategy"] == {"type": "Manual"}
    assert "Placement" not in {item["kind"] for item in objects}


def test_a_work_orphans_what_stays_and_goes_between_modules_and_permissions() -> None:
    (work, _) = works(kmm_manifests(), EAST)

    rules = work["spec"]["deleteOption"]["selectivelyOrphans"]["orphaningRules"]
    assert {"group": "", "resource": "namespaces", "name": NAMESPACE} in rules
    assert {
        "group": "apiextensions.k8s.io",
        "resource": "customresourcedefinitions",
        "name": "modules.kmm.sigs.x-k8s.io",
    } in rules
    assert 0 < int(work["metadata"]["annotations"]["open-cluster-management.io/cleanup-priority"]) < 100


def test_manifests_that_no_work_can_hold_are_refused() -> None:
    big = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "big"},
        "data": {"a": "x" * MAX_MANIFEST_BYTES},
    }
    with pytest.raises(UnusableManifests, match="--method addon"):
        works([*kmm_manifests(), big], EAST)


def test_manifests_of_the_hub_or_without_operator_are_refused() -> None:
    hub = {
        "apiVersion": "v1",
        "kind": "X",
        "metadata": {"name": "managedclustermodules.hub.kmm.sigs.x-k8s.io"},
    }
    with pytest.raises(UnusableManifests, match="KMM's hub"):
        managed([*kmm_manifests(), hub])
    with pytest.raises(UnusableManifests, match="found 0 Deployments"):
        managed([item for item in kmm_manifests() if item["kind"] != "Deployment"])


def test_the_command_prints_a_stream_that_kubectl_takes() -> None:
    text, lines = run("--selector", "tier=edge"), run("--selector", "tier=edge", "-o", "json")

    assert text.exit_code == lines.exit_code == 0
    assert list(yaml.safe_load_all(text.stdout)) == [json.loads(line) for line in lines.stdout.splitlines()]


def test_the_command_reads_manifests_from_standard_input() -> None:
    done = run("--method", "addon", "--manifests", "-", given=yaml.safe_dump_all(kmm_manifests()))

    assert done.exit_code == 0, done.output
    assert "kind: AddOnTemplate" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "addon"], "needs KMM's manifests"),
        (["--method", "manifestwork", "--manifests", "FILE"], "needs the clusters' names"),
        (["--manifests", "FILE"], "OLM on the spokes brings KMM"),
        (["--method", "addon", "--manifests", "FILE", "--openshift"], "--openshift is not for"),
        (["--method", "addon", "--manifests", "/nowhere"], "/nowhere"),
    ],
)
def test_options_that_do_not_go_together_end_with_advice(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    file = tmp_path / "kmm.yaml"
    file.write_text(yaml.safe_dump_all(kmm_manifests()))

    done = run(*(str(file) if argument == "FILE" else argument for argument in arguments))

    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""

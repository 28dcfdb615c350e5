"""The ManifestWork that is posted: its shape, what is taken out, what differs from upstream, and its properties."""

import copy
from typing import Any

import pytest
from fleet_values import (
    BUILD,
    KERNELS,
    NAME,
    SIGN,
    a_cluster,
    container_of,
    digest,
    mappings_of,
    raw_spec,
    shipment,
    without_loader,
    works_of,
)

from services.dispatcher.assemble import (
    OPTIONAL_SPEC_FIELDS,
    Owner,
    Shipment,
    draft_work,
    patch_of,
    pin,
    without_nulls,
)
from services.dispatcher.decide import Create
from shared.domain.artifact import Access
from shared.domain.image import InvalidImageReference
from shared.domain.module import parse_module
from shared.domain.work import HASH_ANNOTATION, IMAGES_ANNOTATION

A, B = KERNELS[:2]
Json = dict[str, Any]
RECIPES = raw_spec(
    {"literal": "other", "containerImage": "r.example/other:1", "build": BUILD, "sign": SIGN},
    {"regexp": ".", "containerImage": "r.example/k:1", "build": BUILD, "sign": SIGN},
    build=BUILD,
    sign=SIGN,
)


def assembled(spec: Json, *shipments: Shipment, uid: str = "uid-m", cluster: str = "c1") -> Json:
    draft = draft_work(owner=Owner(name=NAME, uid=uid), spec=parse_module(spec), shipments=shipments)
    return draft.work_for(cluster)


def hash_of(work: Json) -> str:
    value: str = work["metadata"]["annotations"][HASH_ANNOTATION]
    return value


# --------------------------------------------------------------------------------------------------------------- shape


def test_the_whole_work() -> None:
    paths = [
        f"{part}.{counter}"
        for part in ("devicePlugin", "dra", "moduleLoader")
        for counter in ("availableNumber", "desiredNumber", "nodesMatchingSelectorNumber")
    ]
    work = assembled(RECIPES, shipment(A, 1), shipment(B, 2))
    assert hash_of(work)
    assert work == {
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "ManifestWork",
        "metadata": {
            "name": "m",
            "namespace": "c1",
            "labels": {"kmm.node.kubernetes.io/managedclustermodule.name": "m"},
            "annotations": {
                HASH_ANNOTATION: hash_of(work),
                IMAGES_ANNOTATION: f'{{"{A}":"r.example/k:{A}","{B}":"r.example/k:{B}"}}',
            },
            "ownerReferences": [
                {
                    "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
                    "kind": "ManagedClusterModule",
                    "name": "m",
                    "uid": "uid-m",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "workload": {
                "manifests": [
                    {
                        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1",
                        "kind": "Module",
                        "metadata": {"name": "m", "namespace": "spoke"},
                        "spec": {
                            "selector": {"role": "edge"},
                            "moduleLoader": {
                                "container": {
                                    "modprobe": {"moduleName": "kmod", "dirName": "/opt"},
                                    "kernelMappings": [
                                        {"literal": A, "containerImage": f"r.example/k@{digest(1)}"},
                                        {"literal": B, "containerImage": f"r.example/k@{digest(2)}"},
                                    ],
                                }
                            },
                        },
                    }
                ]
            },
            "manifestConfigs": [
                {
                    "resourceIdentifier": {
                        "group": "kmm.sigs.x-k8s.io",
                        "resource": "modules",
                        "name": "m",
                        "namespace": "spoke",
                    },
                    "feedbackRules": [
                        {
                            "type": "JSONPaths",
                            "jsonPaths": [{"name": path, "path": f".status.{path}"} for path in paths],
                        }
                    ],
                }
            ],
        },
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("containerImage", "r.example/k:${KERNEL_XYZ}"),
        ("registryTLS", {"insecure": True}),
        ("imagePullPolicy", "Always"),
        ("version", "1.2"),
        ("inTreeModulesToRemove", ["old"]),
    ],
)
def test_fields_of_the_container_stay_as_written(field: str, value: Any) -> None:
    assert container_of(assembled(raw_spec(**{field: value}), shipment(A)))[field] == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("imageRepoSecret", {"name": "pull"}),
        ("tolerations", [{"key": "k", "operator": "Exists"}]),
        ("imageRebuildTriggerGeneration", 3),
        ("devicePlugin", {"container": {"image": "r.example/plugin:1"}}),
        ("dra", {"driverName": "d.example", "container": {"image": "r.example/dra:1"}}),
        ("aFieldOfTomorrow", {"x": [1, {"y": "z"}]}),
    ],
)
def test_fields_of_the_module_stay_as_written(field: str, value: Any) -> None:
    work = assembled(raw_spec(module={field: value}), shipment(A))
    assert work["spec"]["workload"]["manifests"][0]["spec"][field] == value


@pytest.mark.parametrize(
    ("written", "shipped"),
    [
        pytest.param(
            {"moduleName": "k"}, {"moduleName": "k", "dirName": "/opt"}, id="default-is-spelled-out"
        ),
        pytest.param({"moduleName": "k", "dirName": "/x"}, {"moduleName": "k", "dirName": "/x"}, id="kept"),
        pytest.param(
            {"moduleName": "k", "args": None}, {"moduleName": "k", "dirName": "/opt"}, id="null-is-absent"
        ),
    ],
)
def test_modprobe(written: Json, shipped: Json) -> None:
    """The agent compares with the stored Module at each resync: a default that is missing would differ for ever."""
    assert container_of(assembled(raw_spec(modprobe=written), shipment(A)))["modprobe"] == shipped


# ---------------------------------------------------------------------------------------------- what each mapping says


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param(
            {"in_tree_modules_to_remove": ("x", "z")}, {"inTreeModulesToRemove": ["x", "z"]}, id="in-tree"
        ),
        pytest.param(
            {"in_tree_modules_to_remove": ()}, {"inTreeModulesToRemove": []}, id="empty-list-overrides"
        ),
        pytest.param(
            {"tls": Access(insecure=True)},
            {"registryTLS": {"insecure": True, "insecureSkipTLSVerify": False}},
            id="upstream-loses-insecure",
        ),
        pytest.param(
            {"tls": Access(skip_tls_verify=True)},
            {"registryTLS": {"insecure": False, "insecureSkipTLSVerify": True}},
            id="upstream-loses-skip-verify",
        ),
    ],
)
def test_what_travels_in_a_mapping(fields: Json, expected: Json) -> None:
    (mapping,) = mappings_of(assembled(raw_spec(), shipment(A, **fields)))
    assert mapping == {"literal": A, "containerImage": f"r.example/k@{digest(1)}", **expected}


def test_the_deprecated_in_tree_field_of_the_container_is_not_shipped() -> None:
    """KMM's webhook on the spoke refuses it beside the list in the mappings."""
    decision = works_of(raw_spec(inTreeModuleToRemove="old"), [a_cluster(A)])["c1"]
    assert isinstance(decision, Create)
    assert "inTreeModuleToRemove" not in container_of(decision.work)
    assert mappings_of(decision.work)[0]["inTreeModulesToRemove"] == ["old"]


def test_a_mapping_that_is_stricter_than_the_container_stays_so_on_the_spoke() -> None:
    """A mapping's registryTLS replaces the container's as a whole (KMM API); the spoke applies the same rule."""
    spec = raw_spec(
        {"regexp": ".", "containerImage": "r.example/k:1", "registryTLS": {"insecure": False}},
        registryTLS={"insecure": True},
    )
    decision = works_of(spec, [a_cluster(A)])["c1"]
    assert isinstance(decision, Create)
    assert container_of(decision.work)["registryTLS"] == {"insecure": True}
    assert mappings_of(decision.work)[0]["registryTLS"]["insecure"] is False


def test_every_tag_that_was_pinned_is_kept_when_two_stand_for_one_digest() -> None:
    work = assembled(raw_spec(), shipment(A, 1), shipment(B, 1))
    kept = work["metadata"]["annotations"][IMAGES_ANNOTATION]
    assert f"r.example/k:{A}" in kept
    assert f"r.example/k:{B}" in kept


@pytest.mark.parametrize(
    ("tag", "pinned"),
    [
        ("r.example:5000/a/b:1.2.3-x", "r.example:5000/a/b@" + digest(1)),
        ("name", "name@" + digest(1)),
        ("docker.io/library/name:latest", "docker.io/library/name@" + digest(1)),
        ("r.example/a@" + digest(2), "r.example/a@" + digest(2)),
        ("r.example/a:t@" + digest(2), "r.example/a:t@" + digest(2)),
    ],
)
def test_pin_keeps_host_port_and_name(tag: str, pinned: str) -> None:
    assert pin(tag, digest(1)) == pinned


def test_pin_refuses_what_is_no_image() -> None:
    with pytest.raises(InvalidImageReference, match="UPPER"):
        pin("r.example/UPPER:1", digest(1))


# ----------------------------------------------------------------------------------------------------- hash and patch

BASE = assembled(raw_spec(), shipment(A, 1))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(assembled(raw_spec(), shipment(A, 2)), id="digest"),
        pytest.param(assembled(raw_spec(), shipment(A, 1), shipment(B, 1)), id="kernel"),
        pytest.param(assembled(raw_spec(version="2"), shipment(A, 1)), id="spec"),
        pytest.param(assembled({**raw_spec(), "spokeNamespace": "other"}, shipment(A, 1)), id="namespace"),
        pytest.param(assembled(raw_spec(), shipment(A, 1), uid="uid-2"), id="owner"),
        pytest.param(
            assembled(
                raw_spec(), Shipment(resolution=shipment(A).resolution, image=shipment(A).image, tag="r/t:2")
            ),
            id="tag-of-the-same-digest",
        ),
    ],
)
def test_the_hash_changes_with_whatever_is_shipped(changed: Json) -> None:
    assert hash_of(changed) != hash_of(BASE)


@pytest.mark.parametrize(
    "same",
    [
        pytest.param(
            assembled({**raw_spec(), "selector": {"a": "b"}}, shipment(A, 1)), id="selector-of-clusters"
        ),
        pytest.param(
            assembled(raw_spec(build=BUILD, sign=SIGN), shipment(A, 1)), id="recipes-are-not-shipped"
        ),
        pytest.param(assembled(raw_spec(module={"devicePlugin": None}), shipment(A, 1)), id="null-is-absent"),
        pytest.param(assembled(raw_spec(), shipment(A, 1), cluster="c2"), id="cluster"),
    ],
)
def test_the_hash_does_not_change_with_what_is_not_shipped(same: Json) -> None:
    assert hash_of(same) == hash_of(BASE)


def test_a_patch_carries_the_uid_and_removes_what_we_never_set() -> None:
    patch = patch_of(BASE, uid="uid-w")
    assert patch["metadata"]["uid"] == "uid-w"
    assert set(OPTIONAL_SPEC_FIELDS) == {"deleteOption", "executor"}
    assert patch["spec"] == {"deleteOption": None, "executor": None, **BASE["spec"]}
    assert {name: patch["metadata"][name] for name in ("labels", "annotations", "ownerReferences")} == {
        name: BASE["metadata"][name] for name in ("labels", "annotations", "ownerReferences")
    }
    assert "name" not in patch["metadata"]
    assert "resourceVersion" not in patch["metadata"]


def test_nulls_are_dropped_at_any_depth_and_only_they() -> None:
    value = {"a": None, "b": [{"c": None, "d": 0}, False, ""], "e": {"f": None}}
    before = copy.deepcopy(value)
    assert without_nulls(value) == {"b": [{"d": 0}, False, ""], "e": {}}
    assert value == before


def test_a_label_called_build_is_no_recipe() -> None:
    work = assembled(without_loader(selector={"build": "yes", "sign": "no"}))
    assert work["spec"]["workload"]["manifests"][0]["spec"]["selector"] == {"build": "yes", "sign": "no"}

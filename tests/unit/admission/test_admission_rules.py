"""Each rule of KMM's webhook, the ones that it misses, and what must not be refused."""

from typing import Any

import pytest
from modules import ABSENT, ALLOWED, CONTAINER, MAPPING, SPEC, Json, changed

from shared.domain.admission import validate, validate_update, warnings

SIGN = {"keySecret": {"name": "k"}, "certSecret": {"name": "c"}, "filesToSign": ["/opt/a.ko"]}
PLUGIN = {"container": {"image": "i:t"}}
DRA = {**PLUGIN, "driverName": "gpu.example.com"}


def toleration(**fields: Any) -> Json:
    return {f"{SPEC}.tolerations": [fields]}


def host_path(path: str, of: str = "devicePlugin") -> Json:
    return {f"{SPEC}.{of}": {**DRA, "volumes": [{"name": "v", "hostPath": {"path": path}}]}}


REFUSED: list[tuple[str, Json, str, str]] = [
    # what upstream's webhook refuses
    ("key", toleration(key="a b", operator="Exists"), f"{SPEC}.tolerations[0].key", "Invalid"),
    ("key-two-slashes", toleration(key="a/b/c", operator="Exists"), f"{SPEC}.tolerations[0].key", "Invalid"),
    ("key-no-prefix", toleration(key="/c", operator="Exists"), f"{SPEC}.tolerations[0].key", "Invalid"),
    ("key-too-long", toleration(key="a" * 64, operator="Exists"), f"{SPEC}.tolerations[0].key", "Invalid"),
    ("no-key", toleration(value="v"), f"{SPEC}.tolerations[0].operator", "Required"),
    ("operator", toleration(key="k", operator="In"), f"{SPEC}.tolerations[0].operator", "NotSupported"),
    (
        "exists-value",
        toleration(key="k", operator="Exists", value="v"),
        f"{SPEC}.tolerations[0].value",
        "Forbidden",
    ),
    ("value", toleration(key="k", value="a b"), f"{SPEC}.tolerations[0].value", "Invalid"),
    ("effect", toleration(key="k", effect="No"), f"{SPEC}.tolerations[0].effect", "NotSupported"),
    ("seconds", toleration(key="k", tolerationSeconds=0), f"{SPEC}.tolerations[0].effect", "Invalid"),
    ("driver", {f"{SPEC}.dra": {**DRA, "driverName": "Not_Valid"}}, f"{SPEC}.dra.driverName", "Invalid"),
    ("driver-long", {f"{SPEC}.dra": {**DRA, "driverName": "a" * 254}}, f"{SPEC}.dra.driverName", "Invalid"),
    ("driver-empty", {f"{SPEC}.dra": {**DRA, "driverName": ""}}, f"{SPEC}.dra.driverName", "Required"),
    (
        "class-twice",
        {f"{SPEC}.dra": {**DRA, "deviceClasses": [{"name": "a"}, {"name": "a"}]}},
        f"{SPEC}.dra.deviceClasses[1].name",
        "Duplicate",
    ),
    (
        "class-empty",
        {f"{SPEC}.dra": {**DRA, "deviceClasses": [{"name": ""}]}},
        f"{SPEC}.dra.deviceClasses[0].name",
        "Required",
    ),
    (
        "class-name",
        {f"{SPEC}.dra": {**DRA, "deviceClasses": [{"name": "A"}]}},
        f"{SPEC}.dra.deviceClasses[0].name",
        "Invalid",
    ),
    ("two-plugins", {f"{SPEC}.dra": DRA, f"{SPEC}.devicePlugin": PLUGIN}, f"{SPEC}.dra", "Forbidden"),
    ("path", host_path("/etc"), f"{SPEC}.devicePlugin.volumes[0].hostPath.path", "Forbidden"),
    ("path-prefix", host_path("/devious"), f"{SPEC}.devicePlugin.volumes[0].hostPath.path", "Forbidden"),
    ("path-up", host_path("/dev/../etc"), f"{SPEC}.devicePlugin.volumes[0].hostPath.path", "Forbidden"),
    ("path-relative", host_path("dev"), f"{SPEC}.devicePlugin.volumes[0].hostPath.path", "Forbidden"),
    ("path-empty", host_path(""), f"{SPEC}.devicePlugin.volumes[0].hostPath.path", "Forbidden"),
    ("path-dra", host_path("/etc", of="dra"), f"{SPEC}.dra.volumes[0].hostPath.path", "Forbidden"),
    ("image", {f"{MAPPING}.containerImage": "image-url"}, f"{MAPPING}.containerImage", "Invalid"),
    ("image-above", {f"{CONTAINER}.containerImage": "image-url"}, f"{CONTAINER}.containerImage", "Invalid"),
    ("image-missing", {f"{MAPPING}.containerImage": ""}, f"{MAPPING}.containerImage", "Required"),
    ("both", {f"{MAPPING}.literal": "5.1.1"}, f"{MAPPING}.regexp", "Forbidden"),
    ("neither", {f"{MAPPING}.regexp": ""}, f"{MAPPING}.regexp", "Required"),
    ("pattern", {f"{MAPPING}.regexp": "*-invalid"}, f"{MAPPING}.regexp", "Invalid"),
    ("look-ahead", {f"{MAPPING}.regexp": "(?=5)"}, f"{MAPPING}.regexp", "Invalid"),
    (
        "in-tree-container",
        {f"{CONTAINER}.inTreeModuleToRemove": "x", f"{CONTAINER}.inTreeModulesToRemove": []},
        f"{CONTAINER}.inTreeModuleToRemove",
        "Forbidden",
    ),
    (
        "in-tree-mapping",
        {f"{MAPPING}.inTreeModuleToRemove": "x", f"{MAPPING}.inTreeModulesToRemove": ["y"]},
        f"{MAPPING}.inTreeModuleToRemove",
        "Forbidden",
    ),
    (
        "in-tree-above",
        {f"{CONTAINER}.inTreeModuleToRemove": "x", f"{MAPPING}.inTreeModulesToRemove": []},
        f"{MAPPING}.inTreeModulesToRemove",
        "Forbidden",
    ),
    (
        "in-tree-below",
        {f"{CONTAINER}.inTreeModulesToRemove": ["x"], f"{MAPPING}.inTreeModuleToRemove": "y"},
        f"{MAPPING}.inTreeModuleToRemove",
        "Forbidden",
    ),
    ("modprobe", {f"{CONTAINER}.modprobe": {}}, f"{CONTAINER}.modprobe.moduleName", "Required"),
    (
        "raw-load-only",
        {f"{CONTAINER}.modprobe": {"rawArgs": {"load": ["a"]}}},
        f"{CONTAINER}.modprobe.moduleName",
        "Required",
    ),
    (
        "raw-and-name",
        {f"{CONTAINER}.modprobe.rawArgs": {"unload": ["a"]}},
        f"{CONTAINER}.modprobe.rawArgs",
        "Forbidden",
    ),
    (
        "order-one",
        {f"{CONTAINER}.modprobe.modulesLoadingOrder": ["kmod"]},
        f"{CONTAINER}.modprobe.modulesLoadingOrder",
        "Invalid",
    ),
    (
        "order-empty",
        {f"{CONTAINER}.modprobe.modulesLoadingOrder": []},
        f"{CONTAINER}.modprobe.modulesLoadingOrder",
        "Invalid",
    ),
    (
        "order-first",
        {f"{CONTAINER}.modprobe.modulesLoadingOrder": ["x", "kmod"]},
        f"{CONTAINER}.modprobe.modulesLoadingOrder",
        "Invalid",
    ),
    (
        "order-twice",
        {f"{CONTAINER}.modprobe.modulesLoadingOrder": ["kmod", "x", "x"]},
        f"{CONTAINER}.modprobe.modulesLoadingOrder[2]",
        "Duplicate",
    ),
    (
        "order-no-name",
        {
            f"{CONTAINER}.modprobe": {
                "rawArgs": {"load": ["a"], "unload": ["b"]},
                "modulesLoadingOrder": ["a", "b"],
            }
        },
        f"{CONTAINER}.modprobe.modulesLoadingOrder",
        "Forbidden",
    ),
    (
        "no-files",
        {f"{CONTAINER}.sign": {**SIGN, "filesToSign": []}},
        f"{CONTAINER}.sign.filesToSign",
        "Required",
    ),
    (
        "files-elsewhere",
        {f"{MAPPING}.sign": {**SIGN, "filesToSign": ["/opt/a.ko", "/optional/a.ko"]}},
        f"{MAPPING}.sign.filesToSign[1]",
        "Invalid",
    ),
    (
        "files-default-directory",
        {f"{CONTAINER}.modprobe.dirName": ABSENT, f"{MAPPING}.sign": {**SIGN, "filesToSign": ["/lib/a.ko"]}},
        f"{MAPPING}.sign.filesToSign[0]",
        "Invalid",
    ),
    # what upstream's webhook misses
    ("port", {f"{MAPPING}.containerImage": "registry:5000/image"}, f"{MAPPING}.containerImage", "Invalid"),
    (
        "port-template",
        {f"{MAPPING}.containerImage": "registry:5000/${MOD_NAMESPACE}/image"},
        f"{MAPPING}.containerImage",
        "Invalid",
    ),
    (
        "port-default",
        {f"{MAPPING}.containerImage": "registry:5000/image${NOPE:-x}"},
        f"{MAPPING}.containerImage",
        "Invalid",
    ),
    ("names", {"metadata.name": "m" * 21, "spec.spokeNamespace": "s" * 21}, "metadata.name", "TooLong"),
    (
        "generated-name",
        {"metadata": {"generateName": "m" * 16}, "spec.spokeNamespace": "s" * 21},
        "metadata.name",
        "TooLong",
    ),
    ("namespace", {"spec.spokeNamespace": "Not.A.Label"}, "spec.spokeNamespace", "Invalid"),
    ("namespace-empty", {"spec.spokeNamespace": ""}, "spec.spokeNamespace", "Required"),
    ("pattern-long", {f"{MAPPING}.regexp": "5" * 1025}, f"{MAPPING}.regexp", "Invalid"),
]


@pytest.mark.parametrize(
    ("changes", "path", "reason"), [pytest.param(*one[1:], id=one[0]) for one in REFUSED]
)
def test_one_thing_is_wrong_and_is_named(changes: Json, path: str, reason: str) -> None:
    (violation,) = validate(changed(changes))
    assert (violation.path, violation.reason) == (path, f"FieldValue{reason}")
    assert violation.message


ALLOWED_CHANGES: dict[str, Json] = {
    "as-it-is": {},
    "only-metadata": {"spec": ABSENT},
    "no-module-spec": {f"{SPEC}": ABSENT},
    "nulls": {f"{SPEC}.moduleLoader": None, f"{SPEC}.devicePlugin": None},
    "all-clusters": {"spec.selector": {}},
    "plugin-alone": {f"{SPEC}.moduleLoader": ABSENT, f"{SPEC}.devicePlugin": PLUGIN},
    "41-characters": {"metadata.name": "m" * 20, "spec.spokeNamespace": "s" * 21},
    "tolerate-all": toleration(operator="Exists"),
    "tolerate-seconds": toleration(key="example.com/k", value="v", effect="NoExecute", tolerationSeconds=5),
    "tolerate-empty-value": toleration(key="k"),
    "path-slashes": host_path("/sys//class"),
    "path-run": host_path("/run"),
    "path-up-and-down": host_path("/etc/../var/lib"),
    "path-above-root": host_path("/../dev"),
    "digest": {f"{MAPPING}.containerImage": "image-url@sha256:xxxxxxxxxxxx"},
    "port-and-tag": {f"{MAPPING}.containerImage": "registry:5000/image:${KERNEL_FULL_VERSION}"},
    "template-with-slash": {f"{MAPPING}.containerImage": "${NOPE:-r.example/x}/k:t"},
    "template-for-tag": {f"{MAPPING}.containerImage": "r.example/k:${NOPE:-a/b}"},
    "template-with-tag": {f"{MAPPING}.containerImage": "r.example/k${NOPE:-:t}"},
    "template-broken": {f"{MAPPING}.containerImage": "some image:${KERNEL_XYZ"},
    "no-reference": {f"{MAPPING}.containerImage": "Some Image:t"},
    "image-inherited": {f"{MAPPING}.containerImage": "", f"{CONTAINER}.containerImage": "i:t"},
    "empty-regexp-beside-literal": {f"{MAPPING}.literal": "any-value", f"{MAPPING}.regexp": ""},
    "raw": {f"{CONTAINER}.modprobe": {"rawArgs": {"load": ["a"], "unload": ["b"]}}},
    "raw-empty-and-name": {f"{CONTAINER}.modprobe.rawArgs": {}},
    "order": {f"{CONTAINER}.modprobe.modulesLoadingOrder": ["kmod", "x"]},
    "order-null": {f"{CONTAINER}.modprobe.modulesLoadingOrder": None},
    "in-tree-deprecated": {f"{CONTAINER}.inTreeModuleToRemove": "x"},
    "in-tree-both-new": {f"{CONTAINER}.inTreeModulesToRemove": ["x"], f"{MAPPING}.inTreeModulesToRemove": []},
    "in-tree-empty-text": {
        f"{CONTAINER}.inTreeModulesToRemove": ["x"],
        f"{MAPPING}.inTreeModuleToRemove": "",
    },
    "sign-alone": {f"{MAPPING}.sign": SIGN},
    "sign-template": {f"{MAPPING}.sign": {**SIGN, "filesToSign": ["/opt/${KERNEL_VERSION}/*.ko"]}},
    "class-names": {f"{SPEC}.dra": {**DRA, "deviceClasses": [{"name": "a"}, {"name": "b"}]}},
    "unused-images": {f"{SPEC}.devicePlugin": {"container": {"image": "untagged"}}},
}


@pytest.mark.parametrize("changes", ALLOWED_CHANGES.values(), ids=ALLOWED_CHANGES)
def test_what_upstream_allows_is_allowed(changes: Json) -> None:
    assert validate(changed(changes)) == ()


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = validate(
        changed(
            {
                "metadata.name": "m" * 60,
                **toleration(key="a b", operator="Exists"),
                f"{MAPPING}.regexp": "(",
                f"{MAPPING}.containerImage": "x",
                f"{CONTAINER}.modprobe": {},
            }
        )
    )
    assert len(found) == 5
    assert len({violation.path for violation in found}) == 5


@pytest.mark.parametrize(
    ("old", "new", "is_allowed"),
    [("", "", True), ("v1", "v2", True), ("", "v2", False), ("v1", "", False), (None, "v1", False)],
)
def test_a_version_neither_comes_nor_goes(old: str | None, new: str, is_allowed: bool) -> None:
    field, image = f"{CONTAINER}.version", f"{MAPPING}.containerImage"
    before, after = changed({field: old}), changed({field: new, image: "other:t"})
    assert [found.path for found in validate_update(after, before)] == ([] if is_allowed else [field])


def test_an_update_is_judged_as_a_whole() -> None:
    (found,) = validate_update(changed({f"{MAPPING}.regexp": "("}), ALLOWED)
    assert found.path == f"{MAPPING}.regexp"


def test_a_loader_may_come_and_go() -> None:
    without = changed({f"{SPEC}.moduleLoader": ABSENT, f"{SPEC}.devicePlugin": PLUGIN})
    versioned = changed({f"{CONTAINER}.version": "v1"})
    assert validate_update(without, versioned) == ()
    assert validate_update(versioned, without) == ()


def test_a_module_from_before_a_rule_can_lose_its_finalizers() -> None:
    stored = changed({"metadata.name": "m" * 60})
    labelled = changed({"metadata.name": "m" * 60, "metadata.labels": {"a": "b"}})
    assert validate(stored) != ()
    assert validate_update(labelled, stored) == ()
    going = changed({f"{MAPPING}.regexp": "(", "metadata.deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert validate_update(going, ALLOWED) == ()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({SPEC: ABSENT}, SPEC),
        ({f"{MAPPING}.containerImage": "Some Image:t"}, f"{MAPPING}.containerImage"),
        ({f"{MAPPING}.containerImage": "image:${NOPE}"}, f"{MAPPING}.containerImage"),
        ({f"{MAPPING}.sign": SIGN}, f"{MAPPING}.sign.unsignedImage"),
        ({f"{MAPPING}.sign": {**SIGN, "unsignedImage": "A:t"}}, f"{MAPPING}.sign.unsignedImage"),
        ({f"{MAPPING}.literal": "5.1.1+", f"{MAPPING}.regexp": ABSENT}, f"{MAPPING}.literal"),
    ],
)
def test_what_cannot_work_is_warned_of(changes: Json, path: str) -> None:
    module = changed(changes)
    assert validate(module) == ()
    assert [found.path for found in warnings(module)] == [path]


def test_a_module_that_works_has_no_warnings() -> None:
    build = {"dockerfileConfigMap": {"name": "d"}}
    assert warnings(ALLOWED) == ()
    assert warnings(changed({f"{CONTAINER}.build": build, f"{MAPPING}.sign": SIGN})) == ()
    assert warnings(changed({f"{MAPPING}.sign": {**SIGN, "unsignedImage": "u:${KERNEL_XYZ}"}})) == ()

"""Where the CRD and the domain's rules differ on purpose, and which updates they refuse."""

from typing import Any, NamedTuple

from admission_cases import (
    AT_LOADER,
    AT_MAPPING,
    AT_MODPROBE,
    LOADER,
    MAPPING,
    Refusal,
    classes,
    loading,
    mounting,
    named,
    of,
    signing,
    without_module_spec,
)
from crd_samples import IMAGE, PLUGIN, SMALL_SPEC, changed, managed_cluster_module

LEFT_TO_THE_WEBHOOK = {
    "a way up that leaves /dev": mounting("devicePlugin", "/dev/../etc"),
    "a way up from the root": mounting("dra", "/../etc"),
    "a way up from nowhere": mounting("dra", "../dev"),
    "an image whose one colon is a template's": of(f"{MAPPING}.containerImage", "r.example/i${TAG:-1}"),
    "a pattern that takes too much memory": of(f"{MAPPING}.regexp", r"\pL{1000}"),
    "an image with a template behind the port": of(f"{MAPPING}.containerImage", "r:5000${TAG}/i"),
}
"""Objects that the CRD alone accepts."""


def _with_many(path: str, entry: Any, count: int) -> dict[str, Any]:
    return of(path, [entry] * count)


_LONG = "a" * 2048
BOUNDS = (
    Refusal(
        "mappings",
        _with_many(f"{LOADER}.kernelMappings", {"literal": "k", "containerImage": IMAGE}, 1025),
        f"{AT_LOADER}.kernelMappings",
        "at most 1024",
    ),
    Refusal("files", signing(LOADER, *["/opt/a.ko"] * 129), f"{AT_LOADER}.sign.filesToSign", "at most 128"),
    Refusal(
        "a mapping's files",
        signing(MAPPING, *["/opt/a.ko"] * 129),
        f"{AT_MAPPING}.sign.filesToSign",
        "at most 128",
    ),
    Refusal(
        "directory", of(f"{LOADER}.modprobe.dirName", "/" + "d" * 128), f"{AT_MODPROBE}.dirName", "than 128"
    ),
    Refusal("module's name", loading(moduleName="m" * 257), f"{AT_MODPROBE}.moduleName", "than 256"),
    Refusal(
        "loading order",
        loading(moduleName="0", modulesLoadingOrder=[str(one) for one in range(129)]),
        f"{AT_MODPROBE}.modulesLoadingOrder",
        "at most 128",
    ),
    Refusal(
        "entry of the loading order",
        loading(moduleName="m", modulesLoadingOrder=["m", "n" * 257]),
        f"{AT_MODPROBE}.modulesLoadingOrder[1]",
        "than 256",
    ),
    Refusal(
        "image",
        of(f"{LOADER}.containerImage", f"r.example/{_LONG}:1"),
        f"{AT_LOADER}.containerImage",
        "than 2048",
    ),
    Refusal(
        "tolerations",
        _with_many("tolerations", {"operator": "Exists"}, 1025),
        "spec.moduleSpec.tolerations",
        "at most 1024",
    ),
    Refusal(
        "device classes",
        classes(*[f"c{one}" for one in range(257)]),
        "spec.moduleSpec.dra.deviceClasses",
        "at most 256",
    ),
    Refusal(
        "volumes",
        of("devicePlugin", PLUGIN | {"volumes": [{"name": "v", "emptyDir": {}}] * 257}),
        "spec.moduleSpec.devicePlugin.volumes",
        "at most 256",
    ),
    Refusal(
        "host path",
        mounting("dra", f"/dev/{_LONG}{_LONG}"),
        "spec.moduleSpec.dra.volumes[0].hostPath.path",
        "than 4096",
    ),
)
"""Objects that the CRD alone refuses: wider than anything seen, and too much for CEL's budget."""


class Update(NamedTuple):
    """An object that is replaced by another one; `says` is empty if that is allowed."""

    title: str
    old: dict[str, Any]
    new: dict[str, Any]
    says: str = ""


def versions(title: str, old: str | None, new: str | None, says: str = "") -> Update:
    """An update of the version; None is none."""
    before, after = (
        SMALL_SPEC if version is None else changed(f"{LOADER}.version", version, SMALL_SPEC)
        for version in (old, new)
    )
    return Update(title, managed_cluster_module(before), managed_cluster_module(after), says)


_VERSIONED = changed(f"{LOADER}.version", "1", SMALL_SPEC)
_NO_LOADER = {"selector": {}, "devicePlugin": PLUGIN}
_FIXED = "version cannot be added to or removed"
UPDATES = (
    versions("another version", "1", "2"),
    versions("no version", None, None),
    versions("none becomes empty", None, ""),
    versions("a version comes", None, "1", _FIXED),
    versions("an empty one becomes one", "", "1", _FIXED),
    versions("a version goes", "1", None, _FIXED),
    versions("a version becomes empty", "1", "", _FIXED),
    Update(
        "a version comes with the loader",
        managed_cluster_module(_NO_LOADER),
        managed_cluster_module(_VERSIONED),
    ),
    Update(
        "a version goes with the loader",
        managed_cluster_module(_VERSIONED),
        managed_cluster_module(_NO_LOADER),
    ),
    Update("a version goes with all", managed_cluster_module(_VERSIONED), without_module_spec()),
    Update(
        "what is wrong stays wrong",
        managed_cluster_module(SMALL_SPEC),
        of(f"{MAPPING}.literal", "k"),
        "exactly one",
    ),
    Update("the namespace gets too long", named("u" * 30, "kmm"), named("u" * 30, "n" * 12), "41 characters"),
)

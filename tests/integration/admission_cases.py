"""What admission accepts and refuses, rule by rule; the CRD and the domain's rules are held to one table."""

from copy import deepcopy
from typing import Any, NamedTuple

from crd_samples import DRA, IMAGE, PLUGIN, RAW_SPEC, RICH_SPEC, SMALL_SPEC, changed, managed_cluster_module

LOADER = "moduleLoader.container"
MAPPING = f"{LOADER}.kernelMappings.0"
SIGN = {"keySecret": {"name": "k"}, "certSecret": {"name": "c"}, "filesToSign": ["/opt/a.ko"]}
LONG_NAME = ".".join(["a" * 62] * 4) + "a"  # 252 characters
AT_MAPPING = "spec.moduleSpec.moduleLoader.container.kernelMappings[0]"
AT_LOADER = "spec.moduleSpec.moduleLoader.container"
AT_MODPROBE = f"{AT_LOADER}.modprobe"


class Refusal(NamedTuple):
    """An object that is refused, for one reason."""

    title: str
    manifest: dict[str, Any]
    field: str
    says: str


def of(path: str, value: Any, spec: dict[str, Any] = SMALL_SPEC) -> dict[str, Any]:
    """A module of the small spec with one field set."""
    return managed_cluster_module(changed(path, value, spec))


def tolerating(**toleration: Any) -> dict[str, Any]:
    return of("tolerations", [toleration])


def mounting(owner: str, path: str) -> dict[str, Any]:
    part = {"dra": DRA, "devicePlugin": PLUGIN}[owner]
    return of(owner, part | {"volumes": [{"name": "v", "hostPath": {"path": path}}]})


def signing(at: str, *files: str, directory: str = "/opt") -> dict[str, Any]:
    spec = changed(f"{LOADER}.modprobe.dirName", directory, SMALL_SPEC)
    return of(f"{at}.sign", SIGN | {"filesToSign": list(files)}, spec)


def loading(**modprobe: Any) -> dict[str, Any]:
    return of(f"{LOADER}.modprobe", modprobe)


def removing(container: dict[str, Any], mapping: dict[str, Any]) -> dict[str, Any]:
    spec = deepcopy(SMALL_SPEC)
    spec["moduleLoader"]["container"] |= container
    spec["moduleLoader"]["container"]["kernelMappings"][0] |= mapping
    return managed_cluster_module(spec)


def classes(*names: str) -> dict[str, Any]:
    return of("dra", DRA | {"deviceClasses": [{"name": name} for name in names]})


def named(name: str, namespace: str) -> dict[str, Any]:
    manifest = managed_cluster_module(SMALL_SPEC)
    manifest["metadata"]["name"] = name
    manifest["spec"]["spokeNamespace"] = namespace
    return manifest


def without_module_spec() -> dict[str, Any]:
    manifest = managed_cluster_module(SMALL_SPEC)
    del manifest["spec"]["moduleSpec"]
    return manifest


ACCEPTED: dict[str, dict[str, Any]] = {
    "small": managed_cluster_module(SMALL_SPEC),
    "rich": managed_cluster_module(RICH_SPEC),
    "raw arguments": managed_cluster_module(RAW_SPEC),
    "no module spec": without_module_spec(),
    "nothing to run": managed_cluster_module({"selector": {}}),
    "device plugin alone": managed_cluster_module({"selector": {}, "devicePlugin": PLUGIN}),
    "driver alone": managed_cluster_module({"selector": {}, "dra": DRA}),
    "41 characters of names": named("m" * 38, "kmm"),
    "one letter each": named("m", "k"),
    "namespace of digits": named("m", "2024-01"),
    # Tolerations
    "everything tolerated": tolerating(operator="Exists"),
    "a key without an operator": tolerating(key="gpu", value="yes"),
    "an empty operator": tolerating(key="gpu", operator="", value="", effect=""),
    "a key with a DNS name": tolerating(
        key="example.com/a_B.c", operator="Exists", effect="PreferNoSchedule"
    ),
    "the longest key": tolerating(key=f"{LONG_NAME}a/{'k' * 63}", operator="Exists"),
    "the longest value": tolerating(key="gpu", operator="Equal", value="v" * 63),
    "seconds with NoExecute": tolerating(
        key="k", operator="Equal", value="v", effect="NoExecute", tolerationSeconds=-1
    ),
    # Plugins
    "the longest driver name": of("dra", DRA | {"driverName": f"{LONG_NAME}a"}),
    "two classes": classes("a", "b"),
    **{
        f"{owner} mounts {path}": mounting(owner, path)
        for owner in ("devicePlugin", "dra")
        for path in (
            "/dev",
            "/sys/",
            "/var/lib/kubelet",
            "/opt/x",
            "/run",
            "//dev",
            "/./run/./x",
            "/sys//class",
        )
    },
    "a way up that stays below /dev": mounting("devicePlugin", "/dev/x/../y"),
    "a way up that arrives below /dev": mounting("devicePlugin", "/etc/../dev"),
    "two dots in a name": mounting("devicePlugin", "/dev/a..b"),
    # Mappings
    "an empty literal beside a regexp": of(f"{MAPPING}.literal", ""),
    "what RE2 knows": of(f"{MAPPING}.regexp", r"(?i)^\d+\.[[:digit:]]+\Q.\E(?:a|b){2,3}$"),
    "a name twice in a regexp": of(f"{MAPPING}.regexp", "(?P<n>a)(?P<n>b)"),
    "a regexp in another script": of(f"{MAPPING}.regexp", "ядро"),
    "the container's image": of(
        f"{MAPPING}.containerImage", "", changed(f"{LOADER}.containerImage", IMAGE, SMALL_SPEC)
    ),
    **{
        f"the image {image}": of(f"{MAPPING}.containerImage", image)
        for image in (
            "i:t",
            "registry.example:5000/team/module:1.0",
            f"registry.example:5000/team/module@sha256:{'0' * 64}",
            "registry.example/simple:${KERNEL_FULL_VERSION}",
            "registry.example/${MOD_NAME:-simple}:v1",
        )
    },
    # In-tree modules
    "lists on both levels": removing({"inTreeModulesToRemove": ["a"]}, {"inTreeModulesToRemove": []}),
    "single ones on both levels": removing({"inTreeModuleToRemove": "a"}, {"inTreeModuleToRemove": "b"}),
    "an empty single one beside a list": removing(
        {"inTreeModuleToRemove": "", "inTreeModulesToRemove": ["a"]}, {"inTreeModuleToRemove": ""}
    ),
    # modprobe
    "an empty name and raw arguments": loading(moduleName="", rawArgs={"load": ["a"], "unload": ["b"]}),
    "a name and empty raw arguments": loading(moduleName="a", rawArgs={}),
    "a loading order": loading(moduleName="a", modulesLoadingOrder=["a", "b", "c"]),
    # Signing
    "files below the directory": signing(LOADER, "/opt/a.ko", "/opt/lib/*/b.ko"),
    "a mapping's files below the directory": signing(MAPPING, "/opt/lib/modules/${KERNEL_FULL_VERSION}/a.ko"),
    "files below another directory": signing(MAPPING, "/kmods/x/a.ko", directory="/kmods/x"),
    "an empty directory": signing(MAPPING, "/a.ko", directory=""),
}
"""Objects that are accepted, by what is special about them."""

_TOLERATION = "spec.moduleSpec.tolerations[0]"

REFUSED = (
    Refusal(
        "42 characters of names",
        named("m" * 39, "kmm"),
        "spec.spokeNamespace",
        "may have 41 characters together",
    ),
    Refusal(
        "the name of our own works",
        named("kmm-hub-permissions", "kmm"),
        "metadata",
        "the hub's own ManifestWorks",
    ),
    *(
        Refusal(f"namespace {bad!r}", named("m", bad), "spec.spokeNamespace", "name of a namespace")
        for bad in ("", "Upper", "a_b", "a.b", "-a", "a-", "ä", "a\n")
    ),
    *(
        Refusal(
            f"toleration of key {bad!r}",
            tolerating(key=bad, operator="Exists"),
            f"{_TOLERATION}.key",
            "key of a",
        )
        for bad in ("a b", "-a", "a/", "/a", "a/b/c", "Upper.example/a", "k" * 64, f"{LONG_NAME}ab/k", "a\n")
    ),
    Refusal("no key", tolerating(operator="Equal", value="v"), _TOLERATION, "name a key"),
    Refusal("an empty toleration", tolerating(), _TOLERATION, "name a key"),
    Refusal("operator", tolerating(key="k", operator="Gt"), f"{_TOLERATION}.operator", "Equal or Exists"),
    Refusal(
        "a value for nothing",
        tolerating(key="k", operator="Exists", value="v"),
        f"{_TOLERATION}.value",
        "no value",
    ),
    *(
        Refusal(f"value {bad!r}", tolerating(key="k", value=bad), f"{_TOLERATION}.value", "value of a taint")
        for bad in ("a b", "a-", "ä")
    ),
    Refusal(
        "effect", tolerating(key="k", effect="Evict"), f"{_TOLERATION}.effect", "NoSchedule, PreferNoSchedule"
    ),
    Refusal(
        "seconds without an effect",
        tolerating(key="k", tolerationSeconds=0),
        f"{_TOLERATION}.tolerationSeconds",
        "NoExecute",
    ),
    Refusal(
        "seconds with NoSchedule",
        tolerating(key="k", effect="NoSchedule", tolerationSeconds=5),
        f"{_TOLERATION}.tolerationSeconds",
        "NoExecute",
    ),
    *(
        Refusal(
            f"driver {bad!r}",
            of("dra", DRA | {"driverName": bad}),
            "spec.moduleSpec.dra.driverName",
            "DNS name",
        )
        for bad in ("", "Not_Valid", "gpu.", "a..b")
    ),
    Refusal(
        "two classes of a name",
        classes("a", "b", "a"),
        "spec.moduleSpec.dra.deviceClasses",
        "give each its own",
    ),
    *(
        Refusal(
            f"{owner} mounts {bad!r}",
            mounting(owner, bad),
            f"spec.moduleSpec.{owner}.volumes[0].hostPath.path",
            "at or below /dev",
        )
        for owner in ("devicePlugin", "dra")
        for bad in ("/", "", "dev", "./dev", "/etc", "/devious", "/etc/dev", "/dev\n", "/.dev")
    ),
    Refusal("neither literal nor regexp", of(f"{MAPPING}.regexp", None), AT_MAPPING, "exactly one of them"),
    Refusal("an empty regexp", of(f"{MAPPING}.regexp", ""), AT_MAPPING, "exactly one of them"),
    Refusal("literal and regexp", of(f"{MAPPING}.literal", "6.1.0"), AT_MAPPING, "exactly one of them"),
    *(
        Refusal(
            f"regexp {bad}", of(f"{MAPPING}.regexp", bad), f"{AT_LOADER}.kernelMappings", "an RE2 expression"
        )
        for bad in ("(", "[a", "(?=a)", r"(a)\1", "a{1001}", "*", r"\C", "a**")
    ),
    Refusal("no image", of(f"{MAPPING}.containerImage", ""), AT_LOADER, "a mapping names no image"),
    Refusal(
        "no image for the second mapping",
        of(
            f"{LOADER}.kernelMappings",
            [{"literal": "a", "containerImage": IMAGE}, {"literal": "b", "containerImage": ""}],
        ),
        AT_LOADER,
        "a mapping names no image",
    ),
    *(
        Refusal(
            f"the mapping's image {bad}",
            of(f"{MAPPING}.containerImage", bad),
            f"{AT_MAPPING}.containerImage",
            "name a tag or a digest",
        )
        for bad in ("image", "registry.example/image", "registry:5000/image", "r:5000/a:b/c")
    ),
    Refusal(
        "the container's image",
        of(f"{LOADER}.containerImage", "registry:5000/image"),
        f"{AT_LOADER}.containerImage",
        "name a tag or a digest",
    ),
    Refusal(
        "both forms in a mapping",
        removing({}, {"inTreeModulesToRemove": [], "inTreeModuleToRemove": "a"}),
        f"{AT_MAPPING}.inTreeModuleToRemove",
        "write inTreeModulesToRemove alone",
    ),
    Refusal(
        "both forms in the container",
        removing({"inTreeModulesToRemove": ["a"], "inTreeModuleToRemove": "a"}, {}),
        f"{AT_LOADER}.inTreeModuleToRemove",
        "write inTreeModulesToRemove alone",
    ),
    Refusal(
        "a list for all, a single one for a mapping",
        removing({"inTreeModulesToRemove": []}, {"inTreeModuleToRemove": "a"}),
        AT_LOADER,
        "inTreeModulesToRemove in the mappings, too",
    ),
    Refusal(
        "a single one for all, a list for a mapping",
        removing({"inTreeModuleToRemove": "a"}, {"inTreeModulesToRemove": []}),
        f"{AT_LOADER}.inTreeModuleToRemove",
        "as in the mappings",
    ),
    Refusal("no way to load", loading(), AT_MODPROBE, "either moduleName"),
    Refusal(
        "raw arguments to load alone", loading(rawArgs={"load": ["a"]}), AT_MODPROBE, "either moduleName"
    ),
    Refusal(
        "raw arguments to unload alone", loading(rawArgs={"unload": ["a"]}), AT_MODPROBE, "either moduleName"
    ),
    Refusal(
        "a name and raw arguments",
        loading(moduleName="a", rawArgs={"load": ["a"], "unload": ["a"]}),
        AT_MODPROBE,
        "either moduleName",
    ),
    Refusal(
        "a name and a raw argument",
        loading(moduleName="a", rawArgs={"load": ["a"]}),
        AT_MODPROBE,
        "either moduleName",
    ),
    *(
        Refusal(
            f"loading order {order}",
            loading(moduleName="a", modulesLoadingOrder=order),
            f"{AT_MODPROBE}.modulesLoadingOrder",
            "moduleName first",
        )
        for order in ([], ["a"], ["b", "a"])
    ),
    Refusal(
        "loading order without a name",
        loading(rawArgs={"load": ["a"], "unload": ["a"]}, modulesLoadingOrder=["a", "b"]),
        f"{AT_MODPROBE}.modulesLoadingOrder",
        "moduleName first",
    ),
    Refusal(
        "loading order with a name twice",
        loading(moduleName="a", modulesLoadingOrder=["a", "b", "b"]),
        f"{AT_MODPROBE}.modulesLoadingOrder",
        "every module once",
    ),
    *(
        Refusal(f"nothing to sign in {at}", signing(at), f"{field}.sign", "name the kernel modules")
        for at, field in ((LOADER, AT_LOADER), (MAPPING, AT_MAPPING))
    ),
    *(
        Refusal(
            f"{at} signs {bad} below {directory}",
            signing(at, "/opt/a.ko", bad, directory=directory),
            AT_LOADER,
            says,
        )
        for at in (LOADER, MAPPING)
        for bad, directory, says in (
            ("/lib/a.ko", "/opt", "starts with /opt/"),
            ("/opt", "/opt", "starts with /opt/"),
            ("/optional/a.ko", "/opt", "starts with /opt/"),
            ("opt/a.ko", "/opt", "starts with /opt/"),
            ("/opt/a.ko", "/opt/", "without a slash at its end"),
            ("/a.ko", "/", "without a slash at its end"),
        )
    ),
)
"""Objects that are refused, each for one reason."""

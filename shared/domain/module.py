"""A ManagedClusterModule's `spec` as values: what the hub decides on, and the rest untouched for shipping.

Fields: KMM `api-hub/v1beta1/managedclustermodule_types.go` and `api/v1beta1/module_types.go`. Go writes absent
ones as null or as empty values, so null, absent and `""` mean the same; unknown fields are left alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from shared.domain.artifact import Access
from shared.domain.canonical import MAX_DEPTH, is_deeper_than
from shared.domain.errors import PermanentError

DEFAULT_DIR_NAME = "/opt"
RESERVED_NAME = "kmm-hub-permissions"
"""A name that no module may have: in each cluster's namespace it is that of the hub's own ManifestWork."""

CONTAINER_PATH = "spec.moduleSpec.moduleLoader.container"
_PRESSURES = ("disk", "memory", "pid")


class InvalidModule(PermanentError):
    """A field of the module is missing or of the wrong type; the message starts with its path."""

    reason = "InvalidModule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How an image is built.

    Attributes:
        dockerfile_config_map: ConfigMap that holds the Dockerfile under `dockerfile`; None to inherit.
        build_args: (name, value) in the order written.
        secrets: names of Secrets mounted during the build.
        base_image_tls: how base images are pulled.
        selector: labels of nodes for the build.
        kaniko_tag: tag of the builder image KMM would use; nothing here runs Kaniko.
    """

    dockerfile_config_map: str | None
    build_args: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    base_image_tls: Access = field(default_factory=Access)
    selector: tuple[tuple[str, str], ...] = ()
    kaniko_tag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """How modules in an image are signed.

    Attributes:
        key_secret: Secret with the private key under `key`; None to inherit.
        cert_secret: Secret with the certificate under `cert`; None to inherit.
        unsigned_image: template of the image to start from where nothing is built.
        unsigned_tls: how that image is pulled.
        files: templates of paths in the image, globs allowed.
    """

    key_secret: str | None
    cert_secret: str | None
    unsigned_image: str | None = None
    unsigned_tls: Access = field(default_factory=Access)
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelMapping:
    """One entry of `kernelMappings`. None means: not set, take the container's.

    Attributes:
        literal: the kernel, exactly.
        regexp: RE2 pattern searched for in the kernel.
        container_image: template of the image.
        build, sign, tls: as on the container.
        in_tree_modules: in-tree modules to remove before loading; an empty tuple overrides the container's.
        in_tree_module: the deprecated form for one module.
    """

    literal: str | None
    regexp: str | None
    container_image: str | None
    build: Build | None
    sign: Sign | None
    tls: Access | None
    in_tree_modules: tuple[str, ...] | None
    in_tree_module: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleLoader:
    """`moduleLoader.container`: the mappings in order, and what they inherit."""

    mappings: tuple[KernelMapping, ...]
    container_image: str | None
    build: Build | None
    sign: Sign | None
    tls: Access | None
    in_tree_modules: tuple[str, ...] | None
    in_tree_module: str | None
    dir_name: str = DEFAULT_DIR_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSpec:
    """A ManagedClusterModule's `spec`.

    Attributes:
        spoke_namespace: namespace of the Module on the spoke; also MOD_NAMESPACE.
        selector: labels a cluster must have; empty selects every cluster.
        module_spec: `spec.moduleSpec` as the API server sent it, for shipping. Never change it.
        loader: None for a module that has only a device plugin or a DRA driver.
        image_repo_secret: name of the Secret with registry credentials.
        rebuild_trigger: `imageRebuildTriggerGeneration`; any change asks for all images again.
        tolerations: as the API server sent them.
    """

    spoke_namespace: str
    selector: Mapping[str, str]
    module_spec: Mapping[str, Any]
    loader: ModuleLoader | None
    image_repo_secret: str | None = None
    rebuild_trigger: int | None = None
    tolerations: tuple[Mapping[str, Any], ...] = ()


def parse_module(spec: Mapping[str, Any]) -> ModuleSpec:
    """Return the `spec` of a ManagedClusterModule as values.

    Only what the hub works with is read; the admission rules stand elsewhere.

    Raises:
        InvalidModule: a needed field is missing or has the wrong type, with its path and what to write.
    """
    if is_deeper_than(MAX_DEPTH, spec):
        raise InvalidModule(f"spec: is nested more than {MAX_DEPTH} levels deep; no field of a module is")
    top = _Node(spec, "spec")
    module = top.child("moduleSpec") or _Node({}, "spec.moduleSpec")
    loader = module.child("moduleLoader")
    return ModuleSpec(
        spoke_namespace=top.required("spokeNamespace", "the namespace of the Module on the spoke"),
        selector=_selector(top),
        module_spec=module.fields,
        loader=_loader(loader.required_child("container")) if loader else None,
        image_repo_secret=_reference(module, "imageRepoSecret"),
        rebuild_trigger=module.number("imageRebuildTriggerGeneration"),
        tolerations=tuple(toleration.fields for toleration in module.children("tolerations")),
    )


def worker_tolerations(spec: ModuleSpec) -> tuple[Mapping[str, Any], ...]:
    """Return the tolerations of the pods that load the module on the spoke.

    They are the module's, then those for disk, memory and PID pressure that KMM adds
    (`internal/module/helper.go`), because a module must also be removed from a node in trouble.
    """
    added = tuple(
        {"key": f"node.kubernetes.io/{what}-pressure", "operator": "Exists", "effect": "NoSchedule"}
        for what in _PRESSURES
    )
    return spec.tolerations + added


class _Node:
    """A JSON object with its path, read field by field; null counts as absent."""

    def __init__(self, fields: Mapping[str, Any], path: str) -> None:
        self.fields: Final = fields
        self.path: Final = path

    def text(self, name: str) -> str | None:
        """The text of a field; None if absent or empty."""
        return _checked(self.fields.get(name), str, f"{self.path}.{name}", "a text") or None

    def required(self, name: str, what: str) -> str:
        value = self.text(name)
        if value is None:
            raise InvalidModule(f"{self.path}.{name}: missing; write {what}")
        return value

    def flag(self, name: str) -> bool:
        return bool(_checked(self.fields.get(name), bool, f"{self.path}.{name}", "true or false"))

    def number(self, name: str) -> int | None:
        value = self.fields.get(name)
        if isinstance(value, bool):
            raise InvalidModule(f"{self.path}.{name}: is a boolean; write a whole number")
        number: int | None = _checked(value, int, f"{self.path}.{name}", "a whole number")
        return number

    def child(self, name: str) -> "_Node | None":
        path = f"{self.path}.{name}"
        value: Mapping[str, Any] | None = _checked(self.fields.get(name), Mapping, path, "an object")
        return None if value is None else _Node(value, path)

    def required_child(self, name: str) -> "_Node":
        child = self.child(name)
        if child is None:
            raise InvalidModule(f"{self.path}.{name}: missing; write an object")
        return child

    def children(self, name: str) -> Iterator["_Node"]:
        for path, value in self._entries(name):
            if not isinstance(value, Mapping):
                raise InvalidModule(f"{path}: is {_kind(value)}; write an object")
            yield _Node(value, path)

    def texts(self, name: str) -> tuple[str, ...] | None:
        """The texts of a list; None if absent, which is not the same as an empty list."""
        if self.fields.get(name) is None:
            return None
        return tuple(_checked(value, str, path, "a text") or "" for path, value in self._entries(name))

    def pairs(self, name: str) -> dict[str, str]:
        node = self.child(name)
        return {key: node.text(key) or "" for key in sorted(node.fields)} if node else {}

    def _entries(self, name: str) -> Iterator[tuple[str, Any]]:
        path = f"{self.path}.{name}"
        values: list[Any] | None = _checked(self.fields.get(name), list, path, "a list")
        return ((f"{path}[{index}]", value) for index, value in enumerate(values or ()))


def _checked(value: Any, kind: type, path: str, expected: str) -> Any:
    if value is not None and not isinstance(value, kind):
        raise InvalidModule(f"{path}: is {_kind(value)}; write {expected}")
    return value


def _kind(value: Any) -> str:
    names = {
        str: "a text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _selector(top: _Node) -> Mapping[str, str]:
    if top.child("selector") is None:
        raise InvalidModule("spec.selector: missing; write labels of clusters, or {} for every cluster")
    return MappingProxyType(top.pairs("selector"))


def _loader(container: _Node) -> ModuleLoader:
    modprobe = container.child("modprobe")
    return ModuleLoader(
        mappings=tuple(_mapping(entry) for entry in container.children("kernelMappings")),
        container_image=container.text("containerImage"),
        build=_build(container),
        sign=_sign(container),
        tls=_access(container, "registryTLS"),
        in_tree_modules=container.texts("inTreeModulesToRemove"),
        in_tree_module=container.text("inTreeModuleToRemove"),
        dir_name=(modprobe.text("dirName") if modprobe else None) or DEFAULT_DIR_NAME,
    )


def _mapping(entry: _Node) -> KernelMapping:
    return KernelMapping(
        literal=entry.text("literal"),
        regexp=entry.text("regexp"),
        container_image=entry.text("containerImage"),
        build=_build(entry),
        sign=_sign(entry),
        tls=_access(entry, "registryTLS"),
        in_tree_modules=entry.texts("inTreeModulesToRemove"),
        in_tree_module=entry.text("inTreeModuleToRemove"),
    )


def _build(owner: _Node) -> Build | None:
    build = owner.child("build")
    if build is None:
        return None
    kaniko = build.child("kanikoParams")
    return Build(
        dockerfile_config_map=_reference(build, "dockerfileConfigMap"),
        build_args=tuple(
            (arg.required("name", "the name of the build argument"), arg.text("value") or "")
            for arg in build.children("buildArgs")
        ),
        secrets=tuple(
            secret.required("name", "the name of a Secret") for secret in build.children("secrets")
        ),
        base_image_tls=_access(build, "baseImageRegistryTLS") or Access(),
        selector=tuple(build.pairs("selector").items()),
        kaniko_tag=kaniko.text("tag") if kaniko else None,
    )


def _sign(owner: _Node) -> Sign | None:
    sign = owner.child("sign")
    if sign is None:
        return None
    return Sign(
        key_secret=_reference(sign, "keySecret"),
        cert_secret=_reference(sign, "certSecret"),
        unsigned_image=sign.text("unsignedImage"),
        unsigned_tls=_access(sign, "unsignedImageRegistryTLS") or Access(),
        files=sign.texts("filesToSign") or (),
    )


def _access(owner: _Node, name: str) -> Access | None:
    tls = owner.child(name)
    if tls is None:
        return None
    return Access(insecure=tls.flag("insecure"), skip_tls_verify=tls.flag("insecureSkipTLSVerify"))


def _reference(owner: _Node, name: str) -> str | None:
    reference = owner.child(name)
    if reference is None:
        return None
    return reference.required(
        "name", "the name of a ConfigMap" if "Config" in name else "the name of a Secret"
    )

"""`Module` of `kmm.sigs.x-k8s.io/v1beta1`: what a spoke's Kernel Module Management loads onto its nodes.

Fields, defaults and required keys are those of kernel-module-management's `api/v1beta1/module_types.go`; the
hub writes such objects into ManifestWorks, and `ManagedClusterModule.spec.moduleSpec` is the same type.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from shared.api.base import (
    ApiModel,
    Bool,
    CoreV1,
    Int,
    Int32,
    Labels,
    LocalObjectReference,
    Metadata,
    SchemaIs,
)

DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""RFC 1123 subdomain, which names of DeviceClasses must be."""

ONE_PLUGIN = "dra and devicePlugin must not both be set"
"""What the API server and the model say about a spec that has both."""

NonEmptyStrings = Annotated[tuple[str, ...], Field(min_length=1)]
"""A list of at least one string."""


class RegistryTLS(ApiModel):
    """How an image registry is spoken to."""

    insecure: Bool | None = None
    """Speak plain HTTP."""
    insecure_skip_tls_verify: Bool | None = None
    """Accept any certificate of the registry."""


class BuildArg(ApiModel):
    """One argument of an image build."""

    name: str
    """Name of the Dockerfile's ARG."""
    value: str
    """Its value, taken literally."""


class KanikoParams(ApiModel):
    """Settings of Kaniko, which kernel-module-management builds with; accepted and ignored here."""

    tag: str | None = None
    """Tag of the Kaniko image."""


class Build(ApiModel):
    """How to build an image that the registry lacks."""

    dockerfile_config_map: LocalObjectReference
    """ConfigMap that holds the recipe under the key `dockerfile`."""
    build_args: tuple[BuildArg, ...] | None = None
    """Arguments of the build, in addition to the kernel and module variables."""
    secrets: tuple[LocalObjectReference, ...] | None = None
    """Secrets that the build can read below `/run/secrets`."""
    base_image_registry_tls: RegistryTLS | None = None
    """How the registries of the base images are spoken to."""
    kaniko_params: KanikoParams | None = None
    """Settings of Kaniko; accepted and ignored here."""
    selector: Labels | None = None
    """Labels of the nodes on which the build may run."""


class Sign(ApiModel):
    """How to sign the kernel modules inside an image for secure boot."""

    key_secret: LocalObjectReference
    """Secret that holds the private key under the key `key`."""
    cert_secret: LocalObjectReference
    """Secret that holds the certificate under the key `cert`."""
    files_to_sign: tuple[str, ...] | None = None
    """Paths of the kernel modules inside the image, below `modprobe.dirName`; may hold kernel variables."""
    unsigned_image: str | None = None
    """Image to sign, needed where there is no build; may hold kernel variables."""
    unsigned_image_registry_tls: RegistryTLS | None = None
    """How the registry of the unsigned image is spoken to."""


class KernelMapping(ApiModel):
    """What to do for the kernels that match; the first mapping that matches a kernel wins."""

    literal: str | None = None
    """The one kernel version that matches; set this or `regexp`."""
    regexp: str | None = None
    """RE2 expression that is searched for in the kernel version; set this or `literal`."""
    container_image: str
    """Image with the kernel module; may hold variables such as ${KERNEL_VERSION}; "" inherits the container's."""
    build: Build | None = None
    """How to build the image if the registry lacks it; merged over the container's."""
    sign: Sign | None = None
    """How to sign the kernel modules in the image; merged over the container's."""
    registry_tls: RegistryTLS | None = None
    """How the image's registry is spoken to; replaces the container's as a whole."""
    in_tree_modules_to_remove: tuple[str, ...] | None = None
    """Kernel modules of the distribution to unload first; replaces the container's."""
    in_tree_module_to_remove: str | None = None
    """Deprecated form of `inTreeModulesToRemove` for a single module."""


class ModprobeArgs(ApiModel):
    """Arguments of modprobe for either direction."""

    load: NonEmptyStrings | None = None
    """Arguments when the module is loaded."""
    unload: NonEmptyStrings | None = None
    """Arguments when the module is unloaded."""


class Modprobe(ApiModel):
    """How modprobe is called on the node."""

    module_name: str | None = None
    """Name of the kernel module to load; not with `rawArgs`."""
    parameters: tuple[str, ...] | None = None
    """Parameters of the kernel module, such as `debug=1`."""
    dir_name: str = "/opt"
    """Directory in the image that holds `lib/modules`."""
    args: ModprobeArgs | None = None
    """Options that stand before the module's name."""
    raw_args: ModprobeArgs | None = None
    """The complete arguments, in place of all other settings."""
    firmware_path: str | None = None
    """Directory in the image whose files are copied to the node's firmware path."""
    modules_loading_order: tuple[str, ...] | None = None
    """Soft dependencies in loading order, starting with `moduleName`."""


class ModuleLoaderContainer(ApiModel):
    """The image with the kernel module, per kernel, and the defaults for all kernels."""

    modprobe: Modprobe
    """How the module is loaded and unloaded."""
    kernel_mappings: Annotated[tuple[KernelMapping, ...], Field(min_length=1)]
    """Which image serves which kernels, tried in order."""
    container_image: str | None = None
    """Image for mappings that name none; may hold variables such as ${KERNEL_VERSION}."""
    image_pull_policy: str | None = None
    """When the node pulls the image: Always, Never or IfNotPresent."""
    build: Build | None = None
    """Default recipe for all mappings."""
    sign: Sign | None = None
    """Default signing for all mappings."""
    registry_tls: RegistryTLS | None = None
    """How the images' registry is spoken to, unless the mapping says otherwise."""
    version: str | None = None
    """Version for ordered upgrades; may not change between set and unset."""
    in_tree_modules_to_remove: tuple[str, ...] | None = None
    """Kernel modules of the distribution to unload first."""
    in_tree_module_to_remove: str | None = None
    """Deprecated form of `inTreeModulesToRemove` for a single module."""


class ModuleLoader(ApiModel):
    """Loads a kernel module onto the selected nodes."""

    container: ModuleLoaderContainer
    """Image and settings of the kernel module."""
    service_account_name: str | None = None
    """Service account in the module's namespace."""


class PluginContainer(ApiModel):
    """A container of a device plugin or of a DRA driver."""

    image: str
    """Image of the container."""
    command: tuple[str, ...] | None = None
    """Entry point in place of the image's."""
    args: tuple[str, ...] | None = None
    """Arguments in place of the image's."""
    env: tuple[Annotated[dict[str, Any], CoreV1("EnvVar")], ...] | None = None
    """Environment variables; see `kubectl explain pod.spec.containers.env`."""
    image_pull_policy: str | None = None
    """When the node pulls the image: Always, Never or IfNotPresent."""
    resources: Annotated[dict[str, Any], CoreV1("ResourceRequirements")] | None = None
    """Requests and limits; see `kubectl explain pod.spec.containers.resources`."""
    volume_mounts: tuple[Annotated[dict[str, Any], CoreV1("VolumeMount")], ...] | None = None
    """Where volumes are mounted; see `kubectl explain pod.spec.containers.volumeMounts`."""


class DevicePlugin(ApiModel):
    """Runs a device plugin on the nodes that have the kernel module loaded."""

    container: PluginContainer
    """The plugin."""
    init_container: PluginContainer | None = None
    """A container that ends before the plugin starts."""
    service_account_name: str | None = None
    """Service account in the module's namespace."""
    automount_service_account_token: Bool | None = None
    """Whether the account's token is mounted into the pods."""
    volumes: tuple[Annotated[dict[str, Any], CoreV1("Volume")], ...] | None = None
    """Volumes that the containers can mount; see `kubectl explain pod.spec.volumes`."""


class CELSelector(ApiModel):
    """Selects devices by an expression."""

    expression: str
    """CEL expression over `device`."""


class DeviceSelector(ApiModel):
    """Selects devices of a class."""

    cel: CELSelector | None = None
    """By a CEL expression."""


class OpaqueDeviceConfig(ApiModel):
    """Configuration that only the named driver understands."""

    driver: str
    """Name of the driver."""
    parameters: Annotated[
        dict[str, Any], SchemaIs({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
    ]
    """Parameters for the driver, an object of any shape."""


class DeviceConfig(ApiModel):
    """Configuration that applies to every claim of a class."""

    opaque: OpaqueDeviceConfig | None = None
    """Configuration for a driver."""


class DeviceClass(ApiModel):
    """A DeviceClass that is created for the driver."""

    name: Annotated[str, Field(pattern=DNS_SUBDOMAIN)]
    """Name of the class, a DNS subdomain."""
    selectors: Annotated[tuple[DeviceSelector, ...], Field(max_length=32)] | None = None
    """Which devices belong to the class; all selectors must match."""
    config: Annotated[tuple[DeviceConfig, ...], Field(max_length=32)] | None = None
    """Configuration of the class."""


class DRA(DevicePlugin):
    """Runs a driver of Dynamic Resource Allocation on the nodes that have the kernel module loaded."""

    driver_name: str
    """Name of the driver, a DNS subdomain."""
    device_classes: tuple[DeviceClass, ...] | None = None
    """DeviceClasses to create for the driver."""


class ModuleSpec(ApiModel):
    """Which kernel module, device plugin or driver runs on which nodes."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.dra) || !has(self.devicePlugin)",
                    "message": ONE_PLUGIN,
                }
            ]
        }
    )

    selector: Labels
    """Labels that a node must have."""
    module_loader: ModuleLoader | None = None
    """The kernel module; absent where only a device plugin or a DRA driver is wanted."""
    device_plugin: DevicePlugin | None = None
    """The device plugin; not together with `dra`."""
    dra: DRA | None = None
    """The DRA driver; not together with `devicePlugin`."""
    image_repo_secret: LocalObjectReference | None = None
    """Pull secret for all images of the module."""
    tolerations: tuple[Annotated[dict[str, Any], CoreV1("Toleration")], ...] | None = None
    """Taints of nodes that are accepted; see `kubectl explain pod.spec.tolerations`."""
    image_rebuild_trigger_generation: Int | None = None
    """Any change of this number has all images examined, and if need be built, again."""

    @model_validator(mode="after")
    def _refuse_two_plugins(self) -> Self:
        if self.dra is not None and self.device_plugin is not None:
            raise ValueError(ONE_PLUGIN)
        return self


class DaemonSetStatus(ApiModel):
    """How many nodes run one part of the module."""

    nodes_matching_selector_number: Int32 | None = None
    """Nodes that the selector matches."""
    desired_number: Int32 | None = None
    """Nodes that should run it."""
    available_number: Int32 | None = None
    """Nodes that do run it."""


class ModuleStatus(ApiModel):
    """What runs on the nodes of the spoke."""

    module_loader: DaemonSetStatus | None = None
    """Nodes and the kernel module."""
    device_plugin: DaemonSetStatus | None = None
    """Nodes and the device plugin."""
    dra: DaemonSetStatus | None = None
    """Nodes and the DRA driver."""
    image_rebuild_trigger_generation: Int | None = None
    """The trigger of the spec that was last acted upon."""


class Module(ApiModel):
    """A kernel module, with its device plugin or DRA driver, on the nodes of one cluster."""

    api_version: Literal["kmm.sigs.x-k8s.io/v1beta1"] = "kmm.sigs.x-k8s.io/v1beta1"
    kind: Literal["Module"] = "Module"
    metadata: Metadata
    spec: ModuleSpec | None = None
    """What should run, and where."""
    status: ModuleStatus | None = None
    """What runs."""

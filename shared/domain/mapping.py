"""Which image a kernel gets: the first matching entry of `kernelMappings`, with what it inherits.

Rules: KMM `internal/module/kernelmapper.go` (choice, inheritance) and `internal/module/helper.go` (merging).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.domain.artifact import Access
from shared.domain.errors import PermanentError
from shared.domain.kernel import InvalidKernel, KernelVersion, kernel_variables, normalize
from shared.domain.module import CONTAINER_PATH, Build, KernelMapping, ModuleLoader, ModuleSpec, Sign
from shared.domain.pattern import BadPattern, Pattern, PatternSet
from shared.domain.template import InvalidTemplate, expand

_MAX_CACHED = 4096
_MAX_SIZE = 1_000_000  # instructions of all patterns of a module: half a second to compile, and some 30 MiB


class NoMatchingKernel(PermanentError):
    """No entry of the module's kernel mappings takes the kernel."""

    reason = "NoMatchingKernel"


class InvalidResolution(PermanentError):
    """An entry takes the kernel, but what follows from it cannot be used; the message starts with the field's path."""

    reason = "InvalidResolution"


class InvalidPattern(InvalidResolution):
    """A kernel reached an entry whose pattern RE2 does not accept, so nobody can say which entry it would get."""

    reason = "InvalidPattern"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedBuild:
    """How the image of one kernel is built.

    Attributes:
        dockerfile_config_map: ConfigMap that holds the Dockerfile under `dockerfile`.
        user_args: the user's (name, value), container's and mapping's merged.
        build_args: `user_args` with the reserved names filled in: what the build gets.
        secrets: names of Secrets mounted during the build, the container's first.
        base_image_tls: how base images are pulled.
    """

    dockerfile_config_map: str
    user_args: tuple[tuple[str, str], ...]
    build_args: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...] = ()
    base_image_tls: Access = field(default_factory=Access)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSign:
    """How the modules in the image of one kernel are signed; templates are expanded.

    Attributes:
        key_secret: Secret with the private key.
        cert_secret: Secret with the certificate.
        unsigned_image: the image to start from where nothing is built.
        unsigned_tls: how that image is pulled.
        files: paths in the image, globs allowed.
    """

    key_secret: str
    cert_secret: str
    unsigned_image: str | None
    unsigned_tls: Access
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What one kernel gets from a module.

    Attributes:
        kernel: the kernel asked for, unchanged.
        mapping_index: position of the entry in `kernelMappings`, from 0.
        image: the image with its template expanded; not yet checked to be a reference.
        tls: how the image's registry is reached.
        build: None if the image is not built here.
        sign: None if nothing is signed.
        in_tree_modules_to_remove: None if neither level says anything.
        dir_name: directory of the modules in the image.
    """

    kernel: KernelVersion
    mapping_index: int
    image: str
    tls: Access
    build: ResolvedBuild | None
    sign: ResolvedSign | None
    in_tree_modules_to_remove: tuple[str, ...] | None
    dir_name: str


class MappingIndex:
    """The kernel mappings of one module spec, compiled once and asked for many kernels.

    Answers are kept, so that a fleet costs one resolution per distinct kernel. A change of the spec needs a new
    index. Not safe for use by several threads at once.
    """

    def __init__(self, spec: ModuleSpec) -> None:
        self._loader = spec.loader
        self._entries: tuple[KernelMapping, ...] = spec.loader.mappings if spec.loader else ()
        self._patterns: dict[int, Pattern] = {}
        self._size = 0
        self._broken: tuple[int, BadPattern] | None = None
        self._literals: dict[str, int] = {}
        for index, entry in enumerate(self._entries):
            if entry.literal is not None:
                self._literals.setdefault(entry.literal, index)
            if entry.regexp is not None and self._broken is None:
                self._add_pattern(index, entry.regexp)
        self._set = PatternSet(self._patterns)
        self._taken: dict[str, int | None] = {}
        self._resolutions: dict[tuple[str, str, str], Resolution] = {}

    @property
    def broken(self) -> InvalidPattern | None:
        """What is wrong with the first pattern that does not compile, whether or not a kernel reaches it."""
        if self._broken is None:
            return None
        index, problem = self._broken
        path, text = f"{CONTAINER_PATH}.kernelMappings[{index}].regexp", self._entries[index].regexp
        return InvalidPattern(f"{path}: {text!r} is not valid RE2: {problem}")

    def resolve(self, *, module_name: str, spoke_namespace: str, kernel: str) -> Resolution:
        """Return what `kernel` (as read from a claim) gets from the module.

        The list is walked in order and the first entry wins: a literal equal to the kernel, else a non-empty pattern
        found anywhere in it.

        Raises:
            NoMatchingKernel: no entry takes the kernel, or the module has no loader.
            InvalidPattern: the kernel reaches an entry with a broken pattern before one that takes it.
            InvalidResolution: the entry has no image, a template or the kernel is malformed, or a reference that
                building or signing needs is missing.
        """
        key = (module_name, spoke_namespace, kernel)
        known = self._resolutions.get(key)
        if known is not None:
            return known
        index = self._first(kernel)
        if index is None or self._loader is None:
            raise NoMatchingKernel(
                f"{CONTAINER_PATH}.kernelMappings: none of {len(self._entries)} entries takes kernel {kernel[:255]!r}; "
                "add a literal or regexp for it, or leave its clusters out of spec.selector"
            )
        resolution = _Resolver(self._loader, index, kernel, module_name, spoke_namespace).resolve()
        if len(self._resolutions) >= _MAX_CACHED:
            self._resolutions.clear()
        self._resolutions[key] = resolution
        return resolution

    def explain(self, kernel: str) -> tuple[tuple[int, str], ...]:
        """Return (index, why not) for the entries that were passed over.

        The walk ends before the entry that takes `kernel`, or with the one whose pattern is broken.
        """
        reasons: list[tuple[int, str]] = []
        for index, entry in enumerate(self._entries):
            if entry.literal == kernel:
                break
            if self._broken is not None and self._broken[0] == index:
                reasons.append((index, f"regexp {entry.regexp!r} is not valid RE2: {self._broken[1]}"))
                break
            if index in self._patterns and self._patterns[index].is_found_in(kernel):
                break
            reasons.append((index, _why_not(entry)))
        return tuple(reasons)

    def _add_pattern(self, index: int, text: str) -> None:
        try:
            pattern = Pattern(text)
        except BadPattern as error:
            self._broken = (index, error)
            return
        self._size += pattern.size
        if self._size > _MAX_SIZE:
            problem = "with those before it, it is too large; write simpler patterns, or literals"
            self._broken = (index, BadPattern(problem))
        else:
            self._patterns[index] = pattern

    def _first(self, kernel: str) -> int | None:
        if kernel not in self._taken:
            if len(self._taken) >= _MAX_CACHED:
                self._taken.clear()
            self._taken[kernel] = self._walk(kernel)
        taken = self._taken[kernel]
        if self._broken is not None and (taken is None or taken > self._broken[0]):
            raise InvalidPattern(f"{self.broken}; kernel {kernel[:255]!r} is not taken by an earlier entry")
        return taken

    def _walk(self, kernel: str) -> int | None:
        candidates = (self._literals.get(kernel), self._set.first(kernel))
        return min((index for index in candidates if index is not None), default=None)


@dataclass(frozen=True, slots=True)
class _Resolver:
    """What follows from one entry for one kernel."""

    loader: ModuleLoader
    index: int
    kernel: str
    module_name: str
    spoke_namespace: str

    def resolve(self) -> Resolution:
        entry = self.loader.mappings[self.index]
        try:
            variables = kernel_variables(normalize(self.kernel))
        except InvalidKernel as error:
            raise InvalidResolution(f"{self._path('')}: takes a malformed kernel: {error}") from error
        return Resolution(
            kernel=KernelVersion(self.kernel),
            mapping_index=self.index,
            image=self._image(entry, variables),
            tls=entry.tls or self.loader.tls or Access(),
            build=self._build(_merge_build(self.loader.build, entry.build)),
            sign=self._sign(_merge_sign(self.loader.sign, entry.sign), variables),
            in_tree_modules_to_remove=_in_tree(self.loader, entry),
            dir_name=self.loader.dir_name,
        )

    def _image(self, entry: KernelMapping, variables: Mapping[str, str]) -> str:
        template = entry.container_image or self.loader.container_image
        if template is None:
            raise InvalidResolution(
                f"{self._path('.containerImage')}: missing here and on the container; write one"
            )
        names = {"MOD_NAME": self.module_name, "MOD_NAMESPACE": self.spoke_namespace}
        return self._expand(template, {**variables, **names}, ".containerImage")

    def _build(self, build: Build | None) -> ResolvedBuild | None:
        if build is None:
            return None
        reserved = {
            "KERNEL_FULL_VERSION": self.kernel,
            "KERNEL_VERSION": self.kernel,
            "MOD_NAME": self.module_name,
            "MOD_NAMESPACE": self.spoke_namespace,
        }
        return ResolvedBuild(
            dockerfile_config_map=self._needed(
                build.dockerfile_config_map, ".build.dockerfileConfigMap.name"
            ),
            user_args=build.build_args,
            build_args=_override(build.build_args, reserved),
            secrets=build.secrets,
            base_image_tls=build.base_image_tls,
        )

    def _sign(self, sign: Sign | None, variables: Mapping[str, str]) -> ResolvedSign | None:
        if sign is None:
            return None
        unsigned = sign.unsigned_image
        return ResolvedSign(
            key_secret=self._needed(sign.key_secret, ".sign.keySecret.name"),
            cert_secret=self._needed(sign.cert_secret, ".sign.certSecret.name"),
            unsigned_image=unsigned and self._expand(unsigned, variables, ".sign.unsignedImage"),
            unsigned_tls=sign.unsigned_tls,
            files=tuple(self._expand(file, variables, ".sign.filesToSign") for file in sign.files),
        )

    def _needed(self, value: str | None, where: str) -> str:
        if value is None:
            raise InvalidResolution(f"{self._path(where)}: missing here and on the container; write its name")
        return value

    def _expand(self, template: str, variables: Mapping[str, str], where: str) -> str:
        try:
            return expand(template, variables)
        except InvalidTemplate as error:
            raise InvalidResolution(f"{self._path(where)}: {error}") from error

    def _path(self, where: str) -> str:
        return f"{CONTAINER_PATH}.kernelMappings[{self.index}]{where}"


def _merge_build(container: Build | None, mapping: Build | None) -> Build | None:
    """The mapping's ConfigMap and arguments over the container's; TLS, selector and builder are the container's."""
    if container is None or mapping is None:
        return container or mapping
    return Build(
        dockerfile_config_map=mapping.dockerfile_config_map or container.dockerfile_config_map,
        build_args=_override(container.build_args, dict(mapping.build_args)),
        secrets=container.secrets + mapping.secrets,
        base_image_tls=container.base_image_tls,
        selector=container.selector,
        kaniko_tag=container.kaniko_tag,
    )


def _merge_sign(container: Sign | None, mapping: Sign | None) -> Sign | None:
    """The mapping's image, key and certificate over the container's, both files; TLS is the container's."""
    if container is None or mapping is None:
        return container or mapping
    return Sign(
        key_secret=mapping.key_secret or container.key_secret,
        cert_secret=mapping.cert_secret or container.cert_secret,
        unsigned_image=mapping.unsigned_image or container.unsigned_image,
        unsigned_tls=container.unsigned_tls,
        files=container.files + mapping.files,
    )


def _override(
    arguments: Sequence[tuple[str, str]], overrides: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Replace values by name where they stand; append names that are new, sorted."""
    present = {name for name, _ in arguments}
    replaced = tuple((name, overrides.get(name, value)) for name, value in arguments)
    return replaced + tuple((name, overrides[name]) for name in sorted(overrides.keys() - present))


def _in_tree(loader: ModuleLoader, entry: KernelMapping) -> tuple[str, ...] | None:
    deprecated = entry.in_tree_module or loader.in_tree_module
    if deprecated is not None:
        return (deprecated,)
    return loader.in_tree_modules if entry.in_tree_modules is None else entry.in_tree_modules


def _why_not(entry: KernelMapping) -> str:
    reasons = []
    if entry.literal is not None:
        reasons.append(f"literal {entry.literal!r} is another kernel")
    if entry.regexp is not None:
        reasons.append(f"regexp {entry.regexp!r} is not found in it")
    return " and ".join(reasons) or "has neither literal nor regexp"

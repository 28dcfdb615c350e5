"""What the hub refuses of a `ManagedClusterModule` beyond types, as CEL in its CRD.

The rules are those of kernel-module-management's webhook (`internal/webhook/module.go`), the ones it misses, and
no others. They refine the hub's kind only: the `Module` of the spokes stays as upstream's. Go's nil and empty
text are one: a field that is there but "" counts as absent; an empty list is there.

A rule stands as low in the tree as it can. The API server asks a stored object's rule again only where something
below it changed (Kubernetes 1.30 and later), so that an object from before the rule can be updated and deleted.
Bounds are there because CEL's cost must be known in advance; they are wider than anything seen in practice.
"""

from dataclasses import replace

from shared.api.rules import Refinement, Rule
from shared.domain.module import RESERVED_NAME
from shared.domain.pattern import MAX_PATTERN_CHARACTERS

LEFT_TO_THE_WEBHOOK = (
    "a hostPath with `..`",
    "an image whose last colon stands before a `${…}`",
    "a regexp that takes our RE2 more memory than Go's",
)
"""What the CRD accepts and `shared.domain.admission` may refuse: CEL can neither walk a path nor expand a template."""

MAX_NAMES = 41
"""Characters of name and spokeNamespace together: 63 of a label's name less 22 that the spoke adds to them."""

MAX_MAPPINGS, MAX_FILES = 1024, 128
"""Entries of kernelMappings, and of filesToSign in each; their product is what the rule on files costs."""

_DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_NAME = rf"{_DNS_LABEL}([.]{_DNS_LABEL})*"
_WORD = "([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]"
_DNS_WORDS = "lower-case letters, digits, - and ., at most 253 characters, such as gpu.example.com"


def _is_set(name: str, of: str = "self") -> str:
    return f"(has({of}.{name}) && {of}.{name} != '')"


_ROOT = (
    Refinement(
        at="",
        rules=(
            Rule(
                # A name never changes: a stored object is asked again only when its namespace does.
                holds="!has(self.spec) || oldSelf.hasValue() && has(oldSelf.value().spec) "
                "&& oldSelf.value().spec.spokeNamespace == self.spec.spokeNamespace "
                f"|| size(self.metadata.name) + size(self.spec.spokeNamespace) <= {MAX_NAMES}",
                message=f"name and spokeNamespace may have {MAX_NAMES} characters together, because the spoke makes "
                "a label of both; shorten one of them",
                at=".spec.spokeNamespace",
                optional_old=True,
            ),
            Rule(
                # A name never changes: a stored object keeps it, and must be able to lose its finalizers.
                holds=f"oldSelf.hasValue() || self.metadata.name != '{RESERVED_NAME}'",
                message=f"name: {RESERVED_NAME} is the name of the hub's own ManifestWorks; give the module another "
                "name",
                at=".metadata",
                optional_old=True,
            ),
        ),
    ),
    Refinement(
        at="spec.spokeNamespace",
        max_length=63,
        rules=(
            Rule(
                holds=f"self.matches('^{_DNS_LABEL}$')",
                message="write the name of a namespace on the spokes: lower-case letters, digits and -, with a "
                "letter or digit at both ends",
            ),
        ),
    ),
)

_TOLERATIONS = (
    Refinement(at="tolerations", max_items=1024),
    # A qualified name: at most 253 characters, a slash, and 63 characters.
    Refinement(at="tolerations.[].key", max_length=317),
    Refinement(at="tolerations.[].value", max_length=63),
    Refinement(
        at="tolerations.[]",
        rules=(
            Rule(
                holds="!has(self.key) || self.key == '' || self.key.indexOf('/') <= 253 "
                f"&& self.key.matches('^({_DNS_NAME}/)?{_WORD}$')",
                message="write the key of a taint, such as gpu or example.com/gpu: up to 63 letters, digits, - _ and "
                ". after an optional DNS name and /",
                at=".key",
            ),
            Rule(
                holds=f"{_is_set('key')} || has(self.operator) && self.operator == 'Exists'",
                message="name a key, or write operator: Exists to tolerate every taint",
            ),
            Rule(
                holds="!has(self.operator) || self.operator in ['', 'Equal', 'Exists']",
                message="write Equal or Exists",
                at=".operator",
            ),
            Rule(
                holds="!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
                message="operator Exists takes no value: remove it, or write operator: Equal",
                at=".value",
            ),
            Rule(
                holds=f"!has(self.value) || self.value == '' || self.value.matches('^{_WORD}$')",
                message="write the value of a taint: up to 63 letters, digits, - _ and ., with a letter or digit at "
                "both ends",
                at=".value",
            ),
            Rule(
                holds="!has(self.effect) || self.effect in ['', 'NoSchedule', 'PreferNoSchedule', 'NoExecute']",
                message="write NoSchedule, PreferNoSchedule or NoExecute, or remove it to tolerate every effect",
                at=".effect",
            ),
            Rule(
                holds="!has(self.tolerationSeconds) || has(self.effect) && self.effect == 'NoExecute'",
                message="tolerationSeconds goes with effect: NoExecute alone; write that effect or remove the seconds",
                at=".tolerationSeconds",
            ),
        ),
    ),
)


def _volumes(owner: str) -> tuple[Refinement, ...]:
    rule = Rule(
        holds="self.matches('(^|/)[.][.](/|$)') || self.matches('^/+([.]/+)*(dev|sys|var|opt|run)(/|$)')",
        message="write a path at or below /dev, /sys, /var, /opt or /run",
    )
    return (
        Refinement(at=f"{owner}.volumes", max_items=256),
        Refinement(at=f"{owner}.volumes.[].hostPath.path", max_length=4096, rules=(rule,)),
    )


_DRA = (
    Refinement(
        at="dra.driverName",
        max_length=253,
        rules=(
            Rule(
                holds=f"self.matches('^{_DNS_NAME}$')",
                message=f"write the driver's name as a DNS name: {_DNS_WORDS}",
            ),
        ),
    ),
    Refinement(at="dra.deviceClasses.[].name", max_length=253),
    Refinement(
        at="dra.deviceClasses",
        max_items=256,
        rules=(
            Rule(
                holds="self.all(one, self.exists_one(other, other.name == one.name))",
                message="two device classes have one name; give each its own",
            ),
        ),
    ),
)

_LOADER = "moduleLoader.container"
_MAPPINGS = f"{_LOADER}.kernelMappings"

# dirName and a slash; joining the two for every file would be the dearest part of all.
_BELOW_DIR_NAME = "file.startsWith(self.modprobe.dirName) && file.charAt(size(self.modprobe.dirName)) == '/'"
_NO_SLASH_AT_END = (
    "self.modprobe.dirName.endsWith('/') "
    "? 'sign.filesToSign: write modprobe.dirName without a slash at its end, such as /opt, and paths below it'"
)
_IMAGE = Rule(
    holds="self.matches('^$|@|:[^/]*([$][{]|$)')",
    message="name a tag or a digest, such as registry.example:5000/team/module:1.0 or …/module@sha256:…; the colon "
    "of a registry's port is none",
)
_IN_TREE = Rule(
    holds=f"!has(self.inTreeModulesToRemove) || !{_is_set('inTreeModuleToRemove')}",
    message="write inTreeModulesToRemove alone: inTreeModuleToRemove is its deprecated form for one module",
    at=".inTreeModuleToRemove",
)


def _sign(owner: str) -> tuple[Refinement, ...]:
    return (
        Refinement(
            at=f"{owner}.sign",
            rules=(
                Rule(
                    holds="has(self.filesToSign) && size(self.filesToSign) > 0",
                    message="filesToSign: name the kernel modules to sign, such as "
                    "/opt/lib/modules/${KERNEL_FULL_VERSION}/module.ko, or remove sign",
                ),
            ),
        ),
        Refinement(at=f"{owner}.sign.filesToSign", max_items=MAX_FILES),
    )


_MAPPING = (
    Refinement(
        at=_MAPPINGS,
        max_items=MAX_MAPPINGS,
        rules=(
            Rule(
                # What RE2 does not compile makes the rule fail, and the API server says why before our message. A
                # rule that fails is no reason to it to spare a stored object, so this one spares what is as it was.
                holds="oldSelf.hasValue() && oldSelf.value() == self "
                "|| self.all(one, !has(one.regexp) || ''.matches(one.regexp) in [true, false])",
                message="write an RE2 expression (https://github.com/google/re2/wiki/Syntax): it has no look-around "
                "and no back-references",
                optional_old=True,
            ),
        ),
    ),
    Refinement(
        at=f"{_MAPPINGS}.[]",
        rules=(
            Rule(
                holds=f"{_is_set('literal')} != {_is_set('regexp')}",
                message="write either literal, for one kernel, or regexp, for several; exactly one of them",
            ),
            _IN_TREE,
        ),
    ),
    Refinement(at=f"{_MAPPINGS}.[].regexp", max_length=MAX_PATTERN_CHARACTERS),
    Refinement(at=f"{_MAPPINGS}.[].containerImage", max_length=2048, rules=(_IMAGE,)),
    *_sign(f"{_MAPPINGS}.[]"),
)

_CONTAINER = (
    Refinement(at=f"{_LOADER}.containerImage", max_length=2048, rules=(_IMAGE,)),
    *_sign(_LOADER),
    Refinement(
        at=_LOADER,
        rules=(
            Rule(
                holds=f"{_is_set('containerImage')} || self.kernelMappings.all(one, one.containerImage != '')",
                message="a mapping names no image: write its containerImage, or the container's for all mappings",
            ),
            _IN_TREE,
            Rule(
                holds=f"!has(self.inTreeModulesToRemove) "
                f"|| self.kernelMappings.all(one, !{_is_set('inTreeModuleToRemove', 'one')})",
                message="write inTreeModulesToRemove in the mappings, too: a mapping has inTreeModuleToRemove, its "
                "deprecated form",
            ),
            Rule(
                holds=f"!{_is_set('inTreeModuleToRemove')} "
                "|| self.kernelMappings.all(one, !has(one.inTreeModulesToRemove))",
                message="write inTreeModulesToRemove here, as in the mappings: inTreeModuleToRemove is its "
                "deprecated form",
                at=".inTreeModuleToRemove",
            ),
            Rule(
                holds="!has(self.sign) || !has(self.sign.filesToSign) "
                f"|| self.sign.filesToSign.all(file, {_BELOW_DIR_NAME})",
                message="sign.filesToSign: every path starts with modprobe.dirName and a slash",
                explains=f"{_NO_SLASH_AT_END} : 'sign.filesToSign: every path starts with ' "
                "+ self.modprobe.dirName + '/'",
            ),
            Rule(
                holds="self.kernelMappings.all(one, !has(one.sign) || !has(one.sign.filesToSign) "
                f"|| one.sign.filesToSign.all(file, {_BELOW_DIR_NAME}))",
                message="sign.filesToSign of a mapping: every path starts with modprobe.dirName and a slash",
                explains=f"{_NO_SLASH_AT_END} : 'sign.filesToSign of a mapping: every path starts with ' "
                "+ self.modprobe.dirName + '/'",
            ),
            Rule(
                holds=f"{_is_set('version')} == {_is_set('version', 'oldSelf')}",
                message="version cannot be added to or removed from a module that exists: delete the module, and "
                "create it again",
                at=".version",
            ),
        ),
    ),
)

_MODPROBE = (
    Refinement(at=f"{_LOADER}.modprobe.dirName", max_length=128),
    Refinement(at=f"{_LOADER}.modprobe.moduleName", max_length=256),
    Refinement(at=f"{_LOADER}.modprobe.modulesLoadingOrder", max_items=128),
    Refinement(at=f"{_LOADER}.modprobe.modulesLoadingOrder.[]", max_length=256),
    Refinement(
        at=f"{_LOADER}.modprobe",
        rules=(
            Rule(
                holds=f"{_is_set('moduleName')} ? !has(self.rawArgs) "
                "|| !has(self.rawArgs.load) && !has(self.rawArgs.unload) "
                ": has(self.rawArgs) && has(self.rawArgs.load) && has(self.rawArgs.unload)",
                message="write either moduleName, or rawArgs with both load and unload in its place",
            ),
            Rule(
                holds=f"!has(self.modulesLoadingOrder) || {_is_set('moduleName')} "
                "&& size(self.modulesLoadingOrder) > 1 && self.modulesLoadingOrder[0] == self.moduleName",
                message="write moduleName first, then the modules that it depends on, or remove the list",
                at=".modulesLoadingOrder",
            ),
            Rule(
                holds="!has(self.modulesLoadingOrder) || self.modulesLoadingOrder.all(one, "
                "self.modulesLoadingOrder.exists_one(other, other == one))",
                message="name every module once",
                at=".modulesLoadingOrder",
            ),
        ),
    ),
)

HUB_REFINEMENTS = (
    *_ROOT,
    *(
        replace(one, at=f"spec.moduleSpec.{one.at}")
        for one in (
            *_TOLERATIONS,
            *_volumes("devicePlugin"),
            *_volumes("dra"),
            *_DRA,
            *_CONTAINER,
            *_MAPPING,
            *_MODPROBE,
        )
    ),
)
"""Everything that the CRD of `ManagedClusterModule` has and a plain description of its types would not."""

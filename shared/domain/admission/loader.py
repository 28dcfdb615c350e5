"""Rules for `moduleLoader` (KMM `internal/webhook/module.go`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shared.domain.admission.fields import (
    DUPLICATE,
    FORBIDDEN,
    INVALID,
    REQUIRED,
    Object,
    Violation,
)
from shared.domain.admission.images import lacks_tag_and_digest
from shared.domain.module import DEFAULT_DIR_NAME
from shared.domain.pattern import BadPattern, Pattern

_OLD, _NEW = "inTreeModuleToRemove", "inTreeModulesToRemove"
_IMAGE = "write it like registry.example:5000/team/module:${KERNEL_FULL_VERSION} or …/module@sha256:…"


def violations(loader: Object, module: Mapping[str, Any]) -> Iterator[Violation]:
    """What is wrong with a `moduleLoader`; nothing if there is none.

    Args:
        loader: `spec.moduleSpec.moduleLoader`.
        module: the whole object, for the variables of image templates.
    """
    if not loader.is_given:
        return
    container = loader.child("container")
    yield from _images(container, module)
    for mapping in container.children("kernelMappings"):
        yield from _match(mapping)
    yield from _in_tree(container)
    yield from _modprobe(container.child("modprobe"))
    yield from _signing(container)


def changes(new: Object, old: Object) -> Iterator[Violation]:
    """What forbids to replace one ManagedClusterModule by another: its version may not come or go."""
    before, after = (
        module.child("spec").child("moduleSpec").child("moduleLoader").child("container")
        for module in (old, new)
    )
    if not before.is_given or not after.is_given:
        return
    was, will_be = before.text("version"), after.text("version")
    if bool(was) != bool(will_be):
        what = f"write a version again (it was {was!r})" if was else "take the version out again"
        yield after.refuse(
            "version",
            FORBIDDEN,
            f"a version cannot be added to or taken from a module; {what}, or make the module anew",
        )


def _images(container: Object, module: Mapping[str, Any]) -> Iterator[Violation]:
    inherited = container.text("containerImage")
    for level in (container, *container.children("kernelMappings")):
        image = level.text("containerImage")
        if image and lacks_tag_and_digest(image, module):
            yield level.refuse(
                "containerImage", INVALID, f"{image[:120]!r} has neither tag nor digest; {_IMAGE}"
            )
        elif not image and not inherited and level is not container:
            yield level.refuse("containerImage", REQUIRED, f"missing here and on the container; {_IMAGE}")


def _match(mapping: Object) -> Iterator[Violation]:
    literal, regexp = mapping.text("literal"), mapping.text("regexp")
    if literal and regexp:
        yield mapping.refuse("regexp", FORBIDDEN, "literal and regexp are both set; take one of them out")
    if not literal and not regexp:
        yield mapping.refuse(
            "regexp",
            REQUIRED,
            r"neither literal nor regexp is set; write a kernel as literal, or a regexp such as '^5\.14\.'",
        )
    try:
        Pattern(regexp)
    except BadPattern as problem:
        yield mapping.refuse(
            "regexp",
            INVALID,
            f"{regexp[:120]!r} is not valid RE2: {problem}; write a pattern without look-around and back-references",
        )


def _in_tree(container: Object) -> Iterator[Violation]:
    """Null and absent are one, but an empty list is a list that is set."""
    for level in (container, *container.children("kernelMappings")):
        if level.text(_OLD) and level.texts(_NEW) is not None:
            yield level.refuse(_OLD, FORBIDDEN, f"{_OLD} and {_NEW} are both set; write {_NEW} alone")
    for mapping in container.children("kernelMappings"):
        is_mixed = (container.text(_OLD) and mapping.texts(_NEW) is not None) or (
            mapping.text(_OLD) and container.texts(_NEW) is not None
        )
        if is_mixed:
            field = _OLD if mapping.text(_OLD) else _NEW
            yield mapping.refuse(
                field,
                FORBIDDEN,
                f"the container and this mapping use different fields; write {_NEW} in both, not {_OLD}",
            )


def _modprobe(modprobe: Object) -> Iterator[Violation]:
    name, raw = modprobe.text("moduleName"), modprobe.child("rawArgs")
    load, unload = raw.texts("load"), raw.texts("unload")
    if name and (load or unload):
        yield modprobe.refuse(
            "rawArgs", FORBIDDEN, "moduleName and rawArgs are both set; take one of them out"
        )
    elif not name and not (load and unload):
        yield modprobe.refuse(
            "moduleName",
            REQUIRED,
            "write the module's name, or both rawArgs.load and rawArgs.unload in its place",
        )
    order = modprobe.texts("modulesLoadingOrder")
    if order is not None:
        yield from _loading_order(modprobe, name, order)


def _loading_order(modprobe: Object, name: str, order: tuple[str, ...]) -> Iterator[Violation]:
    field = "modulesLoadingOrder"
    if len(order) < 2:
        yield modprobe.refuse(
            field,
            INVALID,
            "has less than two names; write moduleName and then what it depends on, or leave it out",
        )
    if not name:
        yield modprobe.refuse(
            field, FORBIDDEN, "needs moduleName; write that, or leave the loading order out"
        )
    elif order and order[0] != name:
        yield modprobe.refuse(
            field,
            INVALID,
            f"starts with {order[0][:80]!r}; write moduleName, {name[:80]!r}, as its first entry",
        )
    seen: set[str] = set()
    for index, entry in enumerate(order):
        if entry in seen:
            yield modprobe.refuse(
                f"{field}[{index}]", DUPLICATE, f"{entry[:80]!r} is there twice; name each module once"
            )
        seen.add(entry)


def _signing(container: Object) -> Iterator[Violation]:
    """Paths are compared as they are written, before their variables are replaced."""
    stated = container.child("modprobe").get("dirName")
    directory = stated if isinstance(stated, str) else DEFAULT_DIR_NAME
    for level in (container, *container.children("kernelMappings")):
        sign = level.child("sign")
        files = sign.texts("filesToSign")
        if sign.is_given and not files:
            yield sign.refuse(
                "filesToSign",
                REQUIRED,
                "missing; write the paths of the modules in the image, such as "
                f"{directory.rstrip('/')}/lib/modules/…/m.ko",
            )
        for index, file in enumerate(files or ()):
            if not file.startswith(f"{directory}/"):
                cure = f"write a path that starts with {directory}/"
                if directory.endswith("/"):
                    cure = (
                        "write modprobe.dirName without a slash at its end, such as /opt, and paths below it"
                    )
                yield sign.refuse(
                    f"filesToSign[{index}]", INVALID, f"{file[:120]!r} is not below modprobe.dirName; {cure}"
                )

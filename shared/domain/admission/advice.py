"""What KMM allows, and what still cannot work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shared.domain.admission.fields import INVALID, REQUIRED, Object, Violation
from shared.domain.admission.images import sample_variables
from shared.domain.errors import PermanentError
from shared.domain.image import ImageReference
from shared.domain.template import expand


def warnings(module: Mapping[str, Any]) -> tuple[Violation, ...]:
    """What is allowed in a ManagedClusterModule, but will not work."""
    spec = Object(module).child("spec")
    module_spec = spec.child("moduleSpec")
    if not module_spec.is_given:
        return (
            spec.refuse(
                "moduleSpec", REQUIRED, "missing: nothing is shipped that a spoke accepts; write a ModuleSpec"
            ),
        )
    container = module_spec.child("moduleLoader").child("container")
    levels = (container, *container.children("kernelMappings"))
    return (
        *(found for level in levels for found in _image(level, "containerImage", module)),
        *(found for level in levels for found in _image(level.child("sign"), "unsignedImage", module)),
        *_sources(container),
        *_literals(container),
    )


def _image(level: Object, field: str, module: Mapping[str, Any]) -> Iterator[Violation]:
    template = level.text(field)
    if not template:
        return
    try:
        ImageReference.parse(expand(template, sample_variables(module)))
    except PermanentError as problem:
        yield level.refuse(field, INVALID, str(problem))


def _sources(container: Object) -> Iterator[Violation]:
    """A signature needs something to be signed: an image that is built, or an unsigned one."""
    for mapping in container.children("kernelMappings"):
        levels = (container, mapping)
        is_signed = any(level.child("sign").is_given for level in levels)
        is_built = any(level.child("build").is_given for level in levels)
        has_source = any(level.child("sign").text("unsignedImage") for level in levels)
        if is_signed and not is_built and not has_source:
            yield mapping.refuse(
                "sign.unsignedImage",
                REQUIRED,
                "there is neither a build nor an image to sign; write unsignedImage, or a build section",
            )


def _literals(container: Object) -> Iterator[Violation]:
    for mapping in container.children("kernelMappings"):
        literal = mapping.text("literal")
        if literal.endswith("+"):
            yield mapping.refuse(
                "literal",
                INVALID,
                f"{literal[:80]!r} takes no kernel: one + at the end of a kernel is cut before; write it without",
            )

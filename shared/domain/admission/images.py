"""Images as modules name them: templates, of which only the expanded text tells whether they have a tag."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shared.domain.admission.fields import Object
from shared.domain.kernel import kernel_variables
from shared.domain.template import InvalidTemplate, expand

_VARIABLE = re.compile(r"\$\{[^{}]*\}")

SAMPLE_KERNEL = "5.14.0-570.12.1.el9_6.x86_64"
"""A kernel for looking at templates where none is known."""


def sample_variables(module: Mapping[str, Any]) -> dict[str, str]:
    """Variables of image templates for a ManagedClusterModule, as for `SAMPLE_KERNEL`."""
    top = Object(module)
    return {
        **kernel_variables(SAMPLE_KERNEL),
        "MOD_NAME": top.child("metadata").text("name"),
        "MOD_NAMESPACE": top.child("spec").text("spokeNamespace"),
    }


def lacks_tag_and_digest(template: str, module: Mapping[str, Any]) -> bool:
    """Whether an image has neither tag nor digest; a colon before a registry's port is no tag.

    A variable may bring the tag along, or stand for it whatever it expands to: either counts. A template that cannot
    be expanded is looked at as it is.
    """
    try:
        expanded = expand(template, sample_variables(module))
    except InvalidTemplate:
        expanded = template
    return not any(
        "@" in image or ":" in image.rpartition("/")[2] for image in (expanded, _VARIABLE.sub("x", template))
    )

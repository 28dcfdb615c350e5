"""Names: what Kubernetes takes for one, and what fits into the labels that a spoke puts on its nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.domain.admission.fields import FORBIDDEN, INVALID, REQUIRED, TOO_LONG, Object, Violation
from shared.domain.module import RESERVED_NAME

MAX_COMBINED = 41
"""Characters of a module's name and namespace together: KMM writes both, with 22 characters of its own, into keys of
node labels, whose last part has at most 63 characters."""

GENERATED_CHARACTERS = 5
"""What the API server appends to `metadata.generateName`."""

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def is_dns_label(text: str) -> bool:
    """Whether `text` is a DNS label (RFC 1123): up to 63 lower-case letters, digits and inner dashes."""
    return _LABEL.fullmatch(text) is not None


def is_dns_subdomain(text: str) -> bool:
    """Whether `text` is a DNS subdomain (RFC 1123) of up to 253 characters, as Kubernetes checks it."""
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def is_label_value(text: str) -> bool:
    """Whether `text` can be a label's value: empty, or up to 63 letters, digits and inner `- _ .`."""
    return text == "" or _QUALIFIED.fullmatch(text) is not None


def is_qualified_name(text: str) -> bool:
    """Whether `text` can be a label's or taint's key: a name, with a DNS subdomain and a slash before it or not."""
    prefix, slash, name = text.rpartition("/")
    return _QUALIFIED.fullmatch(name) is not None and (not slash or is_dns_subdomain(prefix))


def violations(module: Object) -> Iterator[Violation]:
    """What is wrong with the names of a ManagedClusterModule and of its namespace on the spokes."""
    metadata, spec = module.child("metadata"), module.child("spec")
    namespace = spec.text("spokeNamespace")
    prefix = metadata.text("generateName")
    name = metadata.text("name") or (prefix and prefix + "x" * GENERATED_CHARACTERS)
    if spec.is_given and not namespace:
        yield spec.refuse(
            "spokeNamespace", REQUIRED, "is empty; write the namespace of the Module on the spokes"
        )
    elif namespace and not is_dns_label(namespace):
        yield spec.refuse(
            "spokeNamespace",
            INVALID,
            f"{namespace[:80]!r} cannot be a namespace's name; write up to 63 lower-case letters, digits and inner "
            "dashes, such as 'kmm-modules'",
        )
    if name == RESERVED_NAME:
        yield metadata.refuse(
            "name",
            FORBIDDEN,
            f"{name!r} is the name of the hub's own ManifestWorks; give the module another name",
        )
    length = len(name) + len(namespace)
    if length > MAX_COMBINED:
        yield metadata.refuse(
            "name",
            TOO_LONG,
            f"name ({len(name)} characters) and spec.spokeNamespace ({len(namespace)}) have {length} characters "
            f"together; shorten one of them to at most {MAX_COMBINED} together, because KMM puts both into one key "
            "of a node label",
        )

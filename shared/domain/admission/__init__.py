"""Which ManagedClusterModules are allowed. Pure: objects in, violations out.

The rules are those of KMM's hub webhook (`internal/webhook/module.go`), and three more for modules that could never
work on a cluster; docs/compatibility.md names them. The object's structure is the API server's business: it has
checked an object against the CRD, filled in defaults and dropped nulls before a webhook sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.domain.admission import advice, loader, names, plugins, tolerations
from shared.domain.admission.fields import Object, Violation

__all__ = ["Violation", "validate", "validate_update", "warnings"]


def validate(module: Mapping[str, Any]) -> tuple[Violation, ...]:
    """What forbids a ManagedClusterModule; empty if it is allowed.

    Args:
        module: the whole object, of the CRD's structure. Nulls count as absent.
    """
    top = Object(module)
    spec = top.child("spec").child("moduleSpec")
    return (
        *names.violations(top),
        *tolerations.violations(spec),
        *plugins.violations(spec),
        *loader.violations(spec.child("moduleLoader"), module),
    )


def validate_update(new: Mapping[str, Any], old: Mapping[str, Any]) -> tuple[Violation, ...]:
    """What forbids to replace `old` by `new`; empty if the update is allowed.

    An update that leaves the spec as it is, and one of a module that is being deleted, is always allowed: a module
    that is older than a rule must still get its labels and lose its finalizers.
    """
    is_going = Object(new).child("metadata").get("deletionTimestamp") is not None
    if is_going or new.get("spec") == old.get("spec"):
        return ()
    return (*validate(new), *loader.changes(Object(new), Object(old)))


def warnings(module: Mapping[str, Any]) -> tuple[Violation, ...]:
    """What is allowed, but will not work; in the form of violations, for people who write modules.

    Args:
        module: as for `validate`, which should have passed.
    """
    return advice.warnings(module)

"""Rules for `devicePlugin` and `dra` (KMM `internal/webhook/module.go`)."""

from __future__ import annotations

from collections.abc import Iterator

from shared.domain.admission.fields import DUPLICATE, FORBIDDEN, INVALID, REQUIRED, Object, Violation
from shared.domain.admission.names import is_dns_subdomain

ALLOWED_HOST_PATHS = ("/dev", "/sys", "/var", "/opt", "/run")
"""Where volumes of plugins may reach into a node."""


def violations(spec: Object) -> Iterator[Violation]:
    """What is wrong with the plugins of a ModuleSpec."""
    device_plugin, dra = spec.child("devicePlugin"), spec.child("dra")
    if device_plugin.is_given and dra.is_given:
        yield spec.refuse("dra", FORBIDDEN, "dra and devicePlugin must not both be set; take one of them out")
    if dra.is_given:
        yield from _driver(dra)
    for plugin in (device_plugin, dra):
        yield from _volumes(plugin)


def clean(path: str) -> str:
    """An absolute path with `.`, `..` and doubled slashes resolved, as text; a relative one stays as it is."""
    if not path.startswith("/"):
        return path
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    return "/" + "/".join(parts)


def _driver(dra: Object) -> Iterator[Violation]:
    driver = dra.text("driverName")
    if not driver:
        yield dra.refuse("driverName", REQUIRED, "missing; write the driver's name, such as gpu.example.com")
    elif not is_dns_subdomain(driver):
        yield dra.refuse("driverName", INVALID, f"{_not_a_name(driver)}gpu.example.com")
    seen: set[str] = set()
    for device_class in dra.children("deviceClasses"):
        name = device_class.text("name")
        if not name:
            yield device_class.refuse("name", REQUIRED, "missing; write the name of the DeviceClass")
        elif not is_dns_subdomain(name):
            yield device_class.refuse("name", INVALID, f"{_not_a_name(name)}gpu.example.com")
        elif name in seen:
            yield device_class.refuse("name", DUPLICATE, f"{name!r} is there twice; name each class once")
        seen.add(name)


def _volumes(plugin: Object) -> Iterator[Violation]:
    for volume in plugin.children("volumes"):
        host_path = volume.child("hostPath")
        path = host_path.text("path")
        cleaned = clean(path)
        is_allowed = any(cleaned == root or cleaned.startswith(f"{root}/") for root in ALLOWED_HOST_PATHS)
        if host_path.is_given and not is_allowed:
            yield host_path.refuse(
                "path",
                FORBIDDEN,
                f"{path[:120]!r} is not allowed; write a path at or below {', '.join(ALLOWED_HOST_PATHS)}",
            )


def _not_a_name(text: str) -> str:
    return (
        f"{text[:80]!r} is no DNS subdomain; write up to 253 lower-case letters, digits, inner dashes and dots, "
        "such as "
    )

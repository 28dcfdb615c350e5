"""What the API server checks before any rule: an object against the schema of its CRD.

It follows Kubernetes' order ("Extend the Kubernetes API with CustomResourceDefinitions": defaulting and pruning):
nulls of fields that may not be null go, defaults come, then the rest is compared. Rules in CEL are left out: those of
ours stand in `shared.domain.admission`, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import re2
import yaml

from kmmhub.crds import CRD_DIRECTORY
from shared.domain.admission.fields import (
    DUPLICATE,
    INVALID,
    NOT_SUPPORTED,
    REQUIRED,
    TOO_LONG,
    WRONG_TYPE,
    Violation,
)
from shared.domain.admission.names import is_dns_subdomain

API_VERSION = "hub.kmm.sigs.x-k8s.io/v1beta1"
_SENTENCE_END = re.compile(r"(?<=[.;])\s")
_CRD_FILE = "hub.kmm.sigs.x-k8s.io_managedclustermodules.yaml"
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_WORDS = {
    "object": "an object",
    "array": "a list",
    "string": "a text (in quotes, if it looks like something else)",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
}
_BITS = {"int32": 31, "int64": 63}


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """The result of a comparison with the CRD.

    Attributes:
        content: the object as the API server would keep it: nulls dropped, defaults filled in.
        violations: why the API server would refuse it.
        unknown: paths of fields that the CRD does not have, and the API server would drop.
    """

    content: dict[str, Any]
    violations: tuple[Violation, ...]
    unknown: tuple[str, ...]


def check_structure(module: Mapping[str, Any]) -> Structure:
    """Compare a ManagedClusterModule with the CRD."""
    walk = _Walk(violations=[], unknown=[])
    metadata = module.get("metadata")
    walk.violations.extend(_identity(module.get("apiVersion"), metadata))
    # The status is written through a subresource, and metadata has a schema that is not the CRD's.
    own = {name: value for name, value in module.items() if name not in {"metadata", "status"}}
    content = walk.object(own, _schema(), "")
    return Structure(
        content={**content, "metadata": metadata if isinstance(metadata, dict) else {}},
        violations=tuple(walk.violations),
        unknown=tuple(walk.unknown),
    )


@cache
def _schema() -> dict[str, Any]:
    with (CRD_DIRECTORY / _CRD_FILE).open(encoding="utf-8") as file:
        crd = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (a safe loader, in C)
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _identity(api_version: Any, metadata: Any) -> Iterator[Violation]:
    if api_version != API_VERSION:
        yield Violation("apiVersion", INVALID, f"is {api_version!r:.80}; write {API_VERSION}")
    fields = metadata if isinstance(metadata, dict) else {}
    name = fields.get("name")
    if name is None and fields.get("generateName"):
        return
    if not name:
        yield Violation("metadata.name", REQUIRED, "missing; write the module's name")
    elif not isinstance(name, str) or not is_dns_subdomain(name):
        yield Violation(
            "metadata.name",
            INVALID,
            f"{name!r:.80} is no name; write lower-case letters, digits, and inner - and ., as text",
        )


@dataclass(frozen=True, slots=True)
class _Walk:
    violations: list[Violation]
    unknown: list[str]

    def object(self, fields: dict[str, Any], schema: Mapping[str, Any], path: str) -> dict[str, Any]:
        """An object with its nulls dropped and its defaults filled in; what is wrong is noted."""
        known: Mapping[str, Any] = schema.get("properties", {})
        others = schema.get("additionalProperties")
        is_open = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
        defaults = {name: part["default"] for name, part in known.items() if "default" in part}
        given = {name: value for name, value in fields.items() if value is not None}
        kept: dict[str, Any] = {}
        for name, value in (defaults | given).items():
            at = f"{path}.{name}" if path else name
            part = known.get(name) or (others if isinstance(others, dict) else None)
            if part is not None:
                kept[name] = self.value(value, part, at)
            elif is_open:
                kept[name] = value
            else:
                self.unknown.append(at)
        if len(kept) > schema.get("maxProperties", len(kept)):
            self._refuse(path, TOO_LONG, f"has {len(kept)} entries; write at most {schema['maxProperties']}")
        for name in schema.get("required", ()):
            if name not in kept:
                self._refuse(f"{path}.{name}" if path else name, REQUIRED, _missing(known.get(name, {})))
        return kept

    def value(self, value: Any, schema: Mapping[str, Any], path: str) -> Any:
        """A value as it would be kept; what is wrong is noted."""
        if schema.get("x-kubernetes-int-or-string"):
            if isinstance(value, bool) or not isinstance(value, int | str):
                self._refuse(path, WRONG_TYPE, f"is {value!r:.80}; write a whole number or a text")
            else:
                self._text(str(value), schema, path)
            return value
        kind = schema.get("type", "object")
        is_boolean = isinstance(value, bool)
        if not isinstance(value, _TYPES[kind]) or (is_boolean and kind != "boolean"):
            self._refuse(path, WRONG_TYPE, f"is {value!r:.80}; write {_WORDS[kind]}")
            return value
        if isinstance(value, dict):
            return self.object(value, schema, path)
        if isinstance(value, list):
            return self._list(value, schema, path)
        if isinstance(value, str):
            self._text(value, schema, path)
        elif isinstance(value, int | float) and not is_boolean:
            self._number(value, schema, path)
        return value

    def _list(self, entries: list[Any], schema: Mapping[str, Any], path: str) -> list[Any]:
        if len(entries) < schema.get("minItems", 0):
            self._refuse(path, REQUIRED, f"has {len(entries)} entries; write at least {schema['minItems']}")
        if len(entries) > schema.get("maxItems", len(entries)):
            self._refuse(path, TOO_LONG, f"has {len(entries)} entries; write at most {schema['maxItems']}")
        kept = [self.value(entry, schema["items"], f"{path}[{index}]") for index, entry in enumerate(entries)]
        keys = schema.get("x-kubernetes-list-map-keys")
        seen: list[Any] = []
        for index, entry in enumerate(kept if keys or schema.get("x-kubernetes-list-type") == "set" else ()):
            identity = [entry.get(key) for key in keys] if keys and isinstance(entry, dict) else entry
            if identity in seen:
                self._refuse(f"{path}[{index}]", DUPLICATE, f"{identity!r:.80} is there twice; write it once")
            seen.append(identity)
        return kept

    def _text(self, text: str, schema: Mapping[str, Any], path: str) -> None:
        if len(text) > schema.get("maxLength", len(text)):
            self._refuse(path, TOO_LONG, f"has {len(text)} characters; write at most {schema['maxLength']}")
        elif len(text) < schema.get("minLength", 0):
            self._refuse(path, INVALID, f"is too short; write at least {schema['minLength']} characters")
        pattern = schema.get("pattern")
        if pattern and re2.search(pattern, text) is None:
            self._refuse(path, INVALID, f"{text!r:.80} is not allowed; write what matches {pattern}")
        if "enum" in schema and text not in schema["enum"]:
            self._refuse(
                path, NOT_SUPPORTED, f"{text!r:.80} is unknown; write one of {', '.join(schema['enum'])}"
            )

    def _number(self, number: float, schema: Mapping[str, Any], path: str) -> None:
        bits = _BITS.get(schema.get("format", ""))
        if bits is not None and not -(2**bits) <= number < 2**bits:
            self._refuse(path, INVALID, f"{number} does not fit; write a whole number of {bits + 1} bits")
        if number < schema.get("minimum", number):
            self._refuse(path, INVALID, f"{number} is too small; write at least {schema['minimum']}")
        if number > schema.get("maximum", number):
            self._refuse(path, INVALID, f"{number} is too large; write at most {schema['maximum']}")

    def _refuse(self, path: str, reason: str, message: str) -> None:
        self.violations.append(Violation(path, reason, message))


def _missing(schema: Mapping[str, Any]) -> str:
    described = _SENTENCE_END.split(schema.get("description", ""), maxsplit=1)[0].rstrip(".;")
    return f"missing; write {_WORDS.get(schema.get('type', ''), 'it')}" + (
        f": {described}" if described else ""
    )

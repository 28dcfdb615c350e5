"""What is found, and how the fields of an object are reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

REQUIRED = "FieldValueRequired"
INVALID = "FieldValueInvalid"
DUPLICATE = "FieldValueDuplicate"
NOT_SUPPORTED = "FieldValueNotSupported"
FORBIDDEN = "FieldValueForbidden"
TOO_LONG = "FieldValueTooLong"
WRONG_TYPE = "FieldValueTypeInvalid"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with an object.

    Attributes:
        path: the field, such as `spec.moduleSpec.selector`; entries of lists are written `[0]`.
        reason: one of Kubernetes' words for causes (`metav1.CauseType`), such as `FieldValueRequired`.
        message: for people: what is wrong, and what to write instead.
    """

    path: str
    reason: str
    message: str


class Object:
    """A JSON object with its path. Null counts as absent; what is absent or no object has no fields."""

    def __init__(self, fields: Any, path: str = "") -> None:
        self._fields: Mapping[str, Any] = fields if isinstance(fields, Mapping) else {}
        self.is_given = isinstance(fields, Mapping)
        self.path = path

    def get(self, name: str) -> Any:
        """The value of a field, None if absent."""
        return self._fields.get(name)

    def text(self, name: str) -> str:
        """The text of a field, empty if absent."""
        value = self._fields.get(name)
        return value if isinstance(value, str) else ""

    def texts(self, name: str) -> tuple[str, ...] | None:
        """The texts of a list; None if absent, which is not the same as an empty list."""
        value = self._fields.get(name)
        return tuple(str(entry) for entry in value) if isinstance(value, list | tuple) else None

    def child(self, name: str) -> Object:
        """The object in a field."""
        return Object(self._fields.get(name), self.at(name))

    def children(self, name: str) -> Iterator[Object]:
        """The objects in a list."""
        value = self._fields.get(name)
        entries = value if isinstance(value, list | tuple) else ()
        return (Object(entry, f"{self.at(name)}[{index}]") for index, entry in enumerate(entries))

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def refuse(self, name: str, reason: str, message: str) -> Violation:
        """A violation at a field."""
        return Violation(self.at(name), reason, message)

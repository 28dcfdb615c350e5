"""Refining a CRD's schema: CEL rules, and the bounds that let the API server know their cost in advance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.api.structural import Schema, ordered
from shared.domain.errors import PermanentError

VALIDATIONS = "x-kubernetes-validations"
CHILDREN = {"[]": "items", "{}": "additionalProperties"}
"""Names in a path that lead to no property: the entries of a list, the values of a map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of `x-kubernetes-validations`.

    Attributes:
        holds: CEL over `self`; an object for which it is false, or fails, is refused. One that names `oldSelf` is
            asked on updates only.
        message: what to write instead.
        explains: CEL that gives a more exact message.
        at: the child that the refusal points to, such as `.regexp`.
        optional_old: `oldSelf` is an optional, empty on creation, and the rule is asked then, too.
    """

    holds: str
    message: str
    explains: str | None = None
    at: str | None = None
    optional_old: bool = False

    def manifest(self) -> dict[str, Any]:
        """Return the entry as JSON."""
        entry = {
            "rule": self.holds,
            "message": self.message,
            "messageExpression": self.explains,
            "fieldPath": self.at,
            "optionalOldSelf": self.optional_old or None,
        }
        return {key: value for key, value in entry.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """What is added to one node of a schema.

    Attributes:
        at: the node: names joined by dots, `[]` for the entries of a list; empty is the root.
        max_length: how many characters a text may have.
        max_items: how many entries a list may have.
        rules: rules over the node's value, in the order in which they are reported.
    """

    at: str
    max_length: int | None = None
    max_items: int | None = None
    rules: tuple[Rule, ...] = ()

    @property
    def bounds(self) -> dict[str, int]:
        """The bounds that are set, by JSON schema's keyword."""
        both = {"maxLength": self.max_length, "maxItems": self.max_items}
        return {keyword: value for keyword, value in both.items() if value is not None}


def refined(schema: Schema, refinements: Sequence[Refinement]) -> Schema:
    """Return the schema with every refinement added; the given one is left as it is.

    Raises PermanentError if the schema has no such node, or has another bound of that name already.
    """
    for refinement in refinements:
        names = refinement.at.split(".") if refinement.at else []
        schema = _refined(schema, names, refinement)
    return schema


def _refined(schema: Schema, names: list[str], refinement: Refinement) -> Schema:
    if not names:
        return _added(schema, refinement)
    first, *rest = names
    if first in CHILDREN and CHILDREN[first] in schema:
        return schema | {CHILDREN[first]: _refined(schema[CHILDREN[first]], rest, refinement)}
    properties = schema.get("properties", {})
    if first not in properties:
        raise PermanentError(f"The schema has no {refinement.at!r} to refine: {first!r} is missing.")
    return schema | {"properties": properties | {first: _refined(properties[first], rest, refinement)}}


def _added(schema: Schema, refinement: Refinement) -> Schema:
    for bound, value in refinement.bounds.items():
        if schema.get(bound, value) != value:
            raise PermanentError(
                f"{refinement.at!r} has {bound} {schema[bound]} already, which is not {value}."
            )
    rules = [*schema.get(VALIDATIONS, []), *(rule.manifest() for rule in refinement.rules)]
    return ordered(schema | refinement.bounds | ({VALIDATIONS: rules} if rules else {}))

"""Turns JSON schemas into the structural schemas that CustomResourceDefinitions consist of.

The rules are Kubernetes' ("Specifying a structural schema"): no `$ref`, no `anyOf` but the one of
int-or-string, every node with a type. Both sources of schemas pass through the same walk: Pydantic's, and the
API server's own OpenAPI document.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from shared.api.base import CORE_TYPE_KEYWORD
from shared.domain.errors import PermanentError

Schema = dict[str, Any]
"""One node of a JSON schema."""

KEYWORDS = (
    "description",
    "type",
    "anyOf",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "format",
    "enum",
    "default",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
    "required",
    "properties",
    "items",
    "additionalProperties",
)
"""What a schema in a CRD may say here, in the order in which it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaSource:
    """Where references of a schema lead, and what is taken over from it.

    Attributes:
        definitions: schemas by the last part of the `$ref` that names them.
        replaced: finished schemas that stand in for the definition of that name.
        omitted: keywords that are not taken over.
        core: where the marks of `CoreV1` lead.
    """

    definitions: Mapping[str, Schema]
    replaced: Mapping[str, Schema] = field(default_factory=dict)
    omitted: frozenset[str] = frozenset()
    core: Self | None = None

    def structural(self, schema: Schema) -> Schema:
        """Return the structural form of a schema, with every reference resolved.

        Raises PermanentError for a schema that no structural schema can express.
        """
        if self.core is not None and CORE_TYPE_KEYWORD in schema:
            core_type = self.core.structural({"$ref": schema[CORE_TYPE_KEYWORD]})
            return self._ordered(core_type | _without(schema, CORE_TYPE_KEYWORD))
        target = schema.get("$ref", "").rpartition("/")[2]
        if target in self.replaced:
            return self._ordered(self.replaced[target] | _without(schema, "$ref"))
        if target:
            if target not in self.definitions:
                raise PermanentError(f"The schema refers to {target!r}, which its document does not define.")
            return self.structural(self.definitions[target] | _without(schema, "$ref"))
        for combination in ("allOf", "anyOf"):
            if combination in schema:
                return self.structural(_only(schema, combination) | _without(schema, combination, "default"))
        return self._ordered(schema | self._children(schema))

    def _children(self, schema: Schema) -> Schema:
        required = schema.get("required", [])
        children: Schema = {}
        if properties := schema.get("properties"):
            walked = {name: self.structural(child) for name, child in sorted(properties.items())}
            # A default on a required field would make the API server fill in what it should demand.
            children["properties"] = {
                name: _without(child, "default") if name in required else child
                for name, child in walked.items()
            }
        for keyword in ("items", "additionalProperties"):
            if isinstance(schema.get(keyword), dict):
                # A CRD fills in fields of objects, never entries of lists or maps.
                children[keyword] = _without(self.structural(schema[keyword]), "default")
        return children

    def _ordered(self, schema: Schema) -> Schema:
        if "type" not in schema and "x-kubernetes-int-or-string" not in schema:
            raise PermanentError(f"A structural schema needs a type, but this one has none: {schema!r}.")
        return ordered(_without(schema, *self.omitted))


def ordered(schema: Schema) -> Schema:
    """Return the node with the keywords of `KEYWORDS` alone, in that order, and without empty ones."""
    kept = {
        keyword: schema[keyword]
        for keyword in KEYWORDS
        if keyword in schema and schema[keyword] not in (None, {}, [])
    }
    return kept | ({"required": sorted(kept["required"])} if "required" in kept else {})


def _only(schema: Schema, combination: str) -> Schema:
    """The one alternative beside null: `Optional` in Python is a field that may be left out."""
    alternatives = [choice for choice in schema[combination] if choice.get("type") != "null"]
    if len(alternatives) != 1:
        raise PermanentError(f"A structural schema cannot choose: {combination} of {alternatives!r}.")
    return dict(alternatives[0])


def _without(schema: Schema, *keywords: str) -> Schema:
    return {keyword: value for keyword, value in schema.items() if keyword not in keywords}

"""JSON schemas become structural schemas by the rules of CustomResourceDefinitions."""

import pytest

from shared.api.base import CORE_TYPE_KEYWORD
from shared.api.structural import Schema, SchemaSource
from shared.domain.errors import PermanentError

STRING: Schema = {"type": "string"}
DEFINITIONS: dict[str, Schema] = {
    "Port": {"type": "object", "required": ["name"], "properties": {"name": STRING | {"default": ""}}},
    "Amount": {"oneOf": [STRING, {"type": "number"}]},
    "Protocol": STRING | {"enum": ["TCP"], "description": "long"},
}
SOURCE = SchemaSource(definitions=DEFINITIONS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({"$ref": "#/$defs/Protocol"}, DEFINITIONS["Protocol"], id="reference"),
        pytest.param(
            {"$ref": "#/$defs/Protocol", "description": "short"},
            DEFINITIONS["Protocol"] | {"description": "short"},
            id="what stands beside a reference wins",
        ),
        pytest.param({"allOf": [STRING], "default": {}}, STRING, id="all of one"),
        pytest.param({"anyOf": [STRING, {"type": "null"}], "default": None}, STRING, id="optional"),
        pytest.param(
            STRING | {"title": "T", "x-kubernetes-patch-strategy": "merge"}, STRING, id="unknown keywords"
        ),
        pytest.param(STRING | {"default": ""}, STRING | {"default": ""}, id="empty text is a default"),
        pytest.param(
            {"type": "boolean", "default": False}, {"type": "boolean", "default": False}, id="so is false"
        ),
        pytest.param(
            {"type": "array", "items": STRING | {"default": ""}},
            {"type": "array", "items": STRING},
            id="entries",
        ),
        pytest.param(
            {"type": "object", "additionalProperties": {"$ref": "#/$defs/Port"}},
            {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": STRING},
                },
            },
            id="map",
        ),
        pytest.param(
            {"$ref": "#/$defs/Port"},
            {"type": "object", "required": ["name"], "properties": {"name": STRING}},
            id="a required field has no default",
        ),
    ],
)
def test_forms(given: Schema, expected: Schema) -> None:
    assert SOURCE.structural(given) == expected


def test_properties_are_written_in_the_order_of_their_names() -> None:
    schema: Schema = {"properties": {"b": STRING, "a": STRING}, "required": ["b", "a"], "type": "object"}

    written = SOURCE.structural(schema)

    assert (list(written), list(written["properties"])) == (["type", "required", "properties"], ["a", "b"])
    assert written["required"] == ["a", "b"]


def test_a_marked_type_comes_from_the_core_source_with_its_replacements_and_omissions() -> None:
    core = SchemaSource(
        definitions=DEFINITIONS,
        replaced={"Amount": {"x-kubernetes-int-or-string": True}},
        omitted=frozenset({"enum", "description"}),
    )
    source = SchemaSource(definitions={}, core=core)

    assert source.structural({CORE_TYPE_KEYWORD: "Protocol", "description": "ours"}) == {
        "description": "ours",
        "type": "string",
    }
    assert source.structural({CORE_TYPE_KEYWORD: "Amount"}) == {"x-kubernetes-int-or-string": True}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "#/$defs/Gone"}, "'Gone', which its document does not define"),
        ({"anyOf": [STRING, {"type": "integer"}]}, "cannot choose"),
        ({"$ref": "#/$defs/Amount"}, "needs a type"),
        ({"type": "array", "items": {}}, "needs a type"),
    ],
)
def test_what_cannot_be_expressed_is_an_error(schema: Schema, message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        SOURCE.structural(schema)

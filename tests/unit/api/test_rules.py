"""Refinements add to one node of a schema, and to nothing else."""

from copy import deepcopy

import pytest

from shared.api.hub_rules import HUB_REFINEMENTS
from shared.api.rules import Refinement, Rule, refined
from shared.api.structural import Schema
from shared.domain.errors import PermanentError

TEXT: Schema = {"type": "string"}
SCHEMA: Schema = {
    "type": "object",
    "x-kubernetes-validations": [{"rule": "has(self.a)"}],
    "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"b": TEXT}}}, "c": TEXT},
}
RULE = Rule(holds="self != 'x'", message="write something else")
ENTRY = {"rule": "self != 'x'", "message": "write something else"}


def test_a_rule_and_a_bound_reach_the_entries_of_a_list() -> None:
    before = deepcopy(SCHEMA)

    after = refined(SCHEMA, [Refinement(at="a.[].b", max_length=5, rules=(RULE,))])

    assert after["properties"]["a"]["items"]["properties"]["b"] == {
        "type": "string",
        "maxLength": 5,
        "x-kubernetes-validations": [ENTRY],
    }
    assert after["properties"]["c"] is SCHEMA["properties"]["c"]
    assert before == SCHEMA


def test_rules_come_after_those_that_are_there() -> None:
    after = refined(SCHEMA, [Refinement(at="", rules=(RULE,)), Refinement(at="", rules=(RULE,))])

    assert after["x-kubernetes-validations"] == [{"rule": "has(self.a)"}, ENTRY, ENTRY]


def test_a_rule_says_all_that_it_has() -> None:
    rule = Rule(holds="h", message="m", explains="'e'", at=".a", optional_old=True)

    assert rule.manifest() == {
        "rule": "h",
        "message": "m",
        "messageExpression": "'e'",
        "fieldPath": ".a",
        "optionalOldSelf": True,
    }


@pytest.mark.parametrize("path", ["d", "a.b", "a.[].d", "c.[]", "a.[].[]"])
def test_a_node_that_is_not_there_is_an_error(path: str) -> None:
    with pytest.raises(PermanentError, match="to refine"):
        refined(SCHEMA, [Refinement(at=path, rules=(RULE,))])


def test_two_bounds_of_a_node_are_an_error() -> None:
    once = [Refinement(at="c", max_length=5)]

    assert refined(refined(SCHEMA, once), once) == refined(SCHEMA, once)
    with pytest.raises(PermanentError, match="maxLength 5 already"):
        refined(SCHEMA, [*once, Refinement(at="c", max_length=6)])


def test_every_message_is_one_line_that_kubernetes_takes() -> None:
    messages = [rule.message for one in HUB_REFINEMENTS for rule in one.rules]

    assert messages
    assert [text for text in messages if "\n" in text or len(text) > 2048 or not text[0].islower()] == []

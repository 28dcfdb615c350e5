"""Cluster selection by label equality."""

import pytest

from shared.domain.selection import is_selected


@pytest.mark.parametrize(
    ("selector", "labels", "selected"),
    [
        ({}, {}, True),
        ({}, {"a": "1"}, True),
        ({"a": "1"}, {"a": "1"}, True),
        ({"a": "1"}, {"a": "1", "b": "2"}, True),
        ({"a": "1"}, {"a": "2"}, False),
        ({"a": "1"}, {}, False),
        ({"a": "1", "b": "2"}, {"a": "1"}, False),
        ({"a": ""}, {"a": ""}, True),
        ({"a": ""}, {}, False),
    ],
)
def test_every_label_of_the_selector_is_required(
    selector: dict[str, str], labels: dict[str, str], selected: bool
) -> None:
    assert is_selected(selector, labels) is selected

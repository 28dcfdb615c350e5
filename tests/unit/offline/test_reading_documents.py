"""Files as kubectl would read them, and messages that say where something is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kmmhub.offline.documents import Document, UnusableInput, read_documents, read_mapping

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def read(folder: Path, text: str) -> list[Document]:
    file = folder / "file.yaml"
    file.write_bytes(text.encode())
    return read_documents([str(file)])


def contents(folder: Path, text: str) -> list[Any]:
    return [document.content for document in read(folder, text)]


def test_documents_are_numbered_and_lists_taken_apart(tmp_path: Path) -> None:
    text = (
        "# a comment\n---\n---\nkind: A\nmetadata: {name: one}\n---\n# nothing\n---\n"
        "kind: List\nitems: [{kind: B}, {kind: C}]\n---\nkind: DList\nitems: [{metadata: {name: d}}]\n"
    )
    found = read(tmp_path, text)
    assert [document.kind for document in found] == ["A", "B", "C", "D"]
    assert [document.name for document in found] == ["one", "", "", "d"]
    places = [document.where.removeprefix(f"{tmp_path}/file.yaml, document ") for document in found]
    assert places == ["2", "4, item 1", "4, item 2", "5, item 1"]


def test_what_yaml_1_1_would_twist_stays_as_written(tmp_path: Path) -> None:
    text = "kind: A\ntime: 2026-01-01\nsame: =\nsixty: 1:30\nhalf: 1:30.5\n2: x\ntrue: yes\nzero: 010\nreal: 1.5\n"
    assert contents(tmp_path, text) == [
        {
            "kind": "A",
            "time": "2026-01-01",
            "same": "=",
            "sixty": "1:30",
            "half": "1:30.5",
            "2": "x",
            "true": True,
            "zero": 8,
            "real": 1.5,
        }
    ]


def test_anchors_and_merges_work_wherever_they_stand(tmp_path: Path) -> None:
    text = "kind: A\nx: {inner: &b {<<: &a {k: 0, l: 1}, k: 2}}\ny: {<<: *b, k: 3}\n"
    assert contents(tmp_path, text) == [
        {"kind": "A", "x": {"inner": {"k": 2, "l": 1}}, "y": {"k": 3, "l": 1}}
    ]


@given(document=st.dictionaries(st.text(), VALUES, max_size=4))
def test_json_is_read_as_json_does(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
) -> None:
    document = {**document, "kind": "A"}
    twice = json.dumps(document, indent="\t") + "\n" + json.dumps(document)
    assert contents(tmp_path_factory.mktemp("json"), twice) == [document, document]


@given(document=st.dictionaries(st.text(), VALUES, max_size=4))
def test_yaml_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
) -> None:
    document = {**document, "kind": "A"}
    text = yaml.safe_dump_all([document, None, document])
    assert contents(tmp_path_factory.mktemp("yaml"), text) == [document, document]


def test_flow_style_yaml_may_start_with_a_brace(tmp_path: Path) -> None:
    assert contents(tmp_path, "{kind: A, x: [1]}\n") == [{"kind": "A", "x": [1]}]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: A\n---\n- 1\n", "file.yaml, document 2: is no Kubernetes object"),
        ("kind: A\n---\nmetadata: {}\n", "file.yaml, document 2: kind is missing"),
        ("kind: List\nitems: [3]\n", "file.yaml, document 1, item 1: is no Kubernetes object"),
        ("kind: A\n---\nkind: [\n", "file.yaml: is no valid YAML or JSON: line 4, column 1"),
        ("kind: A\nkind: B\n", "line 2, column 1: the key 'kind' is there twice"),
        ("kind: A\nx: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("kind: A\nx: !!binary aGk=\n", "is neither text nor number"),
        ("kind: A\nx: &x [*x]\n", "nested more than 100 levels"),
        ("kind: A\n\tx: 1\n", "line 2, column 1"),
        ("kind: \x80", "control characters are not allowed"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UnusableInput) as raised:
        read(tmp_path, text)
    assert complaint in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"kind: \xe9")
    for file, complaint in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "latin", "is not UTF-8"),
    ):
        with pytest.raises(UnusableInput, match=complaint):
            read_documents([str(file)])
    with pytest.raises(UnusableInput, match="named twice"):
        read_documents(["-", "-"])


def test_a_mapping_is_one_object(tmp_path: Path) -> None:
    file = tmp_path / "map"
    file.write_text('{"a:1": "sha256:x"}')
    assert read_mapping(str(file)) == {"a:1": "sha256:x"}
    for text in ("", "- a\n", "a: b\n---\nc: d\n"):
        file.write_text(text)
        with pytest.raises(UnusableInput, match="expected one object"):
            read_mapping(str(file))

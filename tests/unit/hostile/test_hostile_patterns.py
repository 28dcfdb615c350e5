"""Python's `re` backtracks: it runs patterns of ours alone, and these in time linear in the text, whatever that is."""

import ast
import importlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("services", "shared", "kmmhub")
ALLOWED = {"compile", "DOTALL", "IGNORECASE", "Pattern", "Match"}
METHODS = {"match", "fullmatch", "search", "sub", "split", "findall", "finditer"}
CHARACTERS = 20_000


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def uses_of_re(tree: ast.Module) -> Iterator[ast.Attribute]:
    """Every `re.something`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "re":
            yield node


def is_constant(node: ast.expr, names: set[str]) -> bool:
    """Whether an expression is made of literals and of the module's own constants."""
    if isinstance(node, ast.JoinedStr):
        return all(is_constant(part, names) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return is_constant(node.value, names)
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id in names)


def constants(tree: ast.Module) -> set[str]:
    """Names that the module sets once, at its top, to something constant."""
    found: set[str] = set()
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if is_constant(value, found):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value and is_constant(value, found):
                found.add(name)
    return found


def test_python_compiles_constants_only_and_at_the_top_of_a_module() -> None:
    wrong = []
    for path, tree in sources():
        at_top = {
            id(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call)
        }
        names = constants(tree)
        wrong += [
            f"{path}:{use.lineno}: re.{use.attr}" for use in uses_of_re(tree) if use.attr not in ALLOWED
        ]
        wrong += [
            f"{path}: from re import"
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module == "re"
        ]
        for node in ast.walk(tree):
            is_compile = isinstance(node, ast.Call) and ast.unparse(node.func) == "re.compile"
            if is_compile and not (id(node) in at_top and is_constant(node.args[0], names)):
                wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []


def compiled() -> list[Any]:
    """Each pattern of ours with the methods that its module calls on it."""
    found = []
    for path, tree in sources():
        if not any(use.attr == "compile" for use in uses_of_re(tree)):
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        text = path.read_text()
        for attribute, value in vars(importlib.import_module(name)).items():
            if isinstance(value, re.Pattern):
                methods = sorted(set(re.findall(rf"\b{attribute}\.(\w+)\(", text)) & METHODS)
                found += [
                    pytest.param(value, method, id=f"{name}.{attribute}.{method}") for method in methods
                ]
    return found


@pytest.mark.parametrize(("pattern", "method"), compiled())
def test_a_pattern_of_ours_takes_linear_time(pattern: "re.Pattern[Any]", method: str) -> None:
    """Texts that are pumped up from what the pattern itself is made of, with an end that it does not want."""
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    pieces = {
        *'a0A.-_+~/:@[]{}$\\" \n\0é\ud800',
        *source,
        "a.",
        "a-",
        "$a",
        "${",
        "a_",
        "\\Q",
        '"\\',
        "a:",
        "-0",
        "5 ",
    }
    started = time.process_time()
    for piece in sorted(pieces):
        for end in ("!", "\0"):
            text: Any = piece * (CHARACTERS // len(piece)) + end
            if isinstance(pattern.pattern, bytes):
                text = text.encode(errors="surrogatepass")
            call = getattr(pattern, method)
            call("", text) if method == "sub" and isinstance(text, str) else call(
                *((b"", text) if method == "sub" else (text,))
            )
    assert time.process_time() - started < 4


def test_the_patterns_were_found() -> None:
    assert len(compiled()) > 10

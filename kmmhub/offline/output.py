"""How the offline commands print, and how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import yaml

NOT_ALLOWED = 1
"""Exit status: the input was understood, and the answer is no."""

UNUSABLE = 2
"""Exit status: the input cannot be used; also that of a wrong command line."""


class Format(StrEnum):
    """What is printed: words for people, or one of the two forms for programs."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


class StreamFormat(StrEnum):
    """A stream of documents."""

    YAML = "yaml"
    JSON = "json"


def formatted(answer: Mapping[str, Any], form: Format | StreamFormat) -> str:
    """One document: JSON on one line, or YAML. Keys stay in their order."""
    if form == "json":
        return json.dumps(answer, ensure_ascii=False) + "\n"
    return yaml.dump(dict(answer), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def note(lines: Iterable[str]) -> None:
    """Print lines for people on standard error."""
    for line in lines:
        print(printable(line), file=sys.stderr)


def printable(text: str) -> str:
    """One line without control characters: what files contain must not steer a terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes every value in full: anchors would be hard to read and to compare."""

    def ignore_aliases(self, _data: object) -> bool:
        return True

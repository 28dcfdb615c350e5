"""Users' regular expressions: RE2, as in Go, in linear time whatever is written; Python's `re` never runs them.

RE2 syntax and its differences from Perl's: https://github.com/google/re2/wiki/Syntax.
"""

import re
from collections.abc import Mapping
from typing import Any

import re2

from shared.domain.errors import PermanentError

MAX_PATTERN_CHARACTERS = 1024
_ONE_BYTES = 1024**2  # of memory for a pattern's program and its automaton, far more than any kernel needs
_SET_BYTES = 8 * 1024**2  # RE2's own default, for all patterns of a module together
_ESCAPE = re.compile(r"\\Q.*?(?:\\E|\Z)|\\(.)", re.DOTALL)


class BadPattern(PermanentError):
    """A pattern that Go's regexp package would refuse; the message says why."""

    reason = "InvalidPattern"


class Pattern:
    """One compiled pattern.

    Raises:
        BadPattern: not valid RE2, or longer than `MAX_PATTERN_CHARACTERS`.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN_CHARACTERS:
            raise BadPattern(f"it has {len(text)} characters; at most {MAX_PATTERN_CHARACTERS}")
        if "C" in _ESCAPE.findall(text):  # the one thing that C++ accepts and Go does not: a single byte
            raise BadPattern("invalid escape sequence: \\C")
        try:
            self._compiled: Any = re2.compile(text, _options(_ONE_BYTES))
        except re2.error as error:
            problem = error.args[0]
            raise BadPattern(problem.decode() if isinstance(problem, bytes) else str(problem)) from error
        except UnicodeEncodeError as error:
            raise BadPattern("it is not valid Unicode") from error
        self.text = text

    @property
    def size(self) -> int:
        """Instructions of the compiled program; time to compile and memory grow with it."""
        return int(self._compiled.programsize)

    def is_found_in(self, text: str) -> bool:
        """Return whether the pattern matches anywhere in `text`."""
        return self._compiled.search(text) is not None


class PatternSet:
    """Several patterns that are asked together, each under a number; the lowest that matches wins."""

    def __init__(self, patterns: Mapping[int, Pattern]) -> None:
        self._patterns = dict(sorted(patterns.items()))
        self._numbers = list(self._patterns)
        self._joined = self._join()

    def first(self, text: str) -> int | None:
        """Return the lowest number whose pattern is found in `text`, None if none is.

        One pass over the joined automaton answers for all. Where that runs out of memory it finds nothing, so a
        negative answer is checked pattern by pattern, which RE2 can always do.
        """
        found: list[int] | None = self._joined.Match(text) if self._joined is not None else None
        if found:
            return self._numbers[min(found)]
        return next((number for number, pattern in self._patterns.items() if pattern.is_found_in(text)), None)

    def _join(self) -> Any:
        """All patterns in one automaton; None if there are none or if together they need too much memory."""
        joined = re2.Set.SearchSet(_options(_SET_BYTES))
        try:
            for pattern in self._patterns.values():
                joined.Add(pattern.text)
            joined.Compile()
        except re2.error:
            return None
        return joined if self._patterns else None


def _options(max_bytes: int) -> Any:
    options = re2.Options()
    options.max_mem = max_bytes
    options.log_errors = False
    options.never_capture = True
    return options

"""A build's output: untrusted text of any length, made safe to keep and to show. Pure."""

from collections import deque
from collections.abc import Callable, Iterable

import re2

TAIL_BYTES = 64 * 1024
LINE_CHARACTERS = 4096
"""A longer line is cut."""

HIDDEN_MINIMUM = 6
"""Shorter lines of a secret (such as `}`) are not looked for: they would blank out ordinary text."""

_ESCAPE_SEQUENCE = re2.compile(r"\x1b(\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")
"""Terminal control (ECMA-48): CSI, OSC and two-character sequences."""


class BuildLog:
    """Takes output as it comes, hands on clean lines, and remembers the end.

    Control characters are dropped, the lines of secret values are replaced by `***`, and overlong lines are cut.

    Attributes:
        instruction: the last Dockerfile instruction that buildah announced; empty before the first.
    """

    def __init__(
        self, *, hidden: Iterable[bytes] = (), on_line: Callable[[str], None] = lambda _: None
    ) -> None:
        """Start a log.

        Args:
            hidden: secret values, as files; each of their lines is kept out of the log.
            on_line: receives each clean line, without its end.

        """
        # Cleaned like the log itself, where a secret with control characters comes out without them.
        lines = {
            clean(line.decode(errors="replace")).strip() for value in hidden for line in value.splitlines()
        }
        self._hidden = sorted((line for line in lines if len(line) >= HIDDEN_MINIMUM), key=len, reverse=True)
        self._limit = LINE_CHARACTERS + max((len(line) for line in self._hidden), default=0)
        self._on_line = on_line
        self._partial = b""
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self.instruction = ""

    def feed(self, output: bytes) -> None:
        """Take the next piece of output."""
        *complete, self._partial = (self._partial + output).replace(b"\r", b"\n").split(b"\n")
        self._partial = self._partial[: 4 * self._limit]
        for line in complete:
            if line:
                self._keep(line)

    def close(self) -> None:
        """Take what came after the last line end."""
        if self._partial:
            self._keep(self._partial)
        self._partial = b""

    def tail(self) -> str:
        """Return the last lines, at most `TAIL_BYTES` of UTF-8."""
        return b"\n".join(self._tail).decode()

    def _keep(self, raw: bytes) -> None:
        line = clean(raw.decode(errors="replace")[: self._limit])
        for secret in self._hidden:
            line = line.replace(secret, "***")
        line = line[:LINE_CHARACTERS]
        _, step, rest = line.partition("STEP ")
        if step and line.startswith(("STEP ", "[")) and ": " in rest:
            self.instruction = rest.split(": ", 1)[1]
        self._on_line(line)
        encoded = line.encode()
        self._tail.append(encoded)
        self._tail_size += len(encoded) + 1
        while self._tail_size > TAIL_BYTES + 1:
            self._tail_size -= len(self._tail.popleft()) + 1


def clean(line: str) -> str:
    """Return a line without terminal control and without any character that does not print."""
    if line.isprintable():
        return line
    plain: str = _ESCAPE_SEQUENCE.sub("", line)
    return "".join(character for character in plain if character.isprintable() or character == "\t")

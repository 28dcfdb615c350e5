"""Shows on a terminal, or as lines of a log, what the parts of a hub do."""

import time
from dataclasses import dataclass
from threading import Lock
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

REPEAT_SECONDS = 15.0


@dataclass(slots=True)
class _Line:
    message: str
    done: bool
    since: float
    printed: float


class Display:
    """A `Progress`: a live table with elapsed times on a terminal, else a line for each change.

    Use it as a context manager; the table stays on the screen when it ends.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: dict[str, _Line] = {}
        self._lock = Lock()
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=8)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, part: str, message: str, *, done: bool = False) -> None:
        """As `localhub.progress.Progress`. A log repeats an unchanged message every 15 s, with its age."""
        now = time.monotonic()
        with self._lock:
            line = self._lines.get(part)
            changed = line is None or (line.message, line.done) != (message, done)
            if line is None or changed:
                line = self._lines[part] = _Line(message, done, since=now, printed=now)
            if self._console.is_terminal or not (changed or now - line.printed >= REPEAT_SECONDS):
                return
            line.printed = now
            elapsed = "" if changed else f" ({now - line.since:.0f} s)"
            self._console.print(f"{part}: {message}{elapsed}", markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        with self._lock:
            for part, line in self._lines.items():
                elapsed = "" if line.done else f"{now - line.since:.0f} s"
                mark = "[green]✓[/]" if line.done else "[yellow]…[/]"
                table.add_row(mark, part, line.message, elapsed)
        return table

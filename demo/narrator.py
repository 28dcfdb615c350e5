"""Tells the story of the demo as it happens, and sums it up at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.status import Status
from rich.table import Table


@dataclass(slots=True, kw_only=True)
class Step:
    """One step: its title, what was seen, and how long it took (seconds)."""

    title: str
    seen: list[str] = field(default_factory=list)
    seconds: float = 0.0
    failed: bool = False


class Narrator:
    """Prints steps live: a spinner line on a terminal, a line for each change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._last = ""
        self.steps: list[Step] = []

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run one step of the story."""
        step = Step(title=title)
        self.steps.append(step)
        self._console.print(f"[bold]{len(self.steps)}. {title}[/bold]")
        started = time.monotonic()
        self._last = ""
        try:
            if self._console.is_terminal:
                with self._console.status("…") as self._status:
                    yield step
            else:
                yield step
        except BaseException:
            step.failed = True
            raise
        finally:
            self._status = None
            step.seconds = time.monotonic() - started

    def doing(self, line: str) -> None:
        """Say what is going on now."""
        if self._status is not None:
            self._status.update(line)
        elif line != self._last:
            self._console.print(f"   … {line}", style="dim", highlight=False)
        self._last = line

    def seen(self, line: str) -> None:
        """Say what was found to be so."""
        self.steps[-1].seen.append(line)
        self._console.print(f"   [green]✓[/green] {line}", highlight=False)

    def print_table(self) -> None:
        """What happened, and how long each step took."""
        table = Table(title="What happened", title_justify="left", show_lines=True)
        table.add_column("step")
        table.add_column("seen", overflow="fold")
        table.add_column("seconds", justify="right")
        for number, step in enumerate(self.steps, 1):
            seen = [*step.seen, *(["[red]failed here[/red]"] if step.failed else [])]
            table.add_row(f"{number}. {step.title}", "\n".join(seen), f"{step.seconds:.1f}")
        total = sum(step.seconds for step in self.steps)
        table.add_row("[bold]total[/bold]", "", f"[bold]{total:.1f}[/bold]")
        self._console.print(table)

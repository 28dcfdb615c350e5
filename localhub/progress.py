"""How a part of the hub tells what it is doing."""

from typing import Protocol


class Progress(Protocol):
    """Receives what a part does; called from several threads."""

    def __call__(self, part: str, message: str, *, done: bool = False) -> None:
        """Take note.

        Args:
            part: name of the part, such as `nats`.
            message: what it does now, for people. The same message again means: still at it.
            done: nothing more is to come of it.
        """


def silent(part: str, message: str, *, done: bool = False) -> None:
    """A `Progress` that drops everything."""

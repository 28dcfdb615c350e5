"""The root of every error that crosses a boundary. Whether a retry can help is part of the type."""

from shared.domain.canonical import storable_text

MAX_MESSAGE_CHARACTERS = 8192
"""A longer message is cut: it goes into Postgres, into conditions and into logs."""


class HubError(Exception):
    """Something went wrong; the message says what, where, and what to do.

    What the message quotes may come from anywhere: it is cut to `MAX_MESSAGE_CHARACTERS`, and made storable.

    Attributes:
        reason: the CamelCase reason shown on conditions (KEP-1623), stable for scripts.
    """

    reason = "Error"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        if len(message) > MAX_MESSAGE_CHARACTERS:
            message = message[: MAX_MESSAGE_CHARACTERS - 1] + "…"
        super().__init__(storable_text(message))
        if reason is not None:
            self.reason = reason


class PermanentError(HubError):
    """A retry with the same input fails again: the user must change something."""


class TransientError(HubError):
    """A retry may succeed: a server was away, busy, or lost the answer."""

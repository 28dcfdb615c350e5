"""The root of every error that crosses a boundary. Whether a retry can help is part of the type."""


class HubError(Exception):
    """Something went wrong; the message says what, where, and what to do.

    Attributes:
        reason: the CamelCase reason shown on conditions (KEP-1623), stable for scripts.
    """

    reason = "Error"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class PermanentError(HubError):
    """A retry with the same input fails again: the user must change something."""


class TransientError(HubError):
    """A retry may succeed: a server was away, busy, or lost the answer."""

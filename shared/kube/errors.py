"""What the API server may answer instead of success."""

from __future__ import annotations

from shared.domain.errors import PermanentError, TransientError


class ApiUnavailable(TransientError):
    """The API server is away, overloaded (429, with `retry_after` seconds) or failing (5xx)."""

    reason = "ApiUnavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Conflict(TransientError):
    """The object exists already, or changed since it was read (409)."""

    reason = "Conflict"


class NotFound(TransientError):
    """No such object, namespace or kind yet (404)."""

    reason = "NotFound"


class Gone(TransientError):
    """The resourceVersion is too old to continue from (410): list again."""

    reason = "Gone"


class Forbidden(TransientError):
    """This service's account lacks a right (401, 403): an administrator can give it at any time."""

    reason = "Forbidden"


class Refused(PermanentError):
    """The API server or an admission webhook refuses the object (400, 422)."""

    reason = "Refused"

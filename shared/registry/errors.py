"""What can go wrong between the hub and a registry."""

from shared.domain.errors import PermanentError, TransientError


class RegistryUnavailable(TransientError):
    """The registry or its token server could not be reached, is busy (429) or failed (5xx).

    Attributes:
        retry_after: seconds that the server asked to wait, None if it named none.
    """

    reason = "RegistryUnavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RegistryDenied(TransientError):
    """The registry or its token server refuses these credentials, or the lack of any (401, 403)."""

    reason = "RegistryDenied"


class RegistryRejected(TransientError):
    """The registry calls the request wrong (other 4xx), or answers in a way the protocol does not know.

    Tried again all the same: a proxy before a registry that is away answers like this, too.
    """

    reason = "RegistryRejected"


class UnsafeAddress(PermanentError):
    """The registry sends the hub to an address that it must not talk to."""

    reason = "UnsafeAddress"


class ImageMissing(TransientError):
    """An image or a part of one that must be there is not; somebody may push it, or a registry come back."""

    reason = "ImageMissing"


class ImageUnreadable(PermanentError):
    """A manifest or configuration is too large, malformed, of another kind, or lacks the platform."""

    reason = "ImageUnreadable"


class DigestMismatch(TransientError):
    """What came has another digest or size than was asked for: cut short, or changed on the way."""

    reason = "DigestMismatch"

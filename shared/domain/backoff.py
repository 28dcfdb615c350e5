"""How long to wait before the next attempt. Pure: randomness comes in as an argument."""

from __future__ import annotations

FIRST_SECONDS = 2.0
MAX_SECONDS = 300.0


def retry_delay(attempt: int, *, jitter: float) -> float:
    """Seconds to wait after a failed attempt.

    Args:
        attempt: 1 after the first failure; the delay doubles with each, up to MAX_SECONDS.
        jitter: a random number from 0 to 1; up to half of the delay is left out, so that many that failed
            together do not come back together.
    """
    delay = min(FIRST_SECONDS * 2.0 ** min(attempt - 1, 16), MAX_SECONDS)
    return delay * (1 - jitter / 2)


def asked_delay(retry_after: str) -> float | None:
    """Seconds that a server's `Retry-After` header asks to wait, at most MAX_SECONDS; None if it names no seconds.

    RFC 9110, section 10.2.3: digits, or a date, which nobody here sends.
    """
    if not retry_after.isascii() or not retry_after.isdecimal():
        return None
    return min(float(retry_after[:16]), MAX_SECONDS)

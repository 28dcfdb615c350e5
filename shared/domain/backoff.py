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

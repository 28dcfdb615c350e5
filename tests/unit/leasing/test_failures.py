"""What a failed stage means for its artifact: tried again, later each time, or at its end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.backoff import FIRST_SECONDS, MAX_SECONDS, retry_delay
from shared.domain.errors import HubError, PermanentError, TransientError
from shared.domain.lease import Failure
from shared.leasing.secrets import SecretIncomplete, SecretMissing
from shared.leasing.worker import LeaseLost, failure_of


class BuildBroke(PermanentError):
    """As the builder raises it."""

    reason = "BuildFailed"

    def __init__(self, message: str, *, log_tail: str) -> None:
        super().__init__(message)
        self.log_tail = log_tail


def test_a_permanent_error_ends_the_artifact() -> None:
    assert failure_of(BuildBroke("exit status 2", log_tail="make: ***"), 1, jitter=0) == Failure(
        reason="BuildFailed", message="exit status 2", retry_seconds=None, log_tail="make: ***"
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TransientError("the registry is away"), "Error"),
        (TransientError("the registry is away", reason="RegistryUnavailable"), "RegistryUnavailable"),
        (SecretMissing("no such Secret"), "SecretMissing"),
        (HubError("neither says so"), "Error"),
        (LeaseLost("gone"), "LeaseLost"),
    ],
)
def test_any_other_error_of_ours_is_tried_again(error: HubError, reason: str) -> None:
    failure = failure_of(error, 1, jitter=0)
    assert (failure.reason, failure.message, failure.retry_seconds) == (reason, str(error), FIRST_SECONDS)
    assert failure.log_tail is None


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError("x"), TimeoutError(), RecursionError("deep")])
def test_a_surprise_is_tried_again_and_named(error: Exception) -> None:
    failure = failure_of(error, 3, jitter=0)
    assert failure.reason == "InternalError"
    assert failure.message.startswith(type(error).__name__)
    assert failure.retry_seconds == FIRST_SECONDS * 4


def test_a_secret_that_lacks_a_field_waits_for_its_user() -> None:
    assert failure_of(SecretIncomplete("no field"), 1, jitter=0).retry_seconds is None


@pytest.mark.parametrize(
    ("attempt", "jitter", "seconds"),
    [
        (1, 0.0, 2.0),
        (2, 0.0, 4.0),
        (5, 0.0, 32.0),
        (8, 0.0, 256.0),
        (9, 0.0, 300.0),
        (10_000, 0.0, 300.0),
        (1, 1.0, 1.0),
        (9, 0.5, 225.0),
    ],
)
def test_delays(attempt: int, jitter: float, seconds: float) -> None:
    assert retry_delay(attempt, jitter=jitter) == seconds


attempts = st.integers(1, 10**9)
jitters = st.floats(0, 1)


@given(attempts, jitters)
def test_a_delay_is_bounded(attempt: int, jitter: float) -> None:
    assert FIRST_SECONDS / 2 <= retry_delay(attempt, jitter=jitter) <= MAX_SECONDS


@given(attempts, jitters)
def test_a_delay_never_shrinks_from_one_attempt_to_the_next(attempt: int, jitter: float) -> None:
    assert retry_delay(attempt, jitter=jitter) <= retry_delay(attempt + 1, jitter=jitter)


@given(attempts, jitters)
def test_jitter_leaves_out_at_most_half(attempt: int, jitter: float) -> None:
    whole = retry_delay(attempt, jitter=0)
    assert whole / 2 <= retry_delay(attempt, jitter=jitter) <= whole

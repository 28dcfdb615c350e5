"""What becomes of an artifact whose workers vanish: taken over at once, then later and later, then not any more."""

import datetime as dt
from dataclasses import replace

import pytest

from shared.domain import lease as rules
from shared.domain.artifact import Artifact, ArtifactRequest, ArtifactState, Stage
from shared.domain.backoff import MAX_SECONDS, retry_delay
from shared.domain.kernel import KernelVersion
from shared.domain.lease import COUNTED_FAILURES, MOST_ATTEMPTS, SUSPICIOUS_ATTEMPTS, WORKER_DIED, Failure

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
REQUEST = ArtifactRequest(
    target="registry.example/module:1", kernel=KernelVersion("6.1.0-13-amd64"), architecture="amd64"
)
AWAY = Failure(reason="RegistryUnavailable", message="no answer", retry_seconds=1.0)


def lapsed(attempts: int, state: ArtifactState = ArtifactState.BUILDING) -> Artifact:
    """Held by somebody who did not say anything for too long."""
    return replace(
        rules.new(REQUEST, now=NOW),
        state=state,
        attempts=attempts,
        fence=attempts,
        owner="b-0/1",
        not_before=NOW,
    )


def take(artifact: Artifact, now: dt.datetime = NOW) -> Artifact | None:
    step = rules.take(artifact, Stage.BUILD, owner="b-1/1", seconds=30, now=now)
    return None if step is None else step[0]


@pytest.mark.parametrize("attempts", range(1, SUSPICIOUS_ATTEMPTS))
def test_after_a_first_death_the_next_worker_goes_on_at_once(attempts: int) -> None:
    assert rules.put_back(lapsed(attempts), jitter=0, now=NOW) is None
    taken = take(lapsed(attempts))
    assert taken is not None
    assert taken.attempts == attempts + 1


@pytest.mark.parametrize("attempts", range(SUSPICIOUS_ATTEMPTS, MOST_ATTEMPTS))
@pytest.mark.parametrize("stage", Stage)
def test_later_it_is_put_back_with_a_cause_and_a_pause(stage: Stage, attempts: int) -> None:
    artifact = lapsed(attempts, stage.working)
    assert rules.take(artifact, stage, owner="b-1/1", seconds=30, now=NOW) is None

    waiting = rules.put_back(artifact, jitter=0, now=NOW)

    assert waiting is not None
    assert (waiting.state, waiting.reason, waiting.attempts) == (stage.waiting, WORKER_DIED, attempts)
    pause = dt.timedelta(seconds=retry_delay(attempts, jitter=0))
    assert waiting.not_before == waiting.announce_after == NOW + pause
    worker = "builder" if stage is Stage.BUILD else "signer"
    assert waiting.message is not None
    for words in (f"the {worker}", f"try {attempts}", "b-0/1", "memory limit"):
        assert words in waiting.message
    assert rules.put_back(waiting, jitter=0, now=NOW + pause) is None, "once"


def test_it_fails_at_last_and_a_retry_begins_anew() -> None:
    failed = rules.put_back(lapsed(MOST_ATTEMPTS), jitter=0, now=NOW)

    assert failed is not None
    assert (failed.state, failed.reason) == (ArtifactState.FAILED, WORKER_DIED)
    assert "kmmhub retry" in (failed.message or "")
    again = rules.retry(failed, now=NOW)
    assert again is not None
    taken = take(again)
    assert taken is not None
    assert taken.attempts == 1


@pytest.mark.parametrize("attempts", [SUSPICIOUS_ATTEMPTS, MOST_ATTEMPTS, 1000])
@pytest.mark.parametrize("state", ArtifactState)
def test_nothing_is_taken_from_a_holder_in_time_or_from_where_nobody_holds(
    state: ArtifactState, attempts: int
) -> None:
    in_time = replace(lapsed(attempts, state), not_before=NOW + dt.timedelta(seconds=1))
    assert rules.put_back(in_time, jitter=0, now=NOW) is None
    if state not in {ArtifactState.BUILDING, ArtifactState.SIGNING}:
        assert rules.put_back(lapsed(attempts, state), jitter=0, now=NOW) is None


def test_who_vanished_and_comes_back_changes_nothing() -> None:
    artifact = lapsed(SUSPICIOUS_ATTEMPTS)
    stale = rules.Lease(
        key=artifact.key,
        stage=Stage.BUILD,
        fence=artifact.fence,
        attempt=artifact.attempts,
        request=REQUEST,
        source=None,
    )
    waiting = rules.put_back(artifact, jitter=0, now=NOW)
    assert waiting is not None
    later = waiting.not_before
    for left in (waiting, take(waiting, later)):
        assert left is not None
        assert rules.extend(left, stale, seconds=30, now=later) is None
        assert rules.release(left, stale, now=later) is None
        assert rules.finish(left, stale, AWAY, seconds=1, now=later) is None


def test_failures_that_are_told_never_add_up_to_a_workers_death() -> None:
    """A registry that was away for a day, and then one killed builder: no reason to give up."""
    artifact, now, pauses = rules.new(REQUEST, now=NOW), NOW, []
    for _ in range(300):
        step = rules.take(artifact, Stage.BUILD, owner="b-0/1", seconds=30, now=now)
        assert step is not None
        artifact, lease = step
        pauses.append(retry_delay(lease.attempt, jitter=0))
        failed = rules.finish(artifact, lease, AWAY, seconds=1, now=now)
        assert failed is not None
        artifact, now = failed, failed.not_before
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_SECONDS

    deaths = 0
    while artifact.state is not ArtifactState.FAILED:
        taken = take(artifact, now)
        assert taken is not None
        now = taken.not_before
        put_back = rules.put_back(taken, jitter=0, now=now)
        assert put_back is not None
        artifact, now, deaths = put_back, put_back.not_before, deaths + 1
    assert deaths == MOST_ATTEMPTS - COUNTED_FAILURES == 8

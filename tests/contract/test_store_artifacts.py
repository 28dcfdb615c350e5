"""Leases on both stores: one holder, fencing, attempts, and an announcement with every change."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from store_fixtures import artifact_request, store

from shared.domain.artifact import EPOCH, Artifact, ArtifactKey, ArtifactState, Stage
from shared.domain.lease import MOST_ATTEMPTS, WORKER_DIED, Built, Failure, Lease, Signed
from shared.events.messages import Changed, Requested, decode_changed, decode_requested
from shared.store import artifacts
from shared.store.port import Store, Transaction

__all__ = ["store"]  # a fixture

pytestmark = pytest.mark.integration

SOURCE = f"registry.example/module@sha256:{'1' * 64}"
SIGNED = f"sha256:{'2' * 64}"


async def wanted(store: Store, *, is_signed: bool = False) -> ArtifactKey:
    """The key of a new artifact; its announcement is taken away."""
    async with store.begin() as transaction:
        (key,) = await artifacts.want(transaction, [artifact_request(1, is_signed=is_signed)])
        await announced(transaction)
    return key


async def announced(transaction: Transaction) -> list[str]:
    """What the outbox holds, in short words; it is emptied."""
    rows = await transaction.lock_outbox(limit=1000)
    await transaction.delete_from_outbox([row.id for row in rows])
    words = []
    for row in rows:
        message: Changed | Requested = (
            decode_changed(row.payload) if ".changed." in row.subject else decode_requested(row.payload)
        )
        words.append(
            message.kind if isinstance(message, Changed) else f"{message.stage} {message.announcement}"
        )
    return words


async def take(store: Store, key: str, stage: Stage = Stage.BUILD, seconds: float = 60) -> Lease | None:
    async with store.begin() as transaction:
        return await artifacts.take_lease(transaction, key, stage, owner="test", seconds=seconds)


async def held(store: Store, key: str, stage: Stage = Stage.BUILD, seconds: float = 60) -> Lease:
    lease = await take(store, key, stage, seconds)
    assert lease is not None
    return lease


async def read(store: Store, key: ArtifactKey) -> Artifact:
    async with store.begin() as transaction:
        return (await transaction.read_artifacts([key]))[key]


async def end(store: Store, key: str) -> None:
    """Let the lease, or the pause before the next try, be over."""
    async with store.begin() as transaction:
        (artifact,) = (await transaction.lock_artifacts([key])).artifacts.values()
        await transaction.put_artifacts([replace(artifact, not_before=EPOCH, announce_after=EPOCH)])


async def test_a_request_is_wanted_once_and_announced_once(store: Store) -> None:
    requests = [artifact_request(number) for number in (1, 2, 2, 1)]
    async with store.begin() as transaction:
        first = await artifacts.want(transaction, requests)
        again = await artifacts.want(transaction, [*requests, artifact_request(3)])

        assert set(first) == {artifact_request(1).key, artifact_request(2).key}
        assert again == [artifact_request(3).key]
        assert await announced(transaction) == ["build 0"] * 3
        known = await transaction.read_artifacts([*first, "unknown"])
        assert {key: one.request for key, one in known.items()} == {
            request.key: request for request in requests[:2]
        }
        assert await artifacts.want(transaction, []) == []


async def test_many_artifacts_are_wanted_at_once(store: Store) -> None:
    async with store.begin() as transaction:
        keys = await artifacts.want(transaction, [artifact_request(number) for number in range(6000)])
        assert len(set(keys)) == 6000
        assert len(await transaction.read_artifacts([*keys, *map(str, range(30_000))])) == 6000


async def test_of_twenty_takers_at_once_exactly_one_wins(store: Store) -> None:
    key = await wanted(store)
    for attempt in range(1, 4):
        leases = await asyncio.gather(*(take(store, key) for _ in range(20)))

        (winner,) = [lease for lease in leases if lease is not None]
        assert (winner.fence, winner.attempt) == (attempt, attempt)
        await end(store, key)


async def test_a_lease_that_ran_out_is_taken_by_another_and_the_stale_holder_changes_nothing(
    store: Store,
) -> None:
    key = await wanted(store)
    stale = await held(store, key)
    assert await take(store, key) is None
    await end(store, key)
    current = await held(store, key)
    assert current.fence == stale.fence + 1
    before = await read(store, key)

    async with store.begin() as transaction:
        await announced(transaction)
        failure = Failure(reason="Late", message="too late", retry_seconds=None)
        assert not await artifacts.extend_lease(transaction, stale, seconds=60)
        assert not await artifacts.release_lease(transaction, stale)
        assert not await artifacts.finish(transaction, stale, failure, seconds=1)
        assert not await artifacts.finish(
            transaction, stale, Built(source=SOURCE, is_adopted=False, log_tail=None), seconds=1
        )
        assert await announced(transaction) == []

    assert await read(store, key) == before
    async with store.begin() as transaction:
        assert await artifacts.extend_lease(transaction, current, seconds=60)


async def test_a_heartbeat_keeps_a_lease_by_the_databases_clock(store: Store) -> None:
    key = await wanted(store)
    lease = await held(store, key, seconds=0.6)
    for _ in range(4):
        await asyncio.sleep(0.3)
        async with store.begin() as transaction:
            assert await artifacts.extend_lease(transaction, lease, seconds=0.6)
        assert await take(store, key) is None
    await asyncio.sleep(0.7)

    assert await take(store, key) is not None


async def test_a_build_without_signature_is_ready_and_cannot_be_taken_again(store: Store) -> None:
    key = await wanted(store)
    lease = await held(store, key)

    async with store.begin() as transaction:
        assert await announced(transaction) == ["artifact"]
        assert await artifacts.finish(
            transaction, lease, Built(source=SOURCE, is_adopted=True, log_tail="done"), seconds=1
        )
        assert await announced(transaction) == ["artifact"]
        assert not await artifacts.extend_lease(transaction, lease, seconds=60)

    ready = await read(store, key)
    assert (ready.state, ready.digest, ready.attempts) == (ArtifactState.READY, SOURCE.partition("@")[2], 0)
    assert await take(store, key) is None
    assert await take(store, key, Stage.SIGN) is None


async def test_a_build_to_be_signed_goes_to_the_signers_and_only_then_has_a_digest(
    store: Store,
) -> None:
    key = await wanted(store, is_signed=True)
    assert await take(store, key, Stage.SIGN) is None
    build = await held(store, key)
    async with store.begin() as transaction:
        await artifacts.finish(
            transaction, build, Built(source=SOURCE, is_adopted=False, log_tail=None), seconds=1
        )
        assert await announced(transaction) == ["artifact", "sign 1", "artifact"]
    built = await read(store, key)
    assert (built.state, built.source, built.digest, built.attempts) == (ArtifactState.BUILT, SOURCE, None, 0)
    assert (built.request, built.fence, built.announced) == (artifact_request(1, is_signed=True), 1, 1)
    assert await take(store, key) is None

    lease = await held(store, key, Stage.SIGN)
    assert (lease.source, lease.attempt) == (SOURCE, 1)
    async with store.begin() as transaction:
        assert await artifacts.finish(transaction, lease, Signed(digest=SIGNED, signed_by="ab"), seconds=1)

    ready = await read(store, key)
    assert (ready.state, ready.digest, ready.signed_by) == (ArtifactState.READY, SIGNED, "ab")


async def test_a_failure_waits_for_its_time_and_the_next_attempt_counts(store: Store) -> None:
    key = await wanted(store)
    lease = await held(store, key)
    failure = Failure(reason="Broken", message="no", retry_seconds=60, log_tail="the end")
    async with store.begin() as transaction:
        assert await artifacts.finish(transaction, lease, failure, seconds=1)

    failed = await read(store, key)
    assert (failed.state, failed.reason, failed.attempts) == (ArtifactState.WANTED, "Broken", 1)
    assert await take(store, key) is None
    await end(store, key)
    assert (await held(store, key)).attempt == 2


async def test_a_final_failure_is_not_taken_again_and_not_announced(store: Store) -> None:
    key = await wanted(store)
    lease = await held(store, key)
    async with store.begin() as transaction:
        await artifacts.finish(
            transaction, lease, Failure(reason="Bad", message="no", retry_seconds=None), seconds=1
        )
    await end(store, key)

    assert await take(store, key) is None
    async with store.begin() as transaction:
        assert await artifacts.announce_overdue(transaction) == 0


async def test_a_released_lease_counts_no_attempt_and_is_free_at_once(store: Store) -> None:
    key = await wanted(store)
    lease = await held(store, key)
    async with store.begin() as transaction:
        await announced(transaction)
        assert await artifacts.release_lease(transaction, lease)
        assert await announced(transaction) == ["build 1", "artifact"]

    next_one = await held(store, key)
    assert (next_one.attempt, next_one.fence) == (1, lease.fence + 1)


async def test_overdue_artifacts_are_announced_once_and_then_less_often(store: Store) -> None:
    key = await wanted(store)
    async with store.begin() as transaction:
        assert await artifacts.announce_overdue(transaction) == 0
    waits = []
    for number in range(1, 4):
        await end(store, key)
        async with store.begin() as transaction:
            assert await artifacts.announce_overdue(transaction) == 1
            assert await announced(transaction) == [f"build {number}"]
            assert await artifacts.announce_overdue(transaction) == 0
            (artifact,) = (await transaction.lock_artifacts([key])).artifacts.values()
            waits.append((artifact.announce_after - await transaction.now()).total_seconds())
    assert [round(wait) for wait in waits] == [30, 60, 120]


async def test_the_artifact_of_a_dead_worker_is_announced_for_its_stage(store: Store) -> None:
    key = await wanted(store, is_signed=True)
    build = await held(store, key)
    async with store.begin() as transaction:
        await artifacts.finish(
            transaction, build, Built(source=SOURCE, is_adopted=False, log_tail=None), seconds=1
        )
    await held(store, key, Stage.SIGN)
    await end(store, key)
    async with store.begin() as transaction:
        await announced(transaction)
        await artifacts.announce_overdue(transaction)
        assert await announced(transaction) == ["sign 2"]


async def lost(store: Store, key: str, times: int, stage: Stage = Stage.BUILD) -> None:
    """So many workers take it, one after the other, and vanish."""
    for _ in range(times):
        await held(store, key, stage)
        await end(store, key)


async def test_an_artifact_over_which_three_workers_vanish_waits_and_says_why(store: Store) -> None:
    key = await wanted(store)
    await lost(store, key, 3)
    async with store.begin() as transaction:
        await announced(transaction)

    assert await take(store, key) is None
    waiting = await read(store, key)
    assert (waiting.state, waiting.reason, waiting.attempts) == (ArtifactState.WANTED, WORKER_DIED, 3)
    async with store.begin() as transaction:
        assert await announced(transaction) == ["artifact"]
        pause = (waiting.not_before - await transaction.now()).total_seconds()
        assert 1 < pause <= 8
    assert await take(store, key) is None, "its pause goes on"
    await end(store, key)
    assert (await held(store, key)).attempt == 4
    assert (await read(store, key)).reason == WORKER_DIED, "shown until it ends"


async def test_the_sweeper_puts_back_what_no_worker_is_left_to_put_back(store: Store) -> None:
    key = await wanted(store, is_signed=True)
    async with store.begin() as transaction:
        lease = await artifacts.take_lease(transaction, key, Stage.BUILD, owner="test", seconds=60)
        assert lease is not None
        await artifacts.finish(transaction, lease, Built(source=SOURCE, is_adopted=False), seconds=1)
    await lost(store, key, 3, Stage.SIGN)
    async with store.begin() as transaction:
        await announced(transaction)
        assert await artifacts.announce_overdue(transaction) == 1
        assert await announced(transaction) == ["artifact"]
        assert await artifacts.announce_overdue(transaction) == 0

    waiting = await read(store, key)
    assert (waiting.state, waiting.reason) == (ArtifactState.BUILT, WORKER_DIED)
    assert waiting.announce_after == waiting.not_before
    await end(store, key)
    async with store.begin() as transaction:
        assert await artifacts.announce_overdue(transaction) == 1
        assert await announced(transaction) == ["sign 2"]


async def test_what_workers_vanish_over_fails_at_last_and_a_retry_brings_it_back(store: Store) -> None:
    key = await wanted(store)
    for _ in range(MOST_ATTEMPTS * 2):
        await take(store, key)
        await end(store, key)

    failed = await read(store, key)
    assert (failed.state, failed.reason, failed.attempts) == ("failed", WORKER_DIED, MOST_ATTEMPTS)
    async with store.begin() as transaction:
        assert await artifacts.retry_failed(transaction, [key]) == [key]
    assert (await held(store, key)).attempt == 1


async def test_two_sweepers_announce_each_artifact_once(store: Store) -> None:
    async with store.begin() as transaction:
        keys = await artifacts.want(transaction, [artifact_request(number) for number in range(200)])
        await announced(transaction)
    for key in keys:
        await end(store, key)

    async def sweep() -> int:
        async with store.begin() as transaction:
            return await artifacts.announce_overdue(transaction, limit=50)

    counts = await asyncio.gather(*(sweep() for _ in range(8)))

    async with store.begin() as transaction:
        rows = await transaction.lock_outbox(limit=1000)
    assert sum(counts) == len(rows) == 200
    assert set(Counter(row.message_id for row in rows).values()) == {1}


@pytest.mark.parametrize("is_well", [True, False], ids=["ready", "failed"])
async def test_an_artifact_that_has_ended_is_checked_again_from_the_start(
    store: Store, is_well: bool
) -> None:
    key = await wanted(store)
    lease = await held(store, key)
    async with store.begin() as transaction:
        assert await artifacts.check_again(transaction, [key]) == [], "it is being built"
        if is_well:
            await artifacts.finish(
                transaction, lease, Built(source=SOURCE, is_adopted=True, log_tail=None), seconds=1
            )
        else:
            failure = Failure(reason="BuildFailed", message="no", retry_seconds=None)
            await artifacts.finish(transaction, lease, failure, seconds=1)
        await announced(transaction)

    async with store.begin() as transaction:
        assert await artifacts.check_again(transaction, [key]) == [key]
        assert sorted(await announced(transaction)) == ["artifact", "build 1"]

    artifact = await read(store, key)
    assert (artifact.state, artifact.digest, artifact.reason, artifact.attempts) == ("wanted", None, None, 0)
    again = await held(store, key)
    assert again.fence > lease.fence

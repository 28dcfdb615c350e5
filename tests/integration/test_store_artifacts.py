"""Leases on real Postgres: one holder, fencing, attempts, and an announcement with every change."""

import asyncio
from collections import Counter

import pytest
import sqlalchemy as sa
from store_fixtures import artifact_request, engine

from shared.domain.artifact import Artifact, ArtifactKey, ArtifactState, Stage
from shared.events.messages import Changed, Requested, decode_changed, decode_requested
from shared.store import artifacts, outbox
from shared.store.artifacts import Failure, Lease
from shared.store.database import Connection, Engine
from shared.store.tables import artifacts as table

__all__ = ["engine"]  # a fixture

pytestmark = pytest.mark.integration

SOURCE = f"registry.example/module@sha256:{'1' * 64}"
SIGNED = f"sha256:{'2' * 64}"


async def wanted(engine: Engine, *, is_signed: bool = False) -> ArtifactKey:
    """The key of a new artifact; its announcement is taken away."""
    async with engine.begin() as connection:
        (key,) = await artifacts.want(connection, [artifact_request(1, is_signed=is_signed)])
        await announced(connection)
    return key


async def announced(connection: Connection) -> list[str]:
    """What the outbox holds, in short words; it is emptied."""
    rows = await outbox.lock_rows(connection, limit=1000)
    await outbox.delete_rows(connection, [row.id for row in rows])
    words = []
    for row in rows:
        message: Changed | Requested = (
            decode_changed(row.payload) if ".changed." in row.subject else decode_requested(row.payload)
        )
        words.append(
            message.kind if isinstance(message, Changed) else f"{message.stage} {message.announcement}"
        )
    return words


async def take(engine: Engine, key: str, stage: Stage = Stage.BUILD, seconds: float = 60) -> Lease | None:
    async with engine.begin() as connection:
        return await artifacts.take_lease(connection, key, stage, owner="test", seconds=seconds)


async def held(engine: Engine, key: str, stage: Stage = Stage.BUILD, seconds: float = 60) -> Lease:
    lease = await take(engine, key, stage, seconds)
    assert lease is not None
    return lease


async def read(engine: Engine, key: ArtifactKey) -> Artifact:
    async with engine.connect() as connection:
        return (await artifacts.read(connection, [key]))[key]


async def end(engine: Engine, key: str) -> None:
    """Let the lease, or the pause before the next try, be over."""
    past = sa.func.now() - sa.text("interval '1 second'")
    async with engine.begin() as connection:
        await connection.execute(
            sa.update(table).where(table.c.key == key).values(not_before=past, announce_after=past)
        )


async def test_a_request_is_wanted_once_and_announced_once(engine: Engine) -> None:
    requests = [artifact_request(number) for number in (1, 2, 2, 1)]
    async with engine.begin() as connection:
        first = await artifacts.want(connection, requests)
        again = await artifacts.want(connection, [*requests, artifact_request(3)])

        assert set(first) == {artifact_request(1).key, artifact_request(2).key}
        assert again == [artifact_request(3).key]
        assert await announced(connection) == ["build 0"] * 3
        known = await artifacts.read(connection, [*first, "unknown"])
        assert {key: one.request for key, one in known.items()} == {
            request.key: request for request in requests[:2]
        }
        assert await artifacts.want(connection, []) == []


async def test_many_artifacts_are_wanted_at_once(engine: Engine) -> None:
    async with engine.begin() as connection:
        keys = await artifacts.want(connection, [artifact_request(number) for number in range(6000)])
        assert len(set(keys)) == 6000
        assert len(await artifacts.read(connection, [*keys, *map(str, range(30_000))])) == 6000


async def test_of_twenty_takers_at_once_exactly_one_wins(engine: Engine) -> None:
    key = await wanted(engine)
    for attempt in range(1, 6):
        leases = await asyncio.gather(*(take(engine, key) for _ in range(20)))

        (winner,) = [lease for lease in leases if lease is not None]
        assert (winner.fence, winner.attempt) == (attempt, attempt)
        await end(engine, key)


async def test_a_lease_that_ran_out_is_taken_by_another_and_the_stale_holder_changes_nothing(
    engine: Engine,
) -> None:
    key = await wanted(engine)
    stale = await held(engine, key)
    assert await take(engine, key) is None
    await end(engine, key)
    current = await held(engine, key)
    assert current.fence == stale.fence + 1
    before = await read(engine, key)

    async with engine.begin() as connection:
        await announced(connection)
        failure = Failure(reason="Late", message="too late", retry_seconds=None)
        assert not await artifacts.extend_lease(connection, stale, seconds=60)
        assert not await artifacts.release_lease(connection, stale)
        assert not await artifacts.fail(connection, stale, failure)
        assert not await artifacts.finish_build(
            connection, stale, source=SOURCE, is_adopted=False, seconds=1, log_tail=None
        )
        assert await announced(connection) == []

    assert await read(engine, key) == before
    async with engine.begin() as connection:
        assert await artifacts.extend_lease(connection, current, seconds=60)


async def test_a_heartbeat_keeps_a_lease_by_the_databases_clock(engine: Engine) -> None:
    key = await wanted(engine)
    lease = await held(engine, key, seconds=0.6)
    for _ in range(4):
        await asyncio.sleep(0.3)
        async with engine.begin() as connection:
            assert await artifacts.extend_lease(connection, lease, seconds=0.6)
        assert await take(engine, key) is None
    await asyncio.sleep(0.7)

    assert await take(engine, key) is not None


async def test_a_build_without_signature_is_ready_and_cannot_be_taken_again(engine: Engine) -> None:
    key = await wanted(engine)
    lease = await held(engine, key)

    async with engine.begin() as connection:
        assert await announced(connection) == ["artifact"]
        assert await artifacts.finish_build(
            connection, lease, source=SOURCE, is_adopted=True, seconds=1, log_tail="done"
        )
        assert await announced(connection) == ["artifact"]
        assert not await artifacts.extend_lease(connection, lease, seconds=60)

    ready = await read(engine, key)
    assert (ready.state, ready.digest, ready.attempts) == (ArtifactState.READY, SOURCE.partition("@")[2], 0)
    assert await take(engine, key) is None
    assert await take(engine, key, Stage.SIGN) is None


async def test_a_build_to_be_signed_goes_to_the_signers_and_only_then_has_a_digest(engine: Engine) -> None:
    key = await wanted(engine, is_signed=True)
    assert await take(engine, key, Stage.SIGN) is None
    build = await held(engine, key)
    async with engine.begin() as connection:
        await artifacts.finish_build(
            connection, build, source=SOURCE, is_adopted=False, seconds=1, log_tail=None
        )
        assert await announced(connection) == ["artifact", "sign 1", "artifact"]
    assert await read(engine, key) == Artifact(
        key=key,
        request=artifact_request(1, is_signed=True),
        state=ArtifactState.BUILT,
        attempts=0,
        source=SOURCE,
        digest=None,
        signed_by=None,
        reason=None,
        message=None,
    )
    assert await take(engine, key) is None

    lease = await held(engine, key, Stage.SIGN)
    assert (lease.source, lease.attempt) == (SOURCE, 1)
    async with engine.begin() as connection:
        assert await artifacts.finish_signing(connection, lease, digest=SIGNED, signed_by="ab", seconds=1)

    ready = await read(engine, key)
    assert (ready.state, ready.digest, ready.signed_by) == (ArtifactState.READY, SIGNED, "ab")


async def test_a_failure_waits_for_its_time_and_the_next_attempt_counts(engine: Engine) -> None:
    key = await wanted(engine)
    lease = await held(engine, key)
    failure = Failure(reason="Broken", message="no", retry_seconds=60, log_tail="the end")
    async with engine.begin() as connection:
        assert await artifacts.fail(connection, lease, failure)

    failed = await read(engine, key)
    assert (failed.state, failed.reason, failed.attempts) == (ArtifactState.WANTED, "Broken", 1)
    assert await take(engine, key) is None
    await end(engine, key)
    assert (await held(engine, key)).attempt == 2


async def test_a_final_failure_is_not_taken_again_and_not_announced(engine: Engine) -> None:
    key = await wanted(engine)
    lease = await held(engine, key)
    async with engine.begin() as connection:
        await artifacts.fail(connection, lease, Failure(reason="Bad", message="no", retry_seconds=None))
    await end(engine, key)

    assert await take(engine, key) is None
    async with engine.begin() as connection:
        assert await artifacts.announce_overdue(connection) == 0


async def test_a_released_lease_counts_no_attempt_and_is_free_at_once(engine: Engine) -> None:
    key = await wanted(engine)
    lease = await held(engine, key)
    async with engine.begin() as connection:
        await announced(connection)
        assert await artifacts.release_lease(connection, lease)
        assert await announced(connection) == ["build 1"]

    next_one = await held(engine, key)
    assert (next_one.attempt, next_one.fence) == (1, lease.fence + 1)


async def test_overdue_artifacts_are_announced_once_and_then_less_often(engine: Engine) -> None:
    key = await wanted(engine)
    async with engine.begin() as connection:
        assert await artifacts.announce_overdue(connection) == 0
    waits = []
    for number in range(1, 4):
        await end(engine, key)
        async with engine.begin() as connection:
            assert await artifacts.announce_overdue(connection) == 1
            assert await announced(connection) == [f"build {number}"]
            assert await artifacts.announce_overdue(connection) == 0
            waits.append(
                await connection.scalar(
                    sa.select(sa.extract("epoch", table.c.announce_after - sa.func.now())).where(
                        table.c.key == key
                    )
                )
            )
    assert [round(float(wait or 0)) for wait in waits] == [30, 60, 120]


async def test_the_artifact_of_a_dead_worker_is_announced_for_its_stage(engine: Engine) -> None:
    key = await wanted(engine, is_signed=True)
    build = await held(engine, key)
    async with engine.begin() as connection:
        await artifacts.finish_build(
            connection, build, source=SOURCE, is_adopted=False, seconds=1, log_tail=None
        )
    await held(engine, key, Stage.SIGN)
    await end(engine, key)
    async with engine.begin() as connection:
        await announced(connection)
        await artifacts.announce_overdue(connection)
        assert await announced(connection) == ["sign 2"]


async def test_two_sweepers_announce_each_artifact_once(engine: Engine) -> None:
    async with engine.begin() as connection:
        keys = await artifacts.want(connection, [artifact_request(number) for number in range(200)])
        await announced(connection)
    for key in keys:
        await end(engine, key)

    async def sweep() -> int:
        async with engine.begin() as connection:
            return await artifacts.announce_overdue(connection, limit=50)

    counts = await asyncio.gather(*(sweep() for _ in range(8)))

    async with engine.begin() as connection:
        rows = await outbox.lock_rows(connection, limit=1000)
    assert sum(counts) == len(rows) == 200
    assert set(Counter(row.message_id for row in rows).values()) == {1}


@pytest.mark.parametrize("is_well", [True, False], ids=["ready", "failed"])
async def test_an_artifact_that_has_ended_is_checked_again_from_the_start(
    engine: Engine, is_well: bool
) -> None:
    key = await wanted(engine)
    lease = await held(engine, key)
    async with engine.begin() as connection:
        assert await artifacts.check_again(connection, [key]) == [], "it is being built"
        if is_well:
            await artifacts.finish_build(
                connection, lease, source=SOURCE, is_adopted=True, seconds=1, log_tail=None
            )
        else:
            failure = Failure(reason="BuildFailed", message="no", retry_seconds=None)
            await artifacts.fail(connection, lease, failure)
        await announced(connection)

    async with engine.begin() as connection:
        assert await artifacts.check_again(connection, [key]) == [key]
        assert sorted(await announced(connection)) == ["artifact", "build 1" if not is_well else "build 2"]

    artifact = await read(engine, key)
    assert (artifact.state, artifact.digest, artifact.reason, artifact.attempts) == ("wanted", None, None, 0)
    again = await held(engine, key)
    assert again.fence > lease.fence

"""The outbox of both stores: nothing is announced that did not happen, nothing is passed over."""

import contextlib

import pytest
from store_fixtures import store

from shared.domain.artifact import ArtifactKey, Stage
from shared.events.messages import Changed, Kind, Requested, decode_changed
from shared.store import outbox
from shared.store.port import Store

__all__ = ["store"]  # a fixture

pytestmark = pytest.mark.integration


async def announce(store: Store, *names: str) -> None:
    async with store.begin() as transaction:
        await outbox.announce(transaction, (Changed(kind=Kind.CLUSTER, name=name) for name in names))


async def count(store: Store) -> int:
    async with store.begin() as transaction:
        return await transaction.count_outbox()


async def test_a_fact_that_is_rolled_back_announces_nothing(store: Store) -> None:
    with contextlib.suppress(KeyError):
        async with store.begin() as transaction:
            await outbox.announce(transaction, [Changed(kind=Kind.CLUSTER, name="a")])
            raise KeyError

    assert await count(store) == 0


async def test_a_row_that_commits_late_is_published_though_later_ones_went_first(
    store: Store,
) -> None:
    async with store.begin() as slow:
        await outbox.announce(slow, [Changed(kind=Kind.CLUSTER, name="slow")])
        await announce(store, "quick")
        async with store.begin() as transaction:
            (quick,) = await transaction.lock_outbox(limit=10)
            await transaction.delete_from_outbox([quick.id])

    async with store.begin() as transaction:
        (row,) = await transaction.lock_outbox(limit=10)
    assert decode_changed(row.payload).name == "slow"
    assert row.id < quick.id


async def test_a_relay_that_dies_before_its_commit_leaves_the_rows(store: Store) -> None:
    await announce(store, "a", "b")
    with contextlib.suppress(KeyError):
        async with store.begin() as transaction:
            rows = await transaction.lock_outbox(limit=10)
            async with store.begin() as other:
                assert await other.lock_outbox(limit=10) == []
            await transaction.delete_from_outbox([row.id for row in rows])
            raise KeyError

    async with store.begin() as transaction:
        assert await transaction.lock_outbox(limit=10) == rows


async def test_a_relay_takes_only_the_subjects_that_it_may_publish(store: Store) -> None:
    requests = [
        Requested(stage=stage, artifact=ArtifactKey("a" * 64), announcement=0)
        for stage in (Stage.BUILD, Stage.SIGN)
    ]
    async with store.begin() as transaction:
        await outbox.announce(transaction, [*requests, Changed(kind=Kind.CLUSTER, name="a")])
    async with store.begin() as transaction:
        rows = await transaction.lock_outbox(limit=10, subjects=["kmm.changed.", "kmm.sign."])

    assert [row.subject.split(".")[1] for row in rows] == ["sign", "changed"]
    assert rows[0].message_id == requests[1].message_id


async def test_equal_changes_are_messages_of_their_own(store: Store) -> None:
    await announce(store, "same", "same")
    async with store.begin() as transaction:
        first, second = await transaction.lock_outbox(limit=10)

    assert first.message_id != second.message_id
    assert first.payload == second.payload


async def test_a_dead_letter_is_kept_once_with_its_newest_cause(store: Store) -> None:
    async with store.begin() as transaction:
        for deliveries in (3, 4):
            await transaction.bury(
                queue="Q",
                subject="kmm.build.a",
                payload=b"\xff\0",
                cause=f"no {deliveries}\0",
                deliveries=deliveries,
            )
        await transaction.bury(queue="Q", subject="kmm.build.b", payload=b"", cause="no", deliveries=1)
    async with store.begin() as transaction:
        first, second = await transaction.read_dead_letters()
    assert (first.payload, first.deliveries, first.cause[:4]) == (b"\xff\0", 4, "no 4")
    assert first.id < second.id
    async with store.begin() as transaction:
        assert await transaction.count_dead_letters() == 2
    async with store.begin() as transaction:
        assert await transaction.take_dead_letters([first.id, 99999]) == [first]
        assert await transaction.read_dead_letters() == [second]
        assert await transaction.take_dead_letters([]) == []


async def test_of_too_many_dead_letters_the_oldest_are_forgotten(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("shared.store.outbox_rows", "simulation.store_outbox"):
        monkeypatch.setattr(f"{module}.MAX_DEAD_LETTERS", 3)
    for payload in (b"a", b"b", b"c", b"a", b"d", b"e"):
        async with store.begin() as transaction:
            await transaction.bury(queue="Q", subject="s", payload=payload, cause="no", deliveries=1)
    async with store.begin() as transaction:
        letters = await transaction.read_dead_letters()
        assert await transaction.count_dead_letters() == 3

    assert [letter.payload for letter in letters] == [b"c", b"d", b"e"]

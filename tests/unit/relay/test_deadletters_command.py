"""What `kmmhub deadletters` shows and does, without a server."""

import asyncio
import datetime as dt
import random
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmmhub.deadletters import (
    MAX_NAMED,
    MAX_SHOWN,
    NoSuchDeadLetter,
    age,
    hexdump,
    json_text,
    printable,
    put_back,
    remove,
    told,
)
from shared.store.port import DeadLetter, OutboxRow
from simulation.line import Line, Weather
from simulation.store import SimulatedStore, StoreState


def letter(
    payload: bytes = b"{}", *, subject: str = "kmm.build.x", cause: str = "ValueError: odd"
) -> DeadLetter:
    return DeadLetter(
        id=7,
        queue="KMM_BUILDS",
        subject=subject,
        payload=payload,
        cause=cause,
        deliveries=8,
        died_at=dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC),
    )


def test_json_is_shown_as_it_is() -> None:
    assert list(told(letter(b'{"name": "\xc3\xbc"}', cause="Error: one\ntwo"))) == [
        "id          7",
        "queue       KMM_BUILDS",
        "subject     kmm.build.x",
        "deliveries  8",
        "died        2026-01-02T03:04:05+00:00",
        "cause       Error: one",
        "            two",
        "payload     14 bytes",
        '{"name": "ü"}',
    ]


def test_anything_else_is_a_hexdump() -> None:
    assert list(hexdump(b"\0\x1bgarbage, \xff and more")) == [
        "00000000  00 1b 67 61 72 62 61 67 65 2c 20 ff 20 61 6e 64  ..garbage, . and",
        "00000010  20 6d 6f 72 65                                    more",
    ]
    assert list(hexdump(b"")) == []


@pytest.mark.parametrize("payload", [b"", b"x", b"\xff", b"{", b"[" * 60_000, b"1" * 5000])
def test_what_is_no_json(payload: bytes) -> None:
    assert json_text(payload) is None
    assert list(told(letter(payload)))


@pytest.mark.parametrize("payload", [b"z" * 60_000, b'"' + b"z" * 60_000 + b'"'])
def test_what_is_shown_has_an_end(payload: bytes) -> None:
    lines = list(told(letter(payload)))
    assert lines[-1] == f"… {len(payload) - MAX_SHOWN} more bytes: -o json has them"
    assert len("\n".join(lines)) < 6 * MAX_SHOWN


@given(st.binary(max_size=300), st.text(max_size=50), st.text(max_size=50))
def test_nothing_does_anything_to_a_terminal(payload: bytes, subject: str, cause: str) -> None:
    for line in told(letter(payload, subject=subject, cause=cause)):
        assert line.replace("\n", "").isprintable()


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[2J\r\n\tü\u202e\0") == "a\\x1b[2J\\r\n\\tü\\u202e\\x00"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (7200, "2h"),
        (90000, "1d"),
        (9e6, "104d"),
    ],
)
def test_an_age_has_one_unit(seconds: float, shown: str) -> None:
    assert age(dt.timedelta(seconds=seconds)) == shown


# ------------------------------------------------------------------------------------------------------ replay and drop


class Morgue:
    """A store with some dead letters."""

    def __init__(self) -> None:
        state = StoreState(clock=asyncio.get_running_loop().time)
        self.store = SimulatedStore(state, Line("test", Weather(delay=0.0), random.Random(1)))

    async def fill(self, count: int) -> list[int]:
        async with self.store.begin() as transaction:
            return [
                await transaction.bury(
                    queue="Q", subject=f"kmm.build.{n}", payload=b"?", cause="no", deliveries=1
                )
                for n in range(count)
            ]

    async def put_back(self, ids: Collection[int] | None) -> list[DeadLetter]:
        async with self.store.begin() as transaction:
            return await put_back(transaction, ids)

    async def remove(self, ids: Collection[int] | None) -> list[DeadLetter]:
        async with self.store.begin() as transaction:
            return await remove(transaction, ids)

    async def left(self) -> tuple[list[int], list[OutboxRow]]:
        async with self.store.begin() as transaction:
            letters = await transaction.read_dead_letters()
            return [one.id for one in letters], await transaction.lock_outbox(limit=100)


async def test_what_is_replayed_leaves_the_table_for_the_outbox_with_an_id_of_its_own() -> None:
    morgue = Morgue()
    first, second, third = await morgue.fill(3)
    assert [one.id for one in await morgue.put_back([third, first])] == [first, third]
    left, rows = await morgue.left()
    assert left == [second]
    assert [(row.subject, row.payload) for row in rows] == [("kmm.build.0", b"?"), ("kmm.build.2", b"?")]
    await morgue.fill(1)
    await morgue.put_back(None)
    left, rows = await morgue.left()
    assert left == []
    assert [row.subject for row in rows].count("kmm.build.0") == 2
    assert len({row.message_id for row in rows}) == len(rows) == 4


async def test_what_is_dropped_is_gone() -> None:
    morgue = Morgue()
    first, second = await morgue.fill(2)
    await morgue.remove([first])
    assert await morgue.left() == ([second], [])
    await morgue.remove(None)
    assert await morgue.left() == ([], [])


async def test_one_id_that_is_not_there_leaves_everything_as_it_is() -> None:
    morgue = Morgue()
    ids = await morgue.fill(MAX_NAMED + 3)
    there = ", ".join(map(str, ids[:MAX_NAMED]))
    for act in (morgue.put_back, morgue.remove):
        with pytest.raises(NoSuchDeadLetter, match=rf"^no dead letter 99999; there are: {there} and 3 more$"):
            await act([ids[0], 99999])
    assert await morgue.left() == (ids, [])

"""`kmmhub deadletters`: messages that no service could handle. A person looks, and replays or drops them."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kmmhub.dev import Output, OutputOption
from shared.domain.errors import PermanentError
from shared.runtime.clock import now
from shared.store.port import Announcement, DeadLetter, Transaction

T = TypeVar("T")

MAX_SHOWN = 4096
"""Bytes of a payload that are shown to people; `-o json` has all."""

MAX_NAMED = 20
"""Ids that an error names."""

PIPE_WIDTH = 4096
ROW = 16
"""Bytes of a payload in one line."""

app = typer.Typer(no_args_is_help=True)

Address = Annotated[str, typer.Option(envvar="DATABASE_URL", help="postgresql://…", show_default=False)]
Ids = Annotated[list[int] | None, typer.Argument(metavar="ID...", help="As `list` shows them.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


class NoSuchDeadLetter(PermanentError):
    """There is no dead letter of an id."""

    reason = "NoSuchDeadLetter"


@app.command("list")
def show_list(database_url: Address, output: OutputOption = Output.text) -> None:
    """Show the messages that no service could handle, oldest first."""
    letters = _in_transaction(database_url, read)
    if output is Output.json:
        print(json.dumps({"dead_letters": [_described(letter) for letter in letters]}))
        return
    if not letters:
        print("no dead letters")
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("ID", "AGE", "QUEUE", "SUBJECT", "DELIVERIES", "CAUSE"):
        table.add_column(column, overflow="fold")
    for letter in letters:
        first, _, rest = letter.cause.partition("\n")
        texts = (letter.queue, letter.subject, str(letter.deliveries), first + (" …" if rest else ""))
        table.add_row(str(letter.id), age(now() - letter.died_at), *(Text(printable(text)) for text in texts))
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    console.print(table)


@app.command()
def show(
    number: Annotated[int, typer.Argument(metavar="ID", help="As `list` shows it.")],
    database_url: Address,
    output: OutputOption = Output.text,
) -> None:
    """Show one message: where it was, why it could not be handled, and what stands in it."""

    async def find(transaction: Transaction) -> DeadLetter:
        (letter,) = _chosen(await read(transaction), [number])
        return letter

    letter = _in_transaction(database_url, find)
    if output is Output.json:
        text = json_text(letter.payload)
        encoded = base64.b64encode(letter.payload).decode()
        print(json.dumps(_described(letter) | {"payload": text, "payload_base64": encoded}, indent=2))
        return
    for line in told(letter):
        print(line)


@app.command()
def replay(
    database_url: Address, ids: Ids = None, everything: All = False, output: OutputOption = Output.text
) -> None:
    """Let messages be handled once more, after the cause was removed. They come back if it was not."""
    chosen = _asked(ids, everything)
    letters = _in_transaction(database_url, lambda transaction: put_back(transaction, chosen))
    _report("replayed", letters, output)


@app.command()
def drop(
    database_url: Address, ids: Ids = None, everything: All = False, output: OutputOption = Output.text
) -> None:
    """Remove messages for good."""
    chosen = _asked(ids, everything)
    letters = _in_transaction(database_url, lambda transaction: remove(transaction, chosen))
    _report("dropped", letters, output)


async def read(transaction: Transaction) -> list[DeadLetter]:
    """All of them, oldest first."""
    return await transaction.read_dead_letters()


async def remove(transaction: Transaction, ids: Collection[int] | None) -> list[DeadLetter]:
    """Take dead letters (None: all) out of the store and return them.

    Raises:
        NoSuchDeadLetter: one of them is not there; the transaction must be rolled back.
    """
    letters = _chosen(await read(transaction), ids)
    taken = await transaction.take_dead_letters([letter.id for letter in letters])
    if len(taken) < len(letters):
        raise NoSuchDeadLetter("somebody else replays or drops the same dead letters now; nothing was done")
    return taken


async def put_back(transaction: Transaction, ids: Collection[int] | None) -> list[DeadLetter]:
    """Move dead letters (None: all) into the outbox, from which a service's relay publishes them.

    Each gets another message id: the stream would swallow one that it has seen within its window.

    Raises:
        NoSuchDeadLetter: as `remove`.
    """
    letters = await remove(transaction, ids)
    await transaction.announce(
        Announcement(subject=letter.subject, payload=letter.payload) for letter in letters
    )
    return letters


def told(letter: DeadLetter) -> Iterator[str]:
    """A dead letter for people, line by line: nothing in it does anything to a terminal, however it came. Pure."""
    yield f"id          {letter.id}"
    yield f"queue       {printable(letter.queue)}"
    yield f"subject     {printable(letter.subject)}"
    yield f"deliveries  {letter.deliveries}"
    yield f"died        {letter.died_at.isoformat(timespec='seconds')}"
    for number, line in enumerate(printable(letter.cause).split("\n")):
        yield f"{'' if number else 'cause':<12}{line}"
    yield f"payload     {len(letter.payload)} bytes"
    shown = letter.payload[:MAX_SHOWN]
    if json_text(letter.payload) is None:
        yield from hexdump(shown)
    else:
        yield printable(shown.decode(errors="replace"))
    if len(letter.payload) > MAX_SHOWN:
        yield f"… {len(letter.payload) - MAX_SHOWN} more bytes: -o json has them"


def printable(text: str) -> str:
    """Text whose control characters are written out, lines apart. Pure."""
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text
    )


def json_text(payload: bytes) -> str | None:
    """A payload as text if it is JSON, else None. Pure."""
    try:
        text = payload.decode()
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    return text


def hexdump(payload: bytes) -> Iterator[str]:
    """Offset, bytes in hexadecimal, and what of them is ASCII. Pure."""
    for start in range(0, len(payload), ROW):
        row = payload[start : start + ROW]
        text = "".join(chr(one) if 32 <= one < 127 else "." for one in row)
        yield f"{start:08x}  {row.hex(' '):<{3 * ROW}} {text}"


def age(time: dt.timedelta) -> str:
    """A time in its largest unit. Pure."""
    seconds = max(int(time.total_seconds()), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _chosen(letters: Sequence[DeadLetter], ids: Collection[int] | None) -> list[DeadLetter]:
    if ids is None:
        return [*letters]
    missing = set(ids) - {letter.id for letter in letters}
    if missing:
        there = _named([letter.id for letter in letters]) or "none"
        raise NoSuchDeadLetter(f"no dead letter {_named(sorted(missing))}; there are: {there}")
    return [letter for letter in letters if letter.id in ids]


def _named(ids: Sequence[int]) -> str:
    rest = len(ids) - MAX_NAMED
    return ", ".join(map(str, ids[:MAX_NAMED])) + (f" and {rest} more" if rest > 0 else "")


def _asked(ids: Collection[int] | None, everything: bool) -> Collection[int] | None:
    """The ids that were asked for, None for all."""
    if bool(ids) is everything:
        raise typer.BadParameter("name the ids, or --all")
    return ids or None


def _report(done: str, letters: Sequence[DeadLetter], output: Output) -> None:
    if output is Output.json:
        print(json.dumps({done: [letter.id for letter in letters]}))
        return
    for letter in letters:
        print(f"{done} {letter.id} {printable(letter.subject)}")
    if not letters:
        print("no dead letters")


def _described(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "queue": letter.queue,
        "subject": letter.subject,
        "deliveries": letter.deliveries,
        "died_at": letter.died_at.isoformat(),
        "cause": letter.cause,
        "bytes": len(letter.payload),
    }


def _in_transaction(database_url: str, work: Callable[[Transaction], Awaitable[T]]) -> T:
    """Raises DatabaseUnavailable: Postgres does not answer, or lacks the schema."""
    from shared.store.database import connect, explained_failures
    from shared.store.postgres import PostgresStore

    async def run() -> T:
        engine = connect(database_url, application="kmmhub-deadletters", pool_size=1)
        try:
            async with PostgresStore(engine).begin() as transaction:
                return await work(transaction)
        finally:
            await engine.dispose()

    with explained_failures(database_url):
        return asyncio.run(run())

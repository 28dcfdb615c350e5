import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from services.builder.build_log import LINE_CHARACTERS, TAIL_BYTES, BuildLog, clean


def logged(*pieces: bytes, hidden: tuple[bytes, ...] = ()) -> list[str]:
    lines: list[str] = []
    log = BuildLog(hidden=hidden, on_line=lines.append)
    for piece in pieces:
        log.feed(piece)
    log.close()
    return lines


def test_lines_are_put_together_from_pieces() -> None:
    assert logged(b"one\ntw", b"o\r", b"three") == ["one", "two", "three"]


@given(st.binary(max_size=2000), st.integers(min_value=1, max_value=50))
def test_where_the_output_is_cut_does_not_matter(output: bytes, size: int) -> None:
    pieces = [output[start : start + size] for start in range(0, len(output), size)]
    assert logged(*pieces) == logged(output)


@given(st.text())
def test_nothing_that_controls_a_terminal_is_left(text: str) -> None:
    assert not {unicodedata.category(character) for character in clean(text).replace("\t", "")} & {"Cc", "Cf"}


def test_colours_and_titles_vanish_with_their_parameters() -> None:
    assert clean("\x1b[1;31merror\x1b[0m \x1b]0;title\x07here\x08\u202e") == "error here"


def test_the_tail_is_bounded_and_holds_whole_lines() -> None:
    log = BuildLog()
    for number in range(20_000):
        log.feed(f"line {number}\n".encode())
    tail = log.tail()
    assert TAIL_BYTES - 12 < len(tail.encode()) <= TAIL_BYTES
    assert tail.splitlines()[-1] == "line 19999"
    assert tail.splitlines()[0].startswith("line ")


def test_a_line_without_end_is_cut() -> None:
    [line] = logged(*[b"x" * 65536] * 100, b"\n")
    assert line == "x" * LINE_CHARACTERS


def test_secret_lines_are_replaced() -> None:
    key = b"-----BEGIN KEY-----\nMIIEvQIBADANBg\n}\n"
    lines = logged(b"found MIIEvQIBADANBg in {x}\n", b"-----BEGIN", b" KEY-----\n", hidden=(key,))
    assert lines == ["found *** in {x}", "***"]


def test_a_secret_hidden_by_colours_is_found() -> None:
    assert logged(b"pass\x1b[0mword1\n", hidden=(b"password1",)) == ["***"]


def test_the_last_instruction_is_remembered() -> None:
    log = BuildLog()
    assert log.instruction == ""
    log.feed(b"[1/2] STEP 2/5: RUN make: all\nSTEP by step\noutput\n")
    assert log.instruction == "RUN make: all"

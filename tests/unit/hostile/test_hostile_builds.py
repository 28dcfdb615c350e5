"""What a build prints, and what goes into one: any bytes, kept in bounds, and never a secret in the log."""

import base64
import subprocess
import time
from pathlib import Path

import pytest
from hostile_budget import budget
from hostile_values import TEXTS, assert_reason
from hypothesis import example, given
from hypothesis import strategies as st

from services.builder.build_log import LINE_CHARACTERS, TAIL_BYTES, BuildLog, clean
from services.builder.build_request import MAX_ARGUMENT_BYTES, BuildRequest, Workspace, build_arguments
from services.builder.buildah_failure import BuildFailed, Step, explain
from shared.domain.canonical import storable

NOISE = st.sampled_from(
    [
        b"\x1b[31m",
        b"\x1b]0;title\x07",
        b"\x1b]8;;",
        b"\x9b1m",
        b"\0",
        b"\r",
        b"\n",
        b"\b\b",
        b"\xff\xfe",
        b"\xe2\x80\xa8",
        b"\xed\xa0\x80",
        b"STEP ",
        b"STEP 1/2: RUN x",
        b"Error: ",
        b"[1/2] STEP 1: FROM y",
    ]
)
OUTPUT = st.lists(st.binary(max_size=20) | NOISE, max_size=30)


@budget(300)
@given(OUTPUT)
@example([b"x" * 1_000_000, b"y"])
@example([b"\x1b[" * 5000, b"\n"])
@example([b"\x1b]" * 5000, b"\n"])
def test_any_output_is_kept_clean_and_in_bounds(pieces: list[bytes]) -> None:
    lines: list[str] = []
    log = BuildLog(on_line=lines.append)
    for piece in pieces:
        log.feed(piece)
    log.close()
    assert all(len(line) <= LINE_CHARACTERS for line in lines)
    assert all(character.isprintable() or character == "\t" for line in lines for character in line)
    assert len(log.tail().encode()) <= TAIL_BYTES
    assert "\x1b" not in log.instruction


@budget(200)
@given(OUTPUT, st.integers(1, 40))
def test_how_output_is_cut_into_pieces_changes_nothing(pieces: list[bytes], size: int) -> None:
    whole = b"".join(pieces)
    logs = BuildLog(), BuildLog()
    logs[0].feed(whole)
    for start in range(0, len(whole), size):
        logs[1].feed(whole[start : start + size])
    for log in logs:
        log.close()
    assert logs[0].tail() == logs[1].tail()
    assert logs[0].instruction == logs[1].instruction


def test_a_flood_of_output_takes_linear_time() -> None:
    log = BuildLog(hidden=[b"secret" * 10])
    started = time.process_time()
    for _ in range(200):
        log.feed(b"a" * 65_536)
    for _ in range(50):
        log.feed(b"\x1b[1m\r" * 1000)
    log.close()
    assert time.process_time() - started < 20


@budget(200)
@given(
    before=st.binary(max_size=10),
    secret=st.binary(min_size=8, max_size=30),
    noise=st.sampled_from([b"", b"\0", b"\x1b[0m", b"\x07"]),
)
@example(before=b"", secret=b"pass\x01word", noise=b"")
def test_a_secret_is_hidden_with_its_control_characters_and_without(
    before: bytes, secret: bytes, noise: bytes
) -> None:
    """Secrets of letters, with control characters of their own, or with some that the build puts in between."""
    value = base64.b64encode(secret)
    for kept, printed in ((value, value[:3] + noise + value[3:]), (value[:3] + b"\x01" + value[3:],) * 2):
        log = BuildLog(hidden=[kept])
        log.feed(before.replace(b"\x1b", b"") + b"\n" + printed + b"\n")
        log.close()
        assert value.decode() not in log.tail()


@budget(200)
@given(st.text(max_size=60))
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@budget(300)
@given(
    step=st.sampled_from(Step),
    code=st.integers(-64, 255),
    tail=TEXTS | st.lists(TEXTS.map("Error: ".__add__), max_size=3).map("\n".join),
    instruction=TEXTS,
)
def test_any_end_of_a_build_has_a_reason(step: Step, code: int, tail: str, instruction: str) -> None:
    assert_reason(
        explain(
            step=step, exit_code=code, log_tail=tail, instruction=instruction, destination="r.example/k:1"
        )
    )


WORKSPACE = Workspace(
    private=Path("/p"), secrets=Path("/s"), configuration=Path("/c"), isolation="chroot", cache_age=1.0
)


@budget(200)
@given(st.dictionaries(TEXTS, TEXTS, max_size=4).map(storable))
def test_any_build_argument_is_one_argument(arguments: dict[str, str]) -> None:
    made = build_arguments(
        BuildRequest(dockerfile="FROM x", build_args=arguments, destination="r.example/k:1"), WORKSPACE
    )
    assert [one for one in made if one.startswith("--build-arg=")] == [
        f"--build-arg={name}={value}" for name, value in arguments.items()
    ]
    assert made[-1] == "/p/context"


def test_a_build_argument_that_no_program_can_get_is_refused() -> None:
    """The kernel is the judge of the limit."""
    name = "A"
    room = MAX_ARGUMENT_BYTES - len(f"--build-arg={name}=") - 1
    request = BuildRequest(dockerfile="FROM x", build_args={name: "x" * room}, destination="r.example/k:1")
    longest = next(one for one in build_arguments(request, WORKSPACE) if one.startswith("--build-arg="))
    subprocess.run(["true", longest], check=True, timeout=10)
    with pytest.raises(OSError, match="too long"):
        subprocess.run(["true", longest + "x"], check=True, timeout=10)
    longer = BuildRequest(
        dockerfile="FROM x", build_args={name: "x" * (room + 1)}, destination="r.example/k:1"
    )
    with pytest.raises(BuildFailed, match="Shorten it"):
        build_arguments(longer, WORKSPACE)

"""What the display writes to a log."""

import io

from rich.console import Console

from localhub.display import Display


def test_a_log_gets_each_change_once() -> None:
    output = io.StringIO()
    with Display(Console(file=output)) as display:
        display("nats", "starts")
        display("nats", "starts")
        display("etcd", "[red]starts")
        display("nats", "ready", done=True)
    assert output.getvalue().splitlines() == ["nats: starts", "etcd: [red]starts", "nats: ready"]


def test_a_terminal_keeps_the_last_state_of_each_part() -> None:
    output = io.StringIO()
    with Display(Console(file=output, force_terminal=True, width=80)) as display:
        display("nats", "starts")
        display("nats", "ready", done=True)
    last = output.getvalue().splitlines()[-2:]
    assert any("✓" in line and "ready" in line for line in last)

"""Lines that reach the log, and the one that does not."""

import asyncio
import gc
import json
import logging
import ssl
from collections.abc import Iterator

import pytest
import structlog
from asyncpg.connect_utils import TLSUpgradeProto

from shared.runtime.logging import configure_logging


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is configured here stays here."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("asyncio"), "filters", [])
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


async def lose(exception: Exception | None) -> None:
    """Leave a future behind, as asyncpg does where a connect is cancelled in its first step, or somebody else."""
    loop = asyncio.get_running_loop()
    if exception is None:
        TLSUpgradeProto(loop, "db.example", 5432, ssl.create_default_context(), True).connection_lost(None)
    else:
        loop.create_future().set_exception(exception)
    gc.collect()


async def test_what_a_cancelled_connect_leaves_is_no_error_of_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(service="watcher", style="json", level="info")

    await lose(None)
    await lose(ConnectionError("something else"))

    (line,) = capsys.readouterr().err.splitlines()
    assert "something else" in json.loads(line)["event"]

"""Where the user of the bus comes from."""

from pathlib import Path

import pytest

from shared.runtime.settings import BusSettings, read_settings


@pytest.mark.parametrize(
    ("value", "expected"), [("/secret/seed", Path("/secret/seed")), ("", None), (None, None)]
)
def test_the_seed_is_a_file_or_nothing(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: Path | None
) -> None:
    monkeypatch.setenv("NATS_URL", "nats://h")
    monkeypatch.delenv("NATS_NKEY_SEED", raising=False)
    if value is not None:
        monkeypatch.setenv("NATS_NKEY_SEED", value)
    assert read_settings(BusSettings).nats_nkey_seed == expected

"""What a hub remembers."""

import stat
from pathlib import Path

import pytest

from localhub.record import RecordFile
from shared.domain.errors import PermanentError


def test_passwords_stay_and_ports_change(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "state.json")
    assert not file.exists()
    file.create()
    first = file.read()
    assert len({first.nats_password, first.postgres_password, ""}) == 3
    file.set_port("nats", 4222)
    file.set_port("registry", 5000)
    assert file.read() == first.model_copy(update={"ports": {"nats": 4222, "registry": 5000}})
    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600


def test_no_hub_and_a_damaged_file_say_what_to_do(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "state.json")
    with pytest.raises(PermanentError, match="run 'kmmhub dev up' first"):
        file.read()
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(PermanentError, match="--purge"):
        file.read()

"""Where a hub and its cache are, by the environment."""

from pathlib import Path

import pytest

from localhub.addresses import GivenAddresses
from localhub.settings import LocalHubSettings

NAMES = [name.upper() for name in LocalHubSettings.model_fields]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_defaults_are_the_users_directories() -> None:
    settings = LocalHubSettings()
    assert settings.directory == Path.home() / ".local/state/kmmhub/dev"
    assert settings.cache == Path.home() / ".cache/kmmhub"
    assert settings.given == GivenAddresses()


def test_xdg_directories_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    settings = LocalHubSettings()
    assert settings.directory == Path("/state/kmmhub/dev")
    assert settings.cache == Path("/cache/kmmhub")


def test_own_directory_wins_and_becomes_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("KMMHUB_DEV_DIR", "here")
    assert LocalHubSettings().directory == Path.cwd() / "here"


def test_given_addresses_and_empty_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "")
    monkeypatch.setenv("NATS_URL", "nats://elsewhere")
    monkeypatch.setenv("KMMHUB_REGISTRY", "registry:5000")
    assert LocalHubSettings().given == GivenAddresses(nats_url="nats://elsewhere", registry="registry:5000")

"""Settings from the environment: what is read, and that a mistake names the variable and never the value."""

import pytest
from pydantic import ValidationError

from services.builder.main import BuilderSettings
from services.dispatcher.main import DispatcherSettings
from shared.domain.errors import PermanentError
from shared.runtime.settings import InvalidSettings, ServiceSettings, read_settings

SECRET = "hunter2"
GOOD = {
    "NATS_URL": f"nats://u:{SECRET}@127.0.0.1:4222",
    "DATABASE_URL": f"postgresql://u:{SECRET}@127.0.0.1/d",
}
OPTIONAL = (
    "OPERATOR_NAMESPACE",
    "KMMHUB_HEALTH_BIND",
    "KMMHUB_LOG_FORMAT",
    "KMMHUB_LOG_LEVEL",
    "KMMHUB_RESYNC_SECONDS",
    "KMMHUB_BUILD_CONCURRENCY",
    "KMMHUB_BUILD_TIMEOUT",
    "KMMHUB_LEASE_SECONDS",
    "KMMHUB_BUILD_DIR",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*GOOD, *OPTIONAL):
        monkeypatch.delenv(name, raising=False)
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)


def test_defaults() -> None:
    settings = read_settings(ServiceSettings)
    assert settings.nats_url.get_secret_value() == GOOD["NATS_URL"]
    assert settings.database_url.get_secret_value() == GOOD["DATABASE_URL"]
    assert settings.operator_namespace == "kmm-operator-system"
    assert settings.health_bind == "127.0.0.1:0"
    assert (settings.log_format, settings.log_level) == ("json", "info")


@pytest.mark.parametrize(
    ("kind", "variable", "value", "field", "expected"),
    [
        (ServiceSettings, "OPERATOR_NAMESPACE", "kmm", "operator_namespace", "kmm"),
        (ServiceSettings, "KMMHUB_HEALTH_BIND", "0.0.0.0:8081", "health_bind", "0.0.0.0:8081"),
        (ServiceSettings, "KMMHUB_LOG_FORMAT", "console", "log_format", "console"),
        (ServiceSettings, "KMMHUB_LOG_LEVEL", "debug", "log_level", "debug"),
        (DispatcherSettings, "KMMHUB_RESYNC_SECONDS", "5", "resync_seconds", 5.0),
        (BuilderSettings, "KMMHUB_BUILD_CONCURRENCY", "3", "concurrency", 3),
        (BuilderSettings, "KMMHUB_BUILD_TIMEOUT", "60", "time_limit", 60.0),
        (BuilderSettings, "KMMHUB_LEASE_SECONDS", "9", "lease_seconds", 9.0),
    ],
)
def test_variables(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[ServiceSettings],
    variable: str,
    value: str,
    field: str,
    expected: object,
) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(read_settings(kind), field) == expected


@pytest.mark.parametrize("variable", GOOD)
def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable)
    with pytest.raises(InvalidSettings, match=f"{variable}: Field required") as caught:
        read_settings(ServiceSettings)
    assert isinstance(caught.value, PermanentError)
    assert SECRET not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATS_URL")
    monkeypatch.setenv("KMMHUB_LOG_LEVEL", "loud")
    with pytest.raises(InvalidSettings) as caught:
        read_settings(ServiceSettings)
    assert "NATS_URL" in str(caught.value)
    assert "KMMHUB_LOG_LEVEL" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "variable"),
    [
        (ServiceSettings, "KMMHUB_LOG_FORMAT"),
        (ServiceSettings, "KMMHUB_LOG_LEVEL"),
        (DispatcherSettings, "KMMHUB_RESYNC_SECONDS"),
        (BuilderSettings, "KMMHUB_BUILD_CONCURRENCY"),
        (BuilderSettings, "KMMHUB_BUILD_TIMEOUT"),
        (BuilderSettings, "KMMHUB_LEASE_SECONDS"),
    ],
)
def test_a_wrong_value_is_named_by_its_variable_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, kind: type[ServiceSettings], variable: str
) -> None:
    monkeypatch.setenv(variable, f"oops-{SECRET}")
    with pytest.raises(InvalidSettings) as caught:
        read_settings(kind)
    assert f"{variable}: " in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("kind", "variable", "value"),
    [
        (DispatcherSettings, "KMMHUB_RESYNC_SECONDS", "0"),
        (BuilderSettings, "KMMHUB_BUILD_CONCURRENCY", "0"),
        (BuilderSettings, "KMMHUB_LEASE_SECONDS", "-1"),
    ],
)
def test_numbers_that_make_no_sense(
    monkeypatch: pytest.MonkeyPatch, kind: type[ServiceSettings], variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings, match=variable):
        read_settings(kind)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost:http", ""])
def test_an_address_without_a_port_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("KMMHUB_HEALTH_BIND", address)
    with pytest.raises(InvalidSettings, match="KMMHUB_HEALTH_BIND"):
        read_settings(ServiceSettings)


def test_settings_do_not_show_passwords() -> None:
    settings = read_settings(ServiceSettings)
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()}"


def test_settings_cannot_be_changed() -> None:
    settings, field = read_settings(ServiceSettings), "log_level"
    with pytest.raises(ValidationError):
        setattr(settings, field, "debug")

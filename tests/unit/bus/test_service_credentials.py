"""Which credentials each service gets from an environment that holds those of all."""

import pytest

from kmmhub.credentials import NAMES, role_passwords, service_environment
from shared.domain.errors import PermanentError
from shared.runtime.settings import InvalidSettings

SHARED = {"NATS_URL": "nats://all@h", "DATABASE_URL": "postgresql://all@h/d", "PATH": "/bin"}
OWN = {
    **SHARED,
    "NATS_URL_BUILDER": "nats://builder@h",
    "DATABASE_URL_BUILDER": "postgresql://kmmhub_builder:b%40%2F@h/d",
    "NATS_NKEY_SEED_SIGNER": "/signer.seed",
    "DATABASE_URL_OPERATOR": "postgresql://kmmhub_operator:o@h/d",
}


@pytest.mark.parametrize("service", NAMES)
def test_one_set_of_addresses_is_everybodys(service: str) -> None:
    expected = {
        name: value for name, value in SHARED.items() if service != "streams" or name != "DATABASE_URL"
    }
    assert service_environment(service, SHARED) == expected


def test_own_credentials_win_and_nobody_sees_anothers() -> None:
    assert service_environment("builder", OWN) == {
        "PATH": "/bin",
        "NATS_URL": "nats://builder@h",
        "DATABASE_URL": "postgresql://kmmhub_builder:b%40%2F@h/d",
    }
    assert service_environment("signer", OWN) == {**SHARED, "NATS_NKEY_SEED": "/signer.seed"}
    assert service_environment("watcher", OWN) == SHARED


def test_the_shared_seed_is_not_for_whoever_has_a_user_of_its_own() -> None:
    environment = {**OWN, "NATS_NKEY_SEED": "/shared.seed"}
    assert "NATS_NKEY_SEED" not in service_environment("builder", environment)
    assert service_environment("signer", environment)["NATS_NKEY_SEED"] == "/signer.seed"
    assert service_environment("watcher", environment)["NATS_NKEY_SEED"] == "/shared.seed"


@pytest.mark.parametrize("service", NAMES)
def test_what_is_missing_is_named(service: str) -> None:
    with pytest.raises(InvalidSettings, match=f"NATS_URL, or NATS_URL_{service.upper()}: missing"):
        service_environment(service, {"DATABASE_URL": "postgresql://h/d"})
    if service != "streams":
        with pytest.raises(
            InvalidSettings, match=f"DATABASE_URL, or DATABASE_URL_{service.upper()}: missing"
        ):
            service_environment(service, {"NATS_URL": "nats://h", "DATABASE_URL": ""})


def test_passwords_of_roles_are_those_of_their_addresses() -> None:
    assert role_passwords(OWN) == {"builder": "b@/", "operator": "o"}


@pytest.mark.parametrize(
    "url", ["postgresql://h/d", "postgresql://kmmhub_builder@h/d", "postgresql://kmmhub_signer:hidden@h/d"]
)
def test_an_address_of_somebody_else_makes_no_role(url: str) -> None:
    with pytest.raises(
        PermanentError, match=r"DATABASE_URL_BUILDER must be like .*kmmhub_builder:password@"
    ) as caught:
        role_passwords({"DATABASE_URL_BUILDER": url})
    assert "hidden" not in str(caught.value)


def test_no_address_makes_no_role() -> None:
    with pytest.raises(PermanentError, match="DATABASE_URL_WATCHER"):
        role_passwords(SHARED)

"""Which of the environment's addresses are somebody else's."""

from dataclasses import replace
from pathlib import Path

from localhub.addresses import GivenAddresses, HubAddresses

OWN = HubAddresses(
    kubeconfig=Path("/hub/kubeconfig"),
    nats_url="nats://kmmhub:secret@127.0.0.1:4222",
    database_url="postgresql://kmmhub:secret@127.0.0.1:5432/kmmhub",
    registry="127.0.0.1:5000",
    kubectl=Path("/cache/kubectl"),
)


def test_a_shell_with_our_own_environment_gives_nothing_foreign() -> None:
    environment = OWN.environment()
    given = GivenAddresses(
        kubeconfig=Path(environment["KUBECONFIG"]),
        nats_url=environment["NATS_URL"],
        database_url=environment["DATABASE_URL"],
        registry=environment["KMMHUB_REGISTRY"],
    )
    assert given.foreign_to(OWN) == GivenAddresses()


def test_each_address_is_judged_alone() -> None:
    given = GivenAddresses(kubeconfig=OWN.kubeconfig, nats_url="nats://elsewhere:4222", registry=OWN.registry)
    assert given.foreign_to(OWN) == GivenAddresses(nats_url="nats://elsewhere:4222")


SERVED = replace(
    OWN,
    nats_urls={"builder": "nats://builder:a@127.0.0.1:4222", "streams": "nats://streams:b@127.0.0.1:4222"},
    database_urls={"builder": "postgresql://kmmhub_builder:a@127.0.0.1:5432/kmmhub"},
)


def test_a_service_gets_its_own_credentials_and_no_others() -> None:
    environment = SERVED.environment("builder")
    assert environment["NATS_URL"] == SERVED.nats_urls["builder"]
    assert environment["DATABASE_URL"] == SERVED.database_urls["builder"]
    assert "secret" not in str(environment)
    assert set(environment) == set(OWN.environment())


def test_whoever_hands_out_credentials_has_all_of_them() -> None:
    environment = SERVED.environment()
    assert environment["NATS_URL"] == OWN.nats_url
    assert environment["NATS_URL_BUILDER"] == SERVED.nats_urls["builder"]
    assert environment["NATS_URL_STREAMS"] == SERVED.nats_urls["streams"]
    assert environment["DATABASE_URL_BUILDER"] == SERVED.database_urls["builder"]


def test_servers_of_somebody_else_are_used_as_they_are_given() -> None:
    assert OWN.environment("builder") == OWN.environment()


def test_the_credentials_of_a_service_are_our_own_too() -> None:
    given = GivenAddresses(
        nats_url=SERVED.nats_urls["builder"],
        database_url=SERVED.database_urls["builder"],
        registry=OWN.registry,
    )
    assert given.foreign_to(SERVED) == GivenAddresses()


def test_another_database_is_the_same_for_everybody() -> None:
    moved = SERVED.with_database("test")
    assert moved.database_url == "postgresql://kmmhub:secret@127.0.0.1:5432/test"
    assert moved.database_urls == {"builder": "postgresql://kmmhub_builder:a@127.0.0.1:5432/test"}
    assert moved.nats_urls == SERVED.nats_urls

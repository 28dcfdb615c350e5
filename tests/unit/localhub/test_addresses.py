"""Which of the environment's addresses are somebody else's."""

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

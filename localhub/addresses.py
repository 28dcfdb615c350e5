"""Where the servers of a hub are: values only."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddresses:
    """Everything a client of the hub needs.

    Attributes:
        kubeconfig: file with the address and an administrator's credentials of the hub's API server.
        nats_url: `nats://user:password@host:port` of a server with JetStream.
        database_url: `postgresql://user:password@host:port/database`.
        registry: `host:port` of an OCI registry.
        kubectl: a kubectl that fits the API server.
    """

    kubeconfig: Path
    nats_url: str
    database_url: str
    registry: str
    kubectl: Path

    def environment(self) -> dict[str, str]:
        """The addresses under the names of the environment variables that kmmhub's services read."""
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "NATS_URL": self.nats_url,
            "DATABASE_URL": self.database_url,
            "KMMHUB_REGISTRY": self.registry,
            "KUBECTL": str(self.kubectl),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenAddresses:
    """Servers that someone else runs; what is given here is not started. Fields as in `HubAddresses`."""

    kubeconfig: Path | None = None
    nats_url: str | None = None
    database_url: str | None = None
    registry: str | None = None

    def foreign_to(self, own: HubAddresses) -> "GivenAddresses":
        """What is left when the hub's own addresses are taken out.

        A shell that has evaluated `kmmhub dev env` gives us back our own addresses: those are ours to keep running.
        """
        return GivenAddresses(
            kubeconfig=None if self.kubeconfig == own.kubeconfig else self.kubeconfig,
            nats_url=None if self.nats_url == own.nats_url else self.nats_url,
            database_url=None if self.database_url == own.database_url else self.database_url,
            registry=None if self.registry == own.registry else self.registry,
        )

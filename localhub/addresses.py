"""Where the servers of a hub are: values only."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddresses:
    """Everything a client of the hub needs.

    Attributes:
        kubeconfig: file with the address and an administrator's credentials of the hub's API server.
        nats_url: `nats://user:password@host:port` of a server with JetStream; the user may do everything.
        database_url: `postgresql://user:password@host:port/database`, as the owner.
        registry: `host:port` of an OCI registry.
        kubectl: a kubectl that fits the API server.
        nats_urls, database_urls: the same servers for each service's own user, who may do what the service needs;
            empty where a server is somebody else's.
    """

    kubeconfig: Path
    nats_url: str
    database_url: str
    registry: str
    kubectl: Path
    nats_urls: Mapping[str, str] = field(default_factory=dict)
    database_urls: Mapping[str, str] = field(default_factory=dict)

    def environment(self, service: str | None = None) -> dict[str, str]:
        """The addresses under the names of the environment variables that kmmhub's services read.

        Args:
            service: as this one and no other. Without it as the administrator, with each service's own addresses
                beside: `kmmhub up` hands them out.
        """
        addresses = {
            "KUBECONFIG": str(self.kubeconfig),
            "NATS_URL": self.nats_url,
            "DATABASE_URL": self.database_url,
            "KMMHUB_REGISTRY": self.registry,
            "KUBECTL": str(self.kubectl),
            # One replica of each service runs here: what was killed need not be waited for long.
            "KMMHUB_LEADER_LEASE_SECONDS": "3",
        }
        own = {"NATS_URL": self.nats_urls, "DATABASE_URL": self.database_urls}
        if service is None:
            return addresses | {
                f"{variable}_{name.upper()}": url
                for variable, urls in own.items()
                for name, url in urls.items()
            }
        return addresses | {variable: urls[service] for variable, urls in own.items() if service in urls}

    def with_database(self, name: str) -> "HubAddresses":
        """The same, with another database of the same server for everybody."""
        urls = {service: _with_path(url, name) for service, url in self.database_urls.items()}
        return replace(self, database_url=_with_path(self.database_url, name), database_urls=urls)


def _with_path(url: str, path: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))


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
            nats_url=_unless(self.nats_url, (own.nats_url, *own.nats_urls.values())),
            database_url=_unless(self.database_url, (own.database_url, *own.database_urls.values())),
            registry=_unless(self.registry, (own.registry,)),
        )


def _unless(given: str | None, own: Collection[str]) -> str | None:
    return None if given in own else given

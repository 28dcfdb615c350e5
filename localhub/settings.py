"""What the environment says about the local hub: where it keeps things, and which servers are already there."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from localhub.addresses import GivenAddresses


class LocalHubSettings(BaseSettings):
    """Environment variables that the local hub reads; an empty variable counts as unset.

    Attributes:
        kmmhub_dev_dir: directory with everything of the hub, instead of the one below the user's state directory.
        xdg_state_home: the user's state directory (XDG Base Directory Specification).
        xdg_cache_home: the user's cache directory (same).
        kubebuilder_assets: directory with etcd, kube-apiserver and kubectl (the convention of envtest).
        kubeconfig, nats_url, database_url, kmmhub_registry: servers to use instead of starting our own.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore")

    kmmhub_dev_dir: Path | None = None
    xdg_state_home: Path | None = None
    xdg_cache_home: Path | None = None
    kubebuilder_assets: Path | None = None
    kubeconfig: Path | None = None
    nats_url: str | None = None
    database_url: str | None = None
    kmmhub_registry: str | None = None

    @property
    def directory(self) -> Path:
        """The directory of the user's hub, absolute; it need not exist."""
        state = self.xdg_state_home or Path.home() / ".local" / "state"
        return (self.kmmhub_dev_dir or state / "kmmhub" / "dev").absolute()

    @property
    def cache(self) -> Path:
        """The directory of built and fetched programs, shared by all hubs of this user; it need not exist."""
        return ((self.xdg_cache_home or Path.home() / ".cache") / "kmmhub").absolute()

    @property
    def given(self) -> GivenAddresses:
        """The addresses that the environment gives."""
        return GivenAddresses(
            kubeconfig=self.kubeconfig.absolute() if self.kubeconfig else None,
            nats_url=self.nats_url,
            database_url=self.database_url,
            registry=self.kmmhub_registry,
        )

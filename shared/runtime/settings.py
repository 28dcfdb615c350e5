"""Settings that every service shares, read from the environment once and passed on from `main`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.domain.errors import PermanentError

SettingsT = TypeVar("SettingsT", bound="ProcessSettings")


class InvalidSettings(PermanentError):
    """The environment lacks a setting, or one cannot be read."""

    reason = "InvalidSettings"


class ProcessSettings(BaseSettings):
    """What every process of ours needs, whatever it talks to."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    health_bind: str = Field(
        default="127.0.0.1:0", pattern=r"^.+:\d{1,5}$", validation_alias="KMMHUB_HEALTH_BIND"
    )
    """host:port of /healthz, /readyz and /metrics; port 0 picks a free one and logs it."""

    log_format: Literal["json", "console"] = Field(default="json", validation_alias="KMMHUB_LOG_FORMAT")
    """`json` for machines, `console` for people."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", validation_alias="KMMHUB_LOG_LEVEL"
    )
    """The least severe level that is logged."""


class BusSettings(ProcessSettings):
    """What every process on the bus needs."""

    nats_url: SecretStr
    """`nats://[user:password@]host:port` of the service's own user (NATS_URL)."""

    nats_nkey_seed: Path | None = None
    """File with the seed of that user's nkey, instead of a password (NATS_NKEY_SEED)."""

    @field_validator("nats_nkey_seed", mode="before")
    @classmethod
    def _unset(cls, value: object) -> object:
        """An empty variable is how a container is told that there is none."""
        return value or None


class ServiceSettings(BusSettings):
    """What every service on the backbone needs. KUBECONFIG is read by the Kubernetes client itself."""

    database_url: SecretStr
    """`postgresql://user:password@host:port/database` (DATABASE_URL)."""

    operator_namespace: str = "kmm-operator-system"
    """Where ConfigMaps and Secrets that modules name are looked up (OPERATOR_NAMESPACE)."""


class ReplicaSettings(ServiceSettings):
    """What a service needs of which one replica works, and the others stand by."""

    leader_lease_seconds: int = Field(default=15, ge=1, validation_alias="KMMHUB_LEADER_LEASE_SECONDS")
    """After how many seconds of silence another replica takes over."""


def read_settings(kind: type[SettingsT]) -> SettingsT:
    """Read settings from the environment.

    Raises:
        InvalidSettings: naming each variable that is missing or wrong, without its value.
    """
    try:
        return kind()
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors()
        )
        raise InvalidSettings(
            f'the environment cannot be used: {problems}. For the local hub: eval "$(kmmhub dev env)"'
        ) from None

"""Secrets that an artifact names, read where and when they are used, and kept nowhere."""

from __future__ import annotations

import base64

from shared.domain.artifact import Access
from shared.domain.errors import PermanentError, TransientError
from shared.domain.image import ImageReference
from shared.kube.client import SECRETS
from shared.kube.errors import NotFound
from shared.kube.port import HubApi
from shared.registry.access import RegistryAccess
from shared.registry.docker_config import FIELD, read_docker_config


class SecretMissing(TransientError):
    """A Secret went away since the artifact was asked for; the dispatcher says so as soon as it notices."""

    reason = "SecretMissing"


class SecretIncomplete(PermanentError):
    """A Secret lacks a field, or a field is no base64."""

    reason = "SecretIncomplete"


class SecretReader:
    """Reads Secrets of the operator's namespace."""

    def __init__(self, kube: HubApi, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace

    async def read(self, name: str) -> dict[str, bytes]:
        """All fields of a Secret.

        Raises:
            SecretMissing: there is no such Secret.
        """
        try:
            secret = await self._kube.get(SECRETS, name, namespace=self._namespace)
        except NotFound as error:
            raise SecretMissing(f"Secret {name!r} does not exist in namespace {self._namespace!r}") from error
        try:
            return {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}
        except ValueError as error:
            raise SecretIncomplete(f"a field of Secret {name!r} is no base64") from error

    async def read_field(self, name: str, field: str) -> bytes:
        """One field of a Secret. Raises SecretMissing, SecretIncomplete."""
        fields = await self.read(name)
        if field not in fields:
            raise SecretIncomplete(
                f"Secret {name!r} in namespace {self._namespace!r} has no field {field!r}; it has {sorted(fields)}"
            )
        return fields[field]

    async def read_docker_config(self, name: str | None) -> bytes | None:
        """The registry credentials in a Secret, in Docker's config.json format; None without a Secret."""
        return None if name is None else await self.read_field(name, FIELD)


def registry_access(access: Access, docker_config: bytes | None, image: ImageReference) -> RegistryAccess:
    """How to reach an image's registry: its TLS settings, and its credentials among those of a Secret."""
    credentials = None if docker_config is None else read_docker_config(docker_config).credentials_for(image)
    return RegistryAccess(
        insecure=access.insecure, skip_tls_verify=access.skip_tls_verify, credentials=credentials
    )

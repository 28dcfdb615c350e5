"""Credentials in a Secret of type `kubernetes.io/dockerconfigjson`. Pure.

Rules of the match: Kubernetes, "Images", section "Interpretation of config.json": host and port are equal, a
host label of the key may be `*`, a path in the key is a prefix of the repository; the longest path wins.
"""

import base64
from dataclasses import dataclass
from typing import Final

import msgspec

from shared.domain.errors import PermanentError
from shared.domain.image import ImageReference
from shared.registry.access import Credentials

FIELD: Final = ".dockerconfigjson"
"""The Secret's field that holds the document."""

_DOCKER_HUB: Final = {"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}


class DockerConfigInvalid(PermanentError):
    """The Secret's document cannot be read; the message quotes nothing of it."""

    reason = "DockerConfigInvalid"


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""


class _Document(msgspec.Struct, frozen=True):
    auths: dict[str, _Entry] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerConfig:
    """The entries of one document, as (host, path, credentials)."""

    entries: tuple[tuple[str, str, Credentials], ...]

    def credentials_for(self, image: ImageReference) -> Credentials | None:
        """Credentials for pulling and pushing this image, None if no entry is for it."""
        host = _canonical(image.registry)
        matching = [
            (len(path), credentials)
            for key, path, credentials in self.entries
            if _host_matches(key, host) and f"{image.repository}/".startswith(f"{path}/" if path else "")
        ]
        return max(matching, key=lambda found: found[0])[1] if matching else None


def read_docker_config(data: bytes) -> DockerConfig:
    """The credentials in a `.dockerconfigjson` field, already freed of the Secret's base64.

    Raises:
        DockerConfigInvalid: it is no JSON of that form, or an `auth` is no base64 of `user:password`.
    """
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (ValueError, RecursionError) as error:
        raise DockerConfigInvalid(
            f"The field {FIELD} of the Secret in imageRepoSecret is no JSON with `auths`; "
            "make it with `kubectl create secret docker-registry`."
        ) from error  # the decoder names places, never values
    found = []
    for key, entry in document.auths.items():
        host, _, path = key.removeprefix("https://").removeprefix("http://").rstrip("/").partition("/")
        credentials = _credentials(key, entry)
        if credentials is not None:
            # "v1" and "v2" in a key are the API's version, not a part of repositories' names.
            found.append((_canonical(host), "" if path in {"v1", "v2"} else path, credentials))
    return DockerConfig(entries=tuple(found))


def _credentials(key: str, entry: _Entry) -> Credentials | None:
    if not entry.auth and not entry.username:
        return None
    try:
        text = base64.b64decode(entry.auth, validate=True).decode() if entry.auth else ""
    except ValueError:  # no base64, no ASCII, or no UTF-8 in it
        text = ""
    username, password = entry.username, entry.password
    if entry.auth:
        username, _, password = text.strip("\x00\r\n").partition(":")
    if not username or not password or ":" in username:
        raise DockerConfigInvalid(
            f"The field {FIELD} of the Secret in imageRepoSecret has no user and password for {key[:200]!r}: `auth` "
            "is the base64 of user:password. Make it with `kubectl create secret docker-registry`."
        )
    return Credentials(username=username, password=password)


def _canonical(host: str) -> str:
    return "docker.io" if host in _DOCKER_HUB else host.lower()


def _host_matches(key: str, host: str) -> bool:
    labels, wanted = key.split("."), host.split(".")
    return len(labels) == len(wanted) and all(
        label in {"*", part} for label, part in zip(labels, wanted, strict=True)
    )

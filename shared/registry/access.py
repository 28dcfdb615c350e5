"""How a registry is spoken to: plain or encrypted, verified or not, with which credentials. Pure."""

import ipaddress
from dataclasses import dataclass, field
from typing import Final

from yarl import URL

from shared.domain.image import ImageReference, InvalidImageReference
from shared.registry.errors import UnsafeAddress

_DOCKER_HUB: Final = {"docker.io", "index.docker.io"}
_DOCKER_HUB_API: Final = "registry-1.docker.io"
_UNSPECIFIED: Final = {"0.0.0.0", "::"}  # noqa: S104 — lead to this machine; nothing is bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user's name and password, or a robot's name and token. The password stays out of `repr`."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAccess:
    """How to reach the registry of one image.

    Attributes:
        insecure: plain HTTP (`registryTLS.insecure`).
        skip_tls_verify: TLS without verification (`registryTLS.insecureSkipTLSVerify`).
        credentials: None asks anonymously.
    """

    insecure: bool = False
    skip_tls_verify: bool = False
    credentials: Credentials | None = None


ANONYMOUS: Final = RegistryAccess()
"""Verified TLS (plain HTTP on loopback), no credentials."""


def registry_url(reference: ImageReference, access: RegistryAccess) -> URL:
    """Address of the registry's API root for an image, ending in `/v2/`.

    Plain HTTP if the access says so, or on loopback unless TLS is asked for by `skip_tls_verify`: container
    engines treat a registry on localhost as insecure without being told.

    Raises:
        InvalidImageReference: the reference's registry is no host that can be asked.
    """
    host = _DOCKER_HUB_API if reference.registry in _DOCKER_HUB else reference.registry
    try:
        root = URL(f"https://{host}/v2/")
    except (ValueError, IndexError) as error:
        raise InvalidImageReference(f"image {reference}: {host!r} is no registry: {error}") from error
    plain = access.insecure or (not access.skip_tls_verify and _is_loopback(root))
    return root.with_scheme("http") if plain else root


def read_url(text: str, registry: URL, *, encoded: bool = False) -> URL:
    """An address that a registry gave, absolute or relative.

    Args:
        text: as the registry wrote it.
        registry: the registry's own address, for messages.
        encoded: whether it is taken as it is, byte for byte.

    Raises:
        UnsafeAddress: it is none.
    """
    try:
        url = URL(text, encoded=encoded)
        url.host, url.port, url.authority  # noqa: B018 - parts of it are read when they are asked for
    except (ValueError, IndexError) as error:  # yarl lets the second escape
        raise UnsafeAddress(
            f"The registry {registry.authority} leads to {text[:200]!r}, which is no address: {error}. "
            "Correct the registry's external address."
        ) from error
    return url


def check_address(url: URL, registry: URL) -> None:
    """Nothing, if the hub may talk to this address: a registry's own, or one that a registry leads to.

    A registry is named by a user and run by somebody, so neither may lead the hub to the cloud's metadata service,
    and a redirect, upload or token address not to a clear-text connection or to the hub's own machine.

    Args:
        url: the absolute address.
        registry: the address the registry itself is reached by.

    Raises:
        UnsafeAddress: it is not HTTPS though the registry is, it is link-local, or another host that is loopback.
    """
    if url.scheme not in ({"https"} if registry.scheme == "https" else {"http", "https"}) or not url.host:
        raise UnsafeAddress(
            f"The registry {registry.authority} leads to {url.scheme}://{url.authority}, which is not HTTPS. "
            "Correct the registry's external address; set registryTLS.insecure only if it speaks plain HTTP."
        )
    stays = url.host == registry.host or _is_loopback(registry)
    if is_link_local(url.host) or (not stays and (_is_loopback(url) or url.host in _UNSPECIFIED)):
        raise UnsafeAddress(
            f"The registry {registry.authority} leads to {url.authority}, an address that no registry has for others. "
            "Correct the registry's external address or use another registry."
        )


def is_link_local(host: str) -> bool:
    """Whether a host is given as a link-local IP address; metadata services of clouds live there."""
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False


def _is_loopback(url: URL) -> bool:
    host = (url.host or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""How a registry is spoken to: plain or encrypted, verified or not, with which credentials. Pure."""

import ipaddress
from dataclasses import dataclass, field
from typing import Final

from yarl import URL

from shared.domain.image import ImageReference
from shared.registry.errors import UnsafeAddress

_DOCKER_HUB: Final = {"docker.io", "index.docker.io"}
_DOCKER_HUB_API: Final = "registry-1.docker.io"


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
    """
    host = _DOCKER_HUB_API if reference.registry in _DOCKER_HUB else reference.registry
    root = URL(f"https://{host}/v2/")
    plain = access.insecure or (not access.skip_tls_verify and _is_loopback(root))
    return root.with_scheme("http") if plain else root


def check_address(url: URL, registry: URL) -> None:
    """Nothing, if the hub may follow a registry's word to this address: a redirect, upload or token address.

    A registry is named by a user and run by somebody, so its answers must not lead the hub to a clear-text
    connection, to itself or to the cloud's metadata service.

    Args:
        url: the absolute address that the registry gave.
        registry: the address the registry itself is reached by.

    Raises:
        UnsafeAddress: it is not HTTPS though the registry is, or another host that is loopback or link-local.
    """
    if url.scheme not in ({"https"} if registry.scheme == "https" else {"http", "https"}) or not url.host:
        raise UnsafeAddress(
            f"The registry {registry.authority} leads to {url.scheme}://{url.authority}, which is not HTTPS. "
            "Correct the registry's external address; set registryTLS.insecure only if it speaks plain HTTP."
        )
    if url.host == registry.host or _is_loopback(registry):
        return
    if _is_loopback(url) or is_link_local(url.host):
        raise UnsafeAddress(
            f"The registry {registry.authority} leads to {url.authority}, inside the hub's own machine. "
            "Correct the registry's external address or use another registry."
        )


def _is_loopback(url: URL) -> bool:
    host = (url.host or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_link_local(host: str) -> bool:
    """Whether a host is given as a link-local or unspecified IP address; metadata services live there."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_link_local or address.is_unspecified

"""HTTP requests to registries: pooled connections, authorization, redirects, errors in the hub's terms."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from socket import AddressFamily
from typing import Final, Self

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from shared.domain.backoff import asked_delay
from shared.domain.errors import HubError
from shared.domain.image import ImageReference
from shared.registry.access import RegistryAccess, check_address, is_link_local, read_url, registry_url
from shared.registry.auth import Authorizer, denied
from shared.registry.errors import RegistryRejected, RegistryUnavailable

Body = Callable[[], AsyncIterator[bytes]]
"""Makes the stream of a request's body; called again if the request is repeated with new authorization."""

_MAX_REDIRECTS: Final = 3
_ERROR_BYTES: Final = 16 * 1024
_DETAIL_CHARACTERS: Final = 300
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)


class _Detail(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: list[_Detail] = []


class _Resolver(aiohttp.ThreadedResolver):
    """Names that lead to a link-local address, such as a cloud's metadata service, do not resolve."""

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        safe = [address for address in found if not is_link_local(address["host"])]
        if not safe:
            raise OSError(f"{host} leads to a link-local address, which the hub does not talk to")
        return safe


class Transport:
    """Requests to any number of registries. An async context manager: leaving it closes the connections."""

    def __init__(self, *, connections: int = 32) -> None:
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._authorizer: Authorizer | None = None

    async def __aenter__(self) -> Self:
        resolver: AbstractResolver = _Resolver()
        connector = aiohttp.TCPConnector(limit=self._connections, resolver=resolver)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=_TIMEOUT, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )
        self._authorizer = Authorizer(self._session)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: str | URL,
        *,
        image: ImageReference,
        access: RegistryAccess,
        scope: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        allowed: frozenset[int] = frozenset(),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; the response is open inside the block.

        Args:
            method: HTTP method. Redirects are followed for GET and HEAD alone.
            target: path below `/v2/`, or an absolute address that the registry gave.
            image: whose registry to ask; named in errors.
            access: how to reach it.
            scope: what a token must allow, in the token server's terms.
            headers: beside Authorization.
            body: makes the body's stream.
            allowed: statuses above 399 that the caller handles.

        Raises:
            RegistryUnavailable: connection failed or broke, time ran out, 408, 429 or 5xx.
            RegistryDenied: 401 or 403.
            RegistryRejected: another status above 399, or too many redirects.
            UnsafeAddress: the registry leads to an address that the hub must not talk to.
        """
        assert self._session is not None, "Transport is used inside `async with`"
        assert self._authorizer is not None
        registry = registry_url(image, access)
        url = registry.join(URL(target, encoded=True)) if isinstance(target, str) else target
        authorization = self._authorizer.known(registry, access, scope)
        with _errors_of_connection(registry):
            send = partial(
                self._follow, method, url, registry=registry, access=access, headers=headers, body=body
            )
            response = await send(authorization=authorization)
            try:
                if response.status == 401:
                    challenges = response.headers.getall("WWW-Authenticate", [])
                    response.release()
                    renewed = await self._authorizer.answer(
                        challenges, registry=registry, access=access, scope=scope
                    )
                    if renewed is None or (renewed == authorization and renewed.startswith("Basic")):
                        raise denied(f"{method} {image.name} at {registry.authority}")
                    response = await send(authorization=renewed)
                if response.status >= 400 and response.status not in allowed:
                    await _raise_for_status(response, f"{method} {image} at {registry.authority}")
                yield response
            finally:
                response.release()

    async def _follow(
        self,
        method: str,
        url: URL,
        *,
        registry: URL,
        access: RegistryAccess,
        headers: Mapping[str, str] | None,
        body: Body | None,
        authorization: str | None,
    ) -> aiohttp.ClientResponse:
        """The response after redirects; each is checked, and Authorization goes to the registry alone."""
        assert self._session is not None
        for _ in range(_MAX_REDIRECTS + 1):
            check_address(url, registry)
            sent = dict(headers or {})
            if authorization and (url.scheme, url.authority) == (registry.scheme, registry.authority):
                sent["Authorization"] = authorization
            response = await self._session.request(
                method,
                url,
                headers=sent,
                data=body() if body else None,
                allow_redirects=False,
                ssl=not access.skip_tls_verify,
            )
            if method not in {"GET", "HEAD"} or response.status not in {301, 302, 303, 307, 308}:
                return response
            location = response.headers.get("Location", "")
            response.release()
            url = url.join(read_url(location, registry, encoded=True))
        raise RegistryRejected(
            f"The registry {registry.authority} redirects more than {_MAX_REDIRECTS} times."
        )


@contextmanager
def _errors_of_connection(registry: URL) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError) as error:
        cause: BaseException | None = error
        while cause is not None:  # a body that could not be made, such as a source image that is gone
            if isinstance(cause, HubError):
                raise cause from error
            cause = cause.__cause__
        advice = ""
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            advice = " Its certificate is not trusted: see registryTLS.insecureSkipTLSVerify."
        elif isinstance(error, aiohttp.ClientConnectorSSLError):
            advice = " If it speaks plain HTTP, set registryTLS.insecure."
        text = _shown(str(error)) or type(error).__name__
        raise RegistryUnavailable(
            f"The registry {registry.authority} cannot be reached: {text}.{advice}"
        ) from error


async def _raise_for_status(response: aiohttp.ClientResponse, what: str) -> None:
    status = response.status
    detail = _detail(await response.content.read(_ERROR_BYTES))
    if status in {401, 403}:
        raise denied(f"{what}{detail}")
    if status in {408, 429} or status >= 500:
        raise RegistryUnavailable(
            f"{what} was answered with {status}{detail}.",
            retry_after=asked_delay(response.headers.get("Retry-After", "")),
        )
    raise RegistryRejected(f"{what} was answered with {status}{detail}.")


def _detail(body: bytes) -> str:
    """The registry's own words (distribution, "Errors"), printable, short, in brackets; empty if none."""
    try:
        errors = msgspec.json.decode(body, type=_Errors).errors
    except (ValueError, RecursionError):
        return ""
    text = "; ".join(f"{error.code}: {error.message}" for error in errors)
    shown = _shown(text)
    return f" ({shown})" if shown else ""


def _shown(text: str) -> str:
    """What prints of a text that a registry may have written, in short."""
    return "".join(character for character in text if character.isprintable())[:_DETAIL_CHARACTERS]

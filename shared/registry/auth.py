"""Answering a registry's `401`: Basic, or a bearer token from the server it names.

Source of the rules: distribution specification, "Token Authentication"; RFC 6750; RFC 7617.
"""

from dataclasses import dataclass
from typing import Final
from urllib.request import parse_http_list

import aiohttp
import msgspec
from yarl import URL

from shared.registry.access import Credentials, RegistryAccess, check_address, read_url
from shared.registry.errors import RegistryDenied, RegistryRejected, RegistryUnavailable
from shared.runtime.clock import elapsed

_TOKEN_SECONDS: Final = 60  # what a token lives if its server does not say
_MARGIN_SECONDS: Final = 10  # a token this close to its end is not used for a new request
_TOKEN_BYTES: Final = 64 * 1024
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, sock_connect=10)
_ADVICE: Final = (
    "Check the Secret in imageRepoSecret: it must exist, name this registry, and may pull and push."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One `WWW-Authenticate` header: the scheme in lower case and its parameters."""

    scheme: str
    parameters: dict[str, str]


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""
    expires_in: float = _TOKEN_SECONDS


def parse_challenge(headers: list[str]) -> Challenge | None:
    """The challenge the hub answers: Bearer if offered, else Basic, else None (RFC 9110, section 11.6.1)."""
    found = {}
    for header in headers:
        scheme, _, rest = header.strip().partition(" ")
        pairs = (pair.partition("=") for pair in parse_http_list(rest) if "=" in pair)
        found[scheme.lower()] = {name.strip().lower(): _unquoted(value) for name, _, value in pairs}
    for scheme in ("bearer", "basic"):
        if scheme in found:
            return Challenge(scheme=scheme, parameters=found[scheme])
    return None


def _unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


class Authorizer:
    """The `Authorization` headers in use, each for one registry, user and scope. They stay in memory."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._known: dict[tuple[str, Credentials | None, str], tuple[str, float]] = {}

    def known(self, registry: URL, access: RegistryAccess, scope: str) -> str | None:
        """The header that worked before and has not run out, else None."""
        now = elapsed()
        self._known = {key: value for key, value in self._known.items() if value[1] > now}
        header, _ = self._known.get((registry.authority, access.credentials, scope), (None, 0.0))
        return header

    async def answer(
        self, challenges: list[str], *, registry: URL, access: RegistryAccess, scope: str
    ) -> str | None:
        """A new header for a registry that answered 401, None if there is nothing (else) to show it.

        Args:
            challenges: values of its `WWW-Authenticate` headers.
            registry: its API root.
            access: how to reach it, and as whom.
            scope: what for, such as `repository:team/module:pull,push`.

        Raises:
            RegistryDenied: the token server refuses.
            RegistryUnavailable: the token server is away or busy.
            UnsafeAddress: the registry names a token server that the hub must not talk to.
        """
        challenge = parse_challenge(challenges)
        if challenge is None:
            return None
        if challenge.scheme == "bearer":
            header, seconds = await self._fetch_token(challenge.parameters, registry, access, scope)
        elif access.credentials is not None:
            header, seconds = _basic(access.credentials), float("inf")
        else:
            return None
        expiry = elapsed() + max(seconds - _MARGIN_SECONDS, 1)
        self._known[registry.authority, access.credentials, scope] = (header, expiry)
        return header

    async def _fetch_token(
        self, parameters: dict[str, str], registry: URL, access: RegistryAccess, scope: str
    ) -> tuple[str, float]:
        realm = read_url(parameters.get("realm", ""), registry)
        check_address(realm, registry)
        query = [("scope", part) for part in scope.split()]
        if "service" in parameters:
            query.insert(0, ("service", parameters["service"]))
        headers = {"Authorization": _basic(access.credentials)} if access.credentials else {}
        try:
            async with self._session.get(
                realm.extend_query(query),
                headers=headers,
                allow_redirects=False,
                ssl=not access.skip_tls_verify,
                timeout=_TIMEOUT,
            ) as response:
                status, body = response.status, await read_at_most(response, _TOKEN_BYTES)
        except (aiohttp.ClientError, TimeoutError) as error:
            message = (
                f"The token server {realm.authority} of the registry {registry.authority} is away: {error}."
            )
            raise RegistryUnavailable(message) from error
        return _read_token(status, body, realm)


def denied(what: str) -> RegistryDenied:
    """The error for a 401 or 403, with advice on the Secret."""
    return RegistryDenied(f"{what} is refused. {_ADVICE}")


async def read_at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of a response.

    Raises:
        RegistryRejected: it has more than `limit` bytes.
    """
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise RegistryRejected(
                f"{response.url.authority} answers with more than {limit} bytes. Not read."
            )
    return bytes(body)


def _read_token(status: int, body: bytes, realm: URL) -> tuple[str, float]:
    if status in {401, 403}:
        raise denied(f"A token of {realm.authority}")
    if status == 429 or status >= 500:
        raise RegistryUnavailable(f"The token server {realm.authority} answers {status}.")
    try:
        token = msgspec.json.decode(body, type=_Token)
    except (ValueError, RecursionError) as error:
        message = f"The token server {realm.authority} answers {status} and no token."
        raise RegistryRejected(message) from error
    value = token.token or token.access_token
    if status != 200 or not value or not value.isprintable():
        raise RegistryRejected(f"The token server {realm.authority} answers {status} and no token.")
    return f"Bearer {value}", token.expires_in


def _basic(credentials: Credentials) -> str:
    return aiohttp.encode_basic_auth(credentials.username, credentials.password, encoding="utf-8")

"""HTTP proxies that misbehave on command: one stands before the API server, one before the registry.

Everything passes through as it is, streams too, until a rule says otherwise. Whoever calls the API server by client
certificate stays who they are: the proxy passes the name on by impersonation (Kubernetes docs, "User impersonation").
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "proxy-connection"}
"""Headers that concern one connection only (RFC 9110, 7.6.1)."""

LEASES = "/coordination.k8s.io/"
"""In the path of what is written all the time, by whoever leads."""

CHUNK_BYTES = 64 * 1024

Matches: TypeAlias = Callable[[web.BaseRequest], bool]


class Cut(Exception):
    """The connection ends here, in the middle of whatever it carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is answered instead of passing a request on.

    Attributes:
        status: HTTP status.
        matches: to which requests.
        headers: of the answer.
        body: of the answer.
    """

    status: int
    matches: Matches
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Rules:
    """What a proxy does wrong now. Change it at any time.

    Attributes:
        answers: the first that matches is given.
        watch_seconds: watches are cut so long after they began.
        is_silent: watches stay open and say nothing; what would have come is lost.
        upload_pause: seconds of waiting before each piece of an upload.
        upload_bytes: uploads are cut after so many bytes.
    """

    answers: list[Answer]
    watch_seconds: float | None = None
    is_silent: bool = False
    upload_pause: float = 0.0
    upload_bytes: int | None = None


class Proxy:
    """One proxy. `written` counts requests that were passed on and may have changed something."""

    def __init__(self, target: str, session: aiohttp.ClientSession, *, server_certificate: bool) -> None:
        """`server_certificate` tells whether callers are named by their client certificates."""
        self.rules = Rules(answers=[])
        self.written = 0
        self.injected: Counter[int] = Counter()
        self._target = URL(target)
        self._session = session
        self._impersonates = server_certificate
        self._watches: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def answering(self, answer: Answer) -> Iterator[None]:
        """Give this answer for a while."""
        self.rules.answers.append(answer)
        try:
            yield
        finally:
            self.rules.answers.remove(answer)

    @contextlib.contextmanager
    def cutting_watches(self, seconds: float) -> Iterator[None]:
        """Cut every watch so long after it began, for a while; those that are open end now."""
        self.rules.watch_seconds = seconds
        self.drop_watches()
        try:
            yield
        finally:
            self.rules.watch_seconds = None

    @contextlib.contextmanager
    def silencing_watches(self) -> Iterator[None]:
        """Leave watches open and say nothing on them, for a while; then they break, as half-open ones do."""
        self.rules.is_silent = True
        try:
            yield
        finally:
            self.rules.is_silent = False
            self.drop_watches()

    @contextlib.contextmanager
    def slowing_uploads(self, seconds: float) -> Iterator[None]:
        """Wait before each piece of an upload, for a while."""
        self.rules.upload_pause = seconds
        try:
            yield
        finally:
            self.rules.upload_pause = 0.0

    @contextlib.contextmanager
    def cutting_uploads(self, after_bytes: int) -> Iterator[None]:
        """Cut uploads after so many bytes, for a while."""
        self.rules.upload_bytes = after_bytes
        try:
            yield
        finally:
            self.rules.upload_bytes = None

    def drop_watches(self) -> None:
        """Cut the watches that are open."""
        for task in self._watches:
            task.cancel()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        answer = next((one for one in self.rules.answers if one.matches(request)), None)
        if answer is not None:
            self.injected[answer.status] += 1
            return web.Response(status=answer.status, headers=dict(answer.headers), body=answer.body)
        self.written += request.method not in {"GET", "HEAD"} and LEASES not in request.path
        try:
            return await self._pass_on(request)
        except (aiohttp.ClientError, Cut, TimeoutError, ConnectionError):
            _abort(request)
            return web.Response(status=502)

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        url = self._target.join(URL(request.raw_path, encoded=True))
        async with self._session.request(
            request.method,
            url,
            headers=self._headers(request),
            data=self._upload(request) if request.body_exists else None,
            allow_redirects=False,
        ) as found:
            response = web.StreamResponse(status=found.status, headers=_end_to_end(found.headers))
            await response.prepare(request)
            if request.method != "HEAD":
                if is_watch(request):
                    await self._watch(found, response)
                else:
                    async for piece in found.content.iter_chunked(CHUNK_BYTES):
                        await response.write(piece)
            await response.write_eof()
            return response

    async def _watch(self, found: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        """Pass a watch on as the rules let it, in a task of its own that can be cut."""

        async def stream() -> None:
            async with asyncio.timeout(self.rules.watch_seconds):
                async for piece in found.content.iter_any():
                    if not self.rules.is_silent:
                        await response.write(piece)

        task = asyncio.create_task(stream())
        self._watches.add(task)
        try:
            await asyncio.wait({task})
            if task.cancelled() or task.exception() is not None:
                raise Cut
        finally:
            self._watches.discard(task)
            task.cancel()

    async def _upload(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """The body, as the rules let it."""
        sent = 0
        async for piece in request.content.iter_chunked(CHUNK_BYTES):
            if is_upload(request):
                await asyncio.sleep(self.rules.upload_pause)
                sent += len(piece)
                if self.rules.upload_bytes is not None and sent > self.rules.upload_bytes:
                    raise Cut
            yield piece

    def _headers(self, request: web.BaseRequest) -> CIMultiDict[str]:
        headers = _end_to_end(request.headers)
        certificate = request.transport.get_extra_info("peercert") if request.transport else None
        if self._impersonates and certificate and "Authorization" not in headers:
            for name, value in _subject(certificate):
                if name == "commonName":
                    headers["Impersonate-User"] = value
                elif name == "organizationName":
                    headers.add("Impersonate-Group", value)
        return headers


def is_watch(request: web.BaseRequest) -> bool:
    """Whether a request to the API server asks for a watch."""
    return request.query.get("watch") == "true"


def is_upload(request: web.BaseRequest) -> bool:
    """Whether a request to a registry carries a blob or a manifest."""
    return request.method in {"PUT", "PATCH", "POST"}


def _subject(certificate: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values in a certificate's subject, as `ssl.SSLSocket.getpeercert` gives them."""
    for part in certificate.get("subject", ()):
        yield from part


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


@contextlib.asynccontextmanager
async def serve_registry(address: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the plain HTTP registry at `host:port`; yields it with its own `host:port`."""
    async with _session(None) as session:
        proxy = Proxy(f"http://{address}", session, server_certificate=False)
        async with _listening(proxy, None) as port:
            yield proxy, f"127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def serve_api(server: str, pki: Path) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the API server at `https://host:port`; yields it with its own address.

    Args:
        server: the address.
        pki: the local hub's authority (`localhub.pki`): the proxy shows the server's certificate to callers, takes
            client certificates of the authority, and calls the server as its administrator.
    """
    inside = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    inside.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    outside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    outside.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
    outside.load_verify_locations(pki / "ca.crt")
    outside.verify_mode = ssl.CERT_REQUIRED
    async with _session(inside) as session:
        proxy = Proxy(server, session, server_certificate=True)
        async with _listening(proxy, outside) as port:
            yield proxy, f"https://127.0.0.1:{port}"


def _session(context: ssl.SSLContext | None) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, ssl=context if context is not None else True)
    timeout = aiohttp.ClientTimeout(total=None, connect=5)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)


@contextlib.asynccontextmanager
async def _listening(proxy: Proxy, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Serve on a free port of loopback; yields the port."""
    # Without cancellation a watch whose caller has gone would stay open for ever.
    runner = web.ServerRunner(
        web.Server(proxy.handle, handler_cancellation=True, access_log=None), shutdown_timeout=0.5
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port: int = runner.addresses[0][1]
        yield port
    finally:
        proxy.drop_watches()
        await runner.cleanup()

"""Registries that answer whatever they like: every request ends in time, with an answer or with a reason."""

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.domain.errors import HubError
from shared.domain.image import ImageReference
from shared.registry import client as client_module
from shared.registry.access import Credentials, RegistryAccess
from shared.registry.client import RegistryClient
from shared.registry.errors import RegistryUnavailable
from shared.registry.manifest import MANIFEST_TYPES, Descriptor

pytestmark = pytest.mark.integration

FACTOR = 50 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 1
QUICK = settings(
    derandomize=FACTOR == 1,
    database=None,
    deadline=None,
    max_examples=250 * FACTOR,
    suppress_health_check=list(HealthCheck),
)
ACCESS = RegistryAccess(credentials=Credentials(username="u", password="p"))


class RawRegistry:
    """Answers the bytes it was given, one answer per connection, the last one again and again."""

    def __init__(self) -> None:
        self.port = 0
        self.answers: list[bytes] = []
        self.requests = 0
        self.drip: tuple[bytes, float] | None = None

    def image(self, suffix: str = ":1") -> ImageReference:
        return ImageReference.parse(f"127.0.0.1:{self.port}/team/kmod{suffix}")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            answer = self.answers[min(self.requests, len(self.answers) - 1)]
            self.requests += 1
            writer.write(answer.replace(b"PORT", str(self.port).encode()))
            await writer.drain()
            while self.drip is not None and b"Content-Length: 0" not in answer and not writer.is_closing():
                writer.write(self.drip[0])
                await writer.drain()
                await asyncio.sleep(self.drip[1])
        writer.close()


@pytest.fixture(scope="module")
async def registry() -> AsyncIterator[RawRegistry]:
    running = RawRegistry()
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    async with server:
        yield running


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[RegistryClient]:
    async with RegistryClient() as opened:
        yield opened


@pytest.fixture
async def run() -> Callable[[Awaitable[Any]], Any]:
    """Runs a coroutine of an example in the loop of the fixtures."""
    return asyncio.get_running_loop().run_until_complete


DIGEST = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
HEADER_VALUES: dict[str, st.SearchStrategy[str]] = {
    "Content-Type": st.sampled_from([*MANIFEST_TYPES, "text/html", "", ";", 'a/b; charset="', "é"]),
    "Content-Length": st.sampled_from(["0", "2", "-1", "9" * 30, "5000000", "x", ""]),
    "Docker-Content-Digest": st.sampled_from(
        [DIGEST, "sha256:0", "", "md5:x", DIGEST.upper(), "sha512:" + "a" * 128]
    ),
    "Location": st.sampled_from(
        [
            "",
            "/v2/x",
            "http://127.0.0.1:PORT/v2/x",
            "http://[::1",
            "http://a:99999/",
            "http://xn--/",
            "http://169.254.169.254/",
            "file:///etc/passwd",
            "//",
            "?x=%zz",
            "http://é.example/",
            "/" + "a" * 7000,
            "https://127.0.0.1:PORT/",
        ]
    ),
    "WWW-Authenticate": st.sampled_from(
        [
            "Bearer realm=",
            "Bearer",
            "Basic",
            'Bearer realm="http://127.0.0.1:PORT/token",service="s"',
            'Bearer realm="http://[::1",service="s"',
            'Bearer realm="http://169.254.169.254/"',
            'Bearer realm="token"',
            "Digest nonce=1",
            'Bearer realm="http://127.0.0.1:PORT/token?a=b&scope=é", scope="' + "x " * 500 + '"',
            "=,=,=",
        ]
    ),
    "Retry-After": st.sampled_from(["9" * 400, "-1", "soon", "0"]),
    "Transfer-Encoding": st.sampled_from(["chunked", "gzip", "chunked, chunked"]),
    "Content-Encoding": st.sampled_from(["gzip", "br", "x"]),
    "Connection": st.sampled_from(["close", "keep-alive", "upgrade"]),
}
BODIES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"{}",
            b"",
            b"5\r\nhello\r\n0\r\n\r\n",
            b"ffffffffffff\r\n",
            b'{"token":"t"}',
            b'{"errors":[{"code":"\\u0000","message":"\\u001b[31m"}]}',
            b'{"errors":' + b"[" * 9000,
            json.dumps(
                {"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": DIGEST, "size": -1}]}
            ).encode(),
            json.dumps(
                {
                    "schemaVersion": 2,
                    "config": {"mediaType": "x", "digest": DIGEST, "size": 2**70},
                    "layers": [{"mediaType": "x", "digest": "../../x", "size": 1}],
                }
            ).encode(),
        ]
    ),
)
STATUSES = st.sampled_from(
    [
        200,
        200,
        200,
        201,
        202,
        204,
        206,
        301,
        302,
        304,
        307,
        400,
        401,
        401,
        403,
        404,
        416,
        429,
        500,
        503,
        999,
        100,
    ]
)


@st.composite
def http_answers(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.sampled_from(list(HEADER_VALUES)), max_size=4, unique=True))
    headers = "".join(f"{name}: {draw(HEADER_VALUES[name])}\r\n" for name in names)
    return f"HTTP/1.1 {draw(STATUSES)} X\r\n{headers}\r\n".encode() + draw(BODIES)


def assert_short(error: HubError) -> None:
    assert str(error).isprintable()
    assert 10 < len(str(error)) < 1500
    assert (getattr(error, "retry_after", None) or 0) <= 300


async def everything_asked(client: RegistryClient, registry: RawRegistry) -> None:
    """Each kind of request once; a HubError is an answer."""
    image, part = registry.image(), Descriptor(media_type="x", digest=DIGEST, size=2)
    other = registry.image(":2")

    async def blob() -> None:
        async with contextlib.aclosing(client.blob(image, part, access=ACCESS)) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == b"{}"

    requests: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.head(image, access=ACCESS),
        lambda: client.image(image, access=ACCESS),
        lambda: client.manifest(registry.image(f"@{DIGEST}"), access=ACCESS),
        lambda: client.config(image, part, access=ACCESS),
        lambda: client.upload_blob(image, b"{}", access=ACCESS),
        lambda: client.copy_blob(
            part, source=other, target=image, source_access=ACCESS, target_access=ACCESS
        ),
        lambda: client.put_manifest(image, b"{}", MANIFEST_TYPES[0], access=ACCESS),
        lambda: client.tag(image, DIGEST, access=ACCESS),
        blob,
    ]
    for request in requests:
        registry.requests = 0
        try:
            async with asyncio.timeout(10):
                await request()
        except HubError as error:
            assert_short(error)
        assert registry.requests <= 12


def test_any_answers_of_a_registry_end_in_a_reason(
    client: RegistryClient, registry: RawRegistry, run: Callable[[Awaitable[Any]], Any]
) -> None:
    @QUICK
    @given(st.lists(http_answers() | st.binary(max_size=80), min_size=1, max_size=4))
    @example([b""])
    @example([b"HTTP/1.1 401 X\r\nWWW-Authenticate: Bearer realm=\r\n\r\n"])
    @example([b"HTTP/1.1 302 X\r\nLocation: http://[::1\r\n\r\n"])
    @example([b"HTTP/1.1 202 X\r\nLocation: http://a:99999/\r\n\r\n"])
    @example([b"HTTP/1.1 400 X\r\n\r\n" + b'{"errors":' + b"[" * 15_000])
    @example([b"HTTP/1.1 200 X\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"])
    def attempt(answers: list[bytes]) -> None:
        registry.answers, registry.drip = answers, None
        run(everything_asked(client, registry))

    attempt()


async def test_a_blob_that_dribbles_is_given_up(
    client: RegistryClient, registry: RawRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_PATIENCE_SECONDS", 0.3)
    registry.answers = [b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n"]
    registry.drip = (b"x", 0.05)
    started = time.monotonic()
    try:
        with pytest.raises(RegistryUnavailable, match="slower than"):
            await client.config(registry.image(), Descriptor(media_type="x", digest=DIGEST, size=1000))
    finally:
        registry.drip = None
    assert time.monotonic() - started < 5


async def test_a_body_without_an_end_is_not_kept(client: RegistryClient, registry: RawRegistry) -> None:
    """A manifest, a token and a blob that never end, from a registry as fast as it can."""
    registry.answers = [b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\n\r\n"]
    registry.drip = (b"x" * 100_000, 0)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(HubError, match="4 MiB"):
                await client.manifest(registry.image())
            with pytest.raises(HubError, match="other content or size"):
                await client.config(registry.image(), Descriptor(media_type="x", digest=DIGEST, size=1000))
            challenge = b'HTTP/1.1 401 X\r\nContent-Length: 0\r\nWWW-Authenticate: Bearer realm="http://127.0.0.1:PORT/"'
            challenge += b"\r\n\r\n"
            registry.answers, registry.requests = [challenge, registry.answers[0]], 0
            with pytest.raises(HubError, match="more than 65536 bytes"):
                await client.manifest(registry.image())
    finally:
        registry.drip = None

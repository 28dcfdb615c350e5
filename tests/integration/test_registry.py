"""The registry client against Debian's docker-registry: anonymous, Basic, tokens, TLS; and against bad servers."""

import asyncio
import base64
import datetime as dt
import hashlib
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import encode_basic_auth, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from own_registry import OwnRegistry, run_registry

from shared.domain.image import ImageReference
from shared.registry.access import ANONYMOUS, Credentials, RegistryAccess
from shared.registry.client import RegistryClient, at_digest
from shared.registry.content import digest_of
from shared.registry.errors import (
    DigestMismatch,
    ImageMissing,
    ImageUnreadable,
    RegistryDenied,
    RegistryRejected,
    RegistryUnavailable,
    UnsafeAddress,
)
from shared.registry.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor

pytestmark = pytest.mark.integration

USER = Credentials(username="robot", password="correct horse")
ALLOWED = RegistryAccess(credentials=USER)
WRONG = RegistryAccess(credentials=replace(USER, password="battery staple"))
# bcrypt of the password above, as `htpasswd -B` writes it
HTPASSWD = "robot:$2b$04$Qiqo8jqvt/Oel/iae/5fKuGM8eT5xK/EksPA0I9uRuO6ge0Hk1Y8q\n"
NOTHING = f"sha256:{hashlib.sha256(b'nothing').hexdigest()}"


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    async with RegistryClient() as opened:
        yield opened


async def _push(
    client: RegistryClient, image: ImageReference, layer: bytes, access: RegistryAccess = ANONYMOUS
) -> str:
    """Push an image of one layer; its digest."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "for": str(image)}).encode()
    parts = [
        {
            "mediaType": media_type,
            "digest": await client.upload_blob(image, content, access=access),
            "size": len(content),
        }
        for media_type, content in (
            ("application/vnd.oci.image.config.v1+json", config),
            ("application/vnd.oci.image.layer.v1.tar", layer),
        )
    ]
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": parts[0], "layers": parts[1:]}
    return await client.put_manifest(image, json.dumps(manifest).encode(), OCI_MANIFEST, access=access)


async def _read(client: RegistryClient, image: ImageReference, access: RegistryAccess = ANONYMOUS) -> bytes:
    """The content of the image's only layer."""
    found = await client.image(image, access=access)
    return b"".join([chunk async for chunk in client.blob(image, found.layers[0], access=access)])


class TestImages:
    async def test_what_was_pushed_comes_back(self, client, registry):
        image = ImageReference.parse(f"{registry.address}/team/pushed:1")
        digest = await _push(client, image, b"layer" * 300_000)
        assert await _read(client, image) == b"layer" * 300_000
        head = await client.head(image)
        manifest = await client.manifest(at_digest(image, digest))
        assert head == manifest.descriptor
        assert head.digest == digest
        assert head.media_type == OCI_MANIFEST
        found = await client.image(image)
        assert json.loads(await client.config(image, found.config))["for"] == str(image)

    async def test_a_file_is_uploaded(self, client, registry, tmp_path):
        image = ImageReference.parse(f"{registry.address}/team/file")
        path = tmp_path / "blob"
        path.write_bytes(bytes(range(256)) * 5000)
        digest = await client.upload_blob(image, path)
        assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        assert await client.blob_exists(image, digest)
        assert await client.upload_blob(image, path) == digest

    async def test_what_is_not_there(self, client, registry):
        image = ImageReference.parse(f"{registry.address}/team/nothing:1")
        assert await client.head(image) is None
        assert not await client.blob_exists(image, NOTHING)
        with pytest.raises(ImageMissing, match="team/nothing:1"):
            await client.manifest(image)
        with pytest.raises(ImageMissing, match=NOTHING):
            async for _ in client.blob(image, Descriptor(media_type="", digest=NOTHING, size=7)):
                pass

    async def test_a_tag_moves_to_the_same_bytes(self, client, registry):
        image = ImageReference.parse(f"{registry.address}/team/moving:1")
        first, second = await _push(client, image, b"one"), await _push(client, image.with_tag("2"), b"two")
        assert first != second
        await client.tag(image, second)
        head = await client.head(image)
        assert head is not None
        assert head.digest == second

    async def test_an_index_leads_to_the_platform(self, client, registry):
        image = ImageReference.parse(f"{registry.address}/team/index:1")
        entries = []
        for architecture in ("arm64", "amd64"):
            digest = await _push(client, image.with_tag(architecture), architecture.encode())
            size = (await client.manifest(at_digest(image, digest))).descriptor.size
            platform = {"os": "linux", "architecture": architecture}
            entries.append({"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": platform})
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        await client.put_manifest(image, json.dumps(index).encode(), OCI_INDEX)
        assert (await client.image(image)).manifest.descriptor.digest == entries[1]["digest"]
        arm = await client.image(image, architecture="arm64")
        assert arm.manifest.descriptor.digest == entries[0]["digest"]
        with pytest.raises(ImageUnreadable, match=r"linux/s390x.*linux/arm64, linux/amd64"):
            await client.image(image, architecture="s390x")

    async def test_blobs_are_mounted_or_copied(self, client, registry, tmp_path):
        source = ImageReference.parse(f"{registry.address}/team/source:1")
        await _push(client, source, b"to be copied" * 100_000)
        layer = (await client.image(source)).layers[0]
        beside = ImageReference.parse(f"{registry.address}/team/beside")
        await client.copy_blob(layer, source=source, target=beside)
        assert await client.blob_exists(beside, layer.digest)
        with run_registry(tmp_path) as other:
            far = ImageReference.parse(f"{other.address}/far")
            await client.copy_blob(layer, source=source, target=far)
            assert b"".join([chunk async for chunk in client.blob(far, layer)]) == b"to be copied" * 100_000
            gone = Descriptor(media_type="", digest=NOTHING, size=7)
            with pytest.raises(ImageMissing):
                await client.copy_blob(gone, source=source, target=far)

    async def test_content_changed_in_store_is_noticed(self, client, registry):
        image = ImageReference.parse(f"{registry.address}/team/damaged:1")
        await _push(client, image, b"precious content")
        layer = (await client.image(image)).layers[0]
        hexadecimal = layer.digest.removeprefix("sha256:")
        for path in registry.storage.rglob(f"sha256/{hexadecimal[:2]}/{hexadecimal}/data"):
            path.write_bytes(b"precious c0ntent")
        with pytest.raises(DigestMismatch, match=layer.digest):
            await _read(client, image)

    async def test_a_closed_port_is_unavailable(self, client):
        with pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:9"):
            await client.head(ImageReference.parse("127.0.0.1:9/team/x:1"))


class TestBasic:
    @pytest.fixture(scope="class")
    @classmethod
    def closed(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRegistry]:
        directory = tmp_path_factory.mktemp("closed")
        (directory / "htpasswd").write_text(HTPASSWD)
        auth = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
        with run_registry(directory, auth=auth) as running:
            yield running

    async def test_the_right_password_reads_and_writes(self, client, closed):
        image = ImageReference.parse(f"{closed.address}/team/secret:1")
        await _push(client, image, b"x" * 100_000, ALLOWED)
        assert await _read(client, image, ALLOWED) == b"x" * 100_000

    @pytest.mark.parametrize("access", [WRONG, RegistryAccess()], ids=["wrong", "none"])
    async def test_others_are_denied_with_advice(self, client, closed, access):
        image = ImageReference.parse(f"{closed.address}/team/secret:1")
        for _ in range(2):  # the second time with what the first has learnt
            with pytest.raises(RegistryDenied, match="imageRepoSecret") as caught:
                await client.head(image, access=access)
            assert "battery" not in str(caught.value)


@dataclass
class TokenServer:
    """The token server of another party: signs tokens that docker-registry verifies against `certificate`."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate
    seconds: int = 300
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        scopes = request.query.getall("scope", [])
        self.asked += scopes
        header = request.headers.get("Authorization")
        if header != encode_basic_auth(USER.username, USER.password):
            return web.json_response({"details": "no"}, status=401)
        granted = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            granted.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims = {
            "iss": "the-issuer",
            "sub": "robot",
            "aud": request.query["service"],
            "jti": "1",
            "access": granted,
        }
        claims |= {"iat": now, "nbf": now - 5, "exp": now + self.seconds}
        chain = [base64.b64encode(self.certificate.public_bytes(Encoding.DER)).decode()]
        head = {"typ": "JWT", "alg": "RS256", "x5c": chain}
        text = b".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        signature = self.key.sign(text, padding.PKCS1v15(), hashes.SHA256())
        token = (text + b"." + _base64url(signature)).decode()
        return web.json_response({"token": token, "expires_in": self.seconds})


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _certificate() -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.fromtimestamp(time.time(), dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - dt.timedelta(days=1))
    builder = builder.not_valid_after(now + dt.timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    return key, builder.add_extension(address, critical=False).sign(key, hashes.SHA256())


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def _serve(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """`host:port` of a server of another party that answers every request by `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    try:
        yield f"{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _with_tokens(directory: Path, seconds: int = 300) -> AsyncIterator[tuple[OwnRegistry, TokenServer]]:
    key, certificate = _certificate()
    tokens = TokenServer(key, certificate, seconds)
    (directory / "roots.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    async with _serve(tokens.answer) as realm:
        settings = {
            "realm": f"http://{realm}/token",
            "service": "the registry",
            "issuer": "the-issuer",
            "rootcertbundle": str(directory / "roots.pem"),
        }
        with run_registry(directory, auth={"token": settings}) as running:
            yield running, tokens


class TestTokens:
    async def test_one_token_serves_all_requests_of_a_scope(self, client, tmp_path):
        async with _with_tokens(tmp_path) as (registry, tokens):
            image = ImageReference.parse(f"{registry.address}/team/tokens:1")
            await _push(client, image, b"x" * 100_000, ALLOWED)
            assert await _read(client, image, ALLOWED) == b"x" * 100_000
            assert sorted(tokens.asked) == ["repository:team/tokens:pull", "repository:team/tokens:pull,push"]
            layer = (await client.image(image, access=ALLOWED)).layers[0]
            other = ImageReference.parse(f"{registry.address}/team/other")
            await client.copy_blob(
                layer, source=image, target=other, source_access=ALLOWED, target_access=ALLOWED
            )
            assert await client.blob_exists(other, layer.digest, access=ALLOWED)

    async def test_a_token_at_its_end_is_renewed(self, client, tmp_path):
        async with _with_tokens(tmp_path, seconds=11) as (registry, tokens):
            image = ImageReference.parse(f"{registry.address}/team/short:1")
            assert await client.head(image, access=ALLOWED) is None
            await asyncio.sleep(1.1)  # lives 11 s; the last 10 are not relied on
            assert await client.head(image, access=ALLOWED) is None
            assert len(tokens.asked) == 2

    async def test_a_refused_token_is_denied(self, client, tmp_path):
        async with _with_tokens(tmp_path) as (registry, _):
            with pytest.raises(RegistryDenied, match="imageRepoSecret"):
                await client.head(ImageReference.parse(f"{registry.address}/team/x:1"), access=WRONG)


class TestTls:
    @pytest.fixture(scope="class")
    @classmethod
    def encrypted(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRegistry]:
        directory = tmp_path_factory.mktemp("encrypted")
        key, certificate = _certificate()
        (directory / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (directory / "key.pem").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        )
        tls = {"certificate": str(directory / "cert.pem"), "key": str(directory / "key.pem")}
        auth = {
            "token": {
                "realm": "http://127.0.0.1:9/token",
                "service": "x",
                "issuer": "x",
                "rootcertbundle": str(directory / "cert.pem"),
            }
        }
        with run_registry(directory, tls=tls, auth=auth) as running:
            yield running

    async def test_a_token_server_in_clear_text_is_refused(self, client, encrypted):
        image = ImageReference.parse(f"{encrypted.address}/team/x:1")
        with pytest.raises(UnsafeAddress, match="not HTTPS"):
            await client.head(image, access=RegistryAccess(skip_tls_verify=True, credentials=USER))

    async def test_an_unknown_certificate_is_refused_with_advice(self, client, encrypted):
        # An address that is not loopback's, so that TLS is expected, and leads to this machine all the same.
        port = encrypted.address.partition(":")[2]
        image = ImageReference.parse(f"0.0.0.0:{port}/team/x:1")
        with pytest.raises(RegistryUnavailable, match="insecureSkipTLSVerify"):
            await client.head(image)

    async def test_plain_http_where_tls_is_expected(self, client, registry):
        port = registry.address.partition(":")[2]
        image = ImageReference.parse(f"0.0.0.0:{port}/team/x:1")
        with pytest.raises(RegistryUnavailable, match=r"registryTLS\.insecure"):
            await client.head(image)
        assert await client.head(image, access=RegistryAccess(insecure=True)) is None


class TestBadServers:
    """Registries of other parties that misbehave in ways docker-registry cannot be made to."""

    async def test_a_redirect_to_another_host_gets_no_password(self, client):
        content, seen = b"from elsewhere", []

        async def elsewhere(request: web.Request) -> web.Response:
            seen.append(request.headers.get("Authorization"))
            return web.Response(body=content)

        async with _serve(elsewhere) as other:

            async def answer(request: web.Request) -> web.Response:
                if "Authorization" not in request.headers:
                    return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
                return web.Response(status=307, headers={"Location": f"http://{other}/data?sig=a%2Bb"})

            async with _serve(answer) as address:
                image = ImageReference.parse(f"{address}/x:1")
                digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
                blob = Descriptor(media_type="", digest=digest, size=len(content))
                chunks = [chunk async for chunk in client.blob(image, blob, access=ALLOWED)]
        assert b"".join(chunks) == content
        assert seen == [None]

    async def test_redirects_end(self, client):
        async def answer(request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": str(request.url)})

        async with _serve(answer) as address:
            with pytest.raises(RegistryRejected, match="more than 3"):
                await client.head(ImageReference.parse(f"{address}/x:1"))

    async def test_retry_after_is_kept(self, client):
        async def answer(request: web.Request) -> web.Response:
            return web.Response(status=429, headers={"Retry-After": "17"})

        async with _serve(answer) as address:
            with pytest.raises(RegistryUnavailable) as caught:
                await client.head(ImageReference.parse(f"{address}/x:1"))
        assert caught.value.retry_after == 17

    async def test_the_registrys_words_are_shown_without_control_characters(self, client):
        async def answer(request: web.Request) -> web.Response:
            error = {"code": "TOOMANYREQUESTS", "message": "slow\x1b[31m down" + "." * 20_000}
            return web.json_response({"errors": [error | {"message": error["message"][:60]}]}, status=503)

        async with _serve(answer) as address:
            with pytest.raises(RegistryUnavailable, match=r"503 \(TOOMANYREQUESTS: slow\[31m down") as caught:
                await client.manifest(ImageReference.parse(f"{address}/x:1"))
        assert "\x1b" not in str(caught.value)

    async def test_a_manifest_above_4_mib_is_not_read(self, client):
        async def answer(request: web.Request) -> web.Response:
            return web.Response(body=b" " * (4 * 1024 * 1024 + 1), content_type=OCI_MANIFEST)

        async with _serve(answer) as address:
            with pytest.raises(ImageUnreadable, match="4 MiB"):
                await client.manifest(ImageReference.parse(f"{address}/x:1"))

    async def test_a_registry_that_names_another_digest_than_the_one_asked_for_is_refused(self, client):
        other = digest_of(b"another manifest")

        async def answer(request: web.Request) -> web.Response:
            headers = {"Docker-Content-Digest": other, "Content-Type": OCI_MANIFEST}
            if request.method == "PUT":
                await request.read()
                return web.Response(status=201, headers=headers)
            return web.Response(headers=headers | {"Content-Length": "12"})

        async with _serve(answer) as address:
            with pytest.raises(DigestMismatch, match=other):
                await client.head(ImageReference.parse(f"{address}/x@{NOTHING}"))
            with pytest.raises(DigestMismatch, match="stored another"):
                await client.put_manifest(ImageReference.parse(f"{address}/x:1"), b"{}", OCI_MANIFEST)

    async def test_a_manifest_with_another_digest_is_refused(self, client):
        async def answer(request: web.Request) -> web.Response:
            return web.Response(body=b'{"schemaVersion": 2}', content_type=OCI_MANIFEST)

        async with _serve(answer) as address:
            with pytest.raises(DigestMismatch, match=NOTHING):
                await client.manifest(ImageReference.parse(f"{address}/x@{NOTHING}"))

    async def test_head_without_a_digest_computes_it(self, client):
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST}).encode()

        async def answer(request: web.Request) -> web.Response:
            return web.Response(body=body, content_type=OCI_MANIFEST)

        async with _serve(answer) as address:
            head = await client.head(ImageReference.parse(f"{address}/x:1"))
        assert head == Descriptor(
            media_type=OCI_MANIFEST, digest=f"sha256:{hashlib.sha256(body).hexdigest()}", size=len(body)
        )

    async def test_a_connection_cut_in_a_blob_is_unavailable(self, client):
        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "100000"})
            await response.prepare(request)
            await response.write(b"x" * 1000)
            assert request.transport is not None
            request.transport.abort()
            return response

        async with _serve(answer) as address:
            with pytest.raises(RegistryUnavailable):
                async for _ in client.blob(
                    ImageReference.parse(f"{address}/x:1"),
                    Descriptor(media_type="", digest=NOTHING, size=100_000),
                ):
                    pass

"""The proxies of chaos before a real API server, a real registry, and a real HTTP server."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web

from chaos.material import PLAIN, padding, push_image
from chaos.nemesis import UPLOAD_BYTES, api_answer, registry_answer
from chaos.plan import FaultKind
from chaos.proxy import Proxy, serve_api, serve_registry
from localhub.addresses import GivenAddresses
from localhub.apiserver import write_kubeconfig
from localhub.files import write_private
from localhub.hub import LocalHub
from localhub.pki import issue_client_certificate
from shared.domain.image import ImageReference
from shared.kube.client import CONFIG_MAPS, KubeClient
from shared.kube.errors import ApiUnavailable, Conflict, Forbidden, Gone
from shared.registry.client import RegistryClient
from shared.registry.errors import RegistryDenied, RegistryUnavailable

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
async def own_hub(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalHub]:
    opened = LocalHub(tmp_path_factory.mktemp("hub"), given=GivenAddresses())
    await asyncio.to_thread(opened.up)
    yield opened
    await asyncio.to_thread(opened.down, purge=True)


@pytest.fixture
async def api(own_hub: LocalHub, tmp_path: Path) -> AsyncIterator[tuple[Proxy, KubeClient]]:
    """A proxy before the API server, and an administrator who goes through it."""
    server = yaml.safe_load(own_hub.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    async with serve_api(server, own_hub.pki) as (proxy, address):
        kubeconfig = tmp_path / "kubeconfig"
        write_kubeconfig(kubeconfig, pki=own_hub.pki, port=int(address.rpartition(":")[2]))
        async with await KubeClient.connect(kubeconfig) as kube:
            yield proxy, kube


def config_map(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}}


async def first_line(kube: KubeClient, version: str) -> bytes:
    async for line in kube.watch(CONFIG_MAPS, resource_version=version, namespace="default"):
        return line
    return b""


async def newest(kube: KubeClient) -> str:
    page = await kube.list_page(CONFIG_MAPS, namespace="default")
    return str(json.loads(page)["metadata"]["resourceVersion"])


async def test_reads_writes_and_watches_pass_through(api: tuple[Proxy, KubeClient]) -> None:
    proxy, kube = api
    version = await newest(kube)
    watching = asyncio.create_task(first_line(kube, version))
    await kube.create(CONFIG_MAPS, config_map("passes"), namespace="default")
    event = json.loads(await asyncio.wait_for(watching, 10))
    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "passes")
    assert proxy.written == 1
    with pytest.raises(Conflict):
        await kube.create(CONFIG_MAPS, config_map("passes"), namespace="default")


async def test_a_caller_stays_who_they_are(own_hub: LocalHub, tmp_path: Path) -> None:
    """Somebody without rights gets none by going through the proxy, though it is an administrator itself."""
    certificate, key = issue_client_certificate(own_hub.pki, user="nobody", groups=("strangers",))
    pki = tmp_path / "pki"
    pki.mkdir()
    write_private(pki / "nobody.crt", certificate)
    write_private(pki / "nobody.key", key)
    write_private(pki / "ca.crt", (own_hub.pki / "ca.crt").read_text())
    server = yaml.safe_load(own_hub.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    async with serve_api(server, own_hub.pki) as (_, address):
        write_kubeconfig(
            tmp_path / "kubeconfig", pki=pki, port=int(address.rpartition(":")[2]), user="nobody"
        )
        async with await KubeClient.connect(tmp_path / "kubeconfig") as kube:
            with pytest.raises(Forbidden, match='User "nobody" cannot list'):
                await kube.list_page(CONFIG_MAPS, namespace="default")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FaultKind.API_409, Conflict),
        (FaultKind.API_429, ApiUnavailable),
        (FaultKind.API_500, ApiUnavailable),
    ],
)
async def test_writes_get_the_answer_that_was_asked_for(
    api: tuple[Proxy, KubeClient], kind: FaultKind, error: type[Exception]
) -> None:
    proxy, kube = api
    with (
        proxy.answering(api_answer(kind)),
        pytest.raises(error, match="a fault that was asked for") as caught,
    ):
        await kube.create(CONFIG_MAPS, config_map("refused"), namespace="default")
    if kind is FaultKind.API_429:
        assert isinstance(caught.value, ApiUnavailable)
        assert caught.value.retry_after == 1
    await kube.create(
        CONFIG_MAPS, config_map(f"taken-{kind.name.lower().replace('_', '-')}"), namespace="default"
    )


async def test_only_watches_are_gone(api: tuple[Proxy, KubeClient]) -> None:
    proxy, kube = api
    with proxy.answering(api_answer(FaultKind.API_410)):
        version = await newest(kube)
        with pytest.raises(Gone):
            await first_line(kube, version)


async def test_watches_are_cut_and_silenced(api: tuple[Proxy, KubeClient]) -> None:
    proxy, kube = api
    loop = asyncio.get_running_loop()
    version = await newest(kube)
    with proxy.cutting_watches(0.1):
        began = loop.time()
        with pytest.raises(ApiUnavailable):
            await first_line(kube, version)
        assert 0.05 < loop.time() - began < 2
    with proxy.silencing_watches():
        watching = asyncio.create_task(first_line(kube, version))
        await asyncio.sleep(0.5)
        await kube.create(CONFIG_MAPS, config_map("unheard"), namespace="default")
        await asyncio.sleep(0.5)
        assert not watching.done()
    with pytest.raises(ApiUnavailable):
        await asyncio.wait_for(watching, 5)
    event = json.loads(await asyncio.wait_for(first_line(kube, version), 10))
    assert event["object"]["metadata"]["name"] == "unheard"


async def test_a_registry_behind_the_proxy(own_hub: LocalHub) -> None:
    async with (
        serve_registry(own_hub.addresses().registry) as (proxy, address),
        RegistryClient() as registry,
    ):
        digest = await push_image(registry, f"{address}/images/a:1", files={"a": padding("a")}, labels={})
        found = await registry.head(ImageReference.parse(f"{address}/images/a:1"), access=PLAIN)
        assert found is not None
        assert found.digest == digest
        written = proxy.written
        with proxy.cutting_uploads(UPLOAD_BYTES), pytest.raises(RegistryUnavailable):
            await push_image(registry, f"{address}/images/b:1", files={"b": padding("b")}, labels={})
        assert proxy.written > written
        assert await registry.head(ImageReference.parse(f"{address}/images/b:1"), access=PLAIN) is None
        with proxy.answering(registry_answer(FaultKind.REGISTRY_401)), pytest.raises(RegistryDenied):
            await registry.head(ImageReference.parse(f"{address}/images/a:1"), access=PLAIN)
        with proxy.answering(registry_answer(FaultKind.REGISTRY_404)):
            assert await registry.head(ImageReference.parse(f"{address}/images/a:1"), access=PLAIN) is None
        began = asyncio.get_running_loop().time()
        with proxy.slowing_uploads(0.2):
            await push_image(registry, f"{address}/images/c:1", files={"c": padding("c")}, labels={})
        assert asyncio.get_running_loop().time() - began > 1


async def test_a_server_that_is_away_looks_like_one_that_is_away() -> None:
    """Nothing is answered in its place: the connection breaks."""

    async def hello(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="hello")

    runner = web.ServerRunner(web.Server(hello))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with (
        serve_registry(f"127.0.0.1:{runner.addresses[0][1]}") as (_, address),
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"http://{address}/") as answer:
            assert await answer.text() == "hello"
        await runner.cleanup()
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://{address}/")

"""Lists and watches that no API server should send: the reflector goes on, and says why nothing came."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from hostile_answers import HostileServer, hostile_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes.aio import client as kubernetes_client
from structlog.testing import capture_logs

from services.watcher.facts import cluster_row, config_map_row, module_row, secret_row
from services.watcher.kinds import ConfigMap, ManagedCluster, ManagedClusterModule, ManifestWork, Secret
from shared.domain.errors import HubError
from shared.kube import reflector
from shared.kube.client import (
    CONFIG_MAPS,
    MANAGED_CLUSTERS,
    MANIFEST_WORKS,
    MODULES,
    SECRETS,
    KubeClient,
    Resource,
    WatchBroken,
)
from shared.kube.errors import ApiUnavailable
from shared.kube.reflector import Listed, Reflector, Removed, Seen

pytestmark = pytest.mark.integration

FACTOR = 50 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 1
QUICK = settings(
    derandomize=FACTOR == 1,
    database=None,
    deadline=None,
    max_examples=60 * FACTOR,
    suppress_health_check=list(HealthCheck),
)
KINDS: dict[Resource, tuple[type[Any], Callable[[Any], object]]] = {
    MODULES: (ManagedClusterModule, module_row),
    MANAGED_CLUSTERS: (ManagedCluster, cluster_row),
    CONFIG_MAPS: (ConfigMap, config_map_row),
    SECRETS: (Secret, secret_row),
    MANIFEST_WORKS: (ManifestWork, lambda work: work),
}

GOOD = {"metadata": {"name": "good", "uid": "u", "resourceVersion": "7"}}

TEXTS = st.one_of(st.text(max_size=10), st.sampled_from(["\0", "", "../x", "a" * 300, "９", "1\n", "-1"]))
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), TEXTS, st.just([]), st.just({}), st.just({"a": [None]})
)
METADATA = st.dictionaries(
    st.sampled_from(
        [
            "name",
            "uid",
            "resourceVersion",
            "namespace",
            "generation",
            "labels",
            "ownerReferences",
            "finalizers",
        ]
    ),
    VALUES,
).map(lambda odd: {"name": "odd", "uid": "u", "resourceVersion": "8", **odd})
OBJECTS = st.fixed_dictionaries(
    {}, optional={"metadata": METADATA | VALUES, "spec": VALUES, "status": VALUES, "data": VALUES}
)
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "FOO", 5, None]),
        "object": OBJECTS | VALUES | st.fixed_dictionaries({"code": VALUES, "message": VALUES}),
    },
)
LINES = st.one_of(st.binary(max_size=60), EVENTS.map(lambda event: json.dumps(event).encode()))


@dataclass
class ApiServer:
    """Answers lists with `pages`, then one watch with `lines`, or if `is_stuck` each one until the second list."""

    pages: list[bytes]
    lines: list[bytes] = field(default_factory=list)
    watches: int = 0
    lists: int = 0
    is_stuck: bool = False
    is_through: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.lists += 1
            page = self.pages[min(self.lists, len(self.pages)) - 1]
            if self.lists > len(self.pages) + 1:
                self.is_through.set()
            return web.Response(body=page, content_type="application/json")
        self.watches += 1
        response = web.StreamResponse()
        await response.prepare(request)
        if self.watches == 1 or (self.is_stuck and self.lists == 1):
            for line in self.lines:
                await response.write(line + b"\n")
        else:
            self.is_through.set()
        return response


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[HostileServer]:
    async with hostile_server() as running:
        yield running


@pytest.fixture(scope="module")
async def kube(server: HostileServer) -> AsyncIterator[KubeClient]:
    configuration = kubernetes_client.Configuration(host=f"http://{server.authority}")
    async with KubeClient(configuration) as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reflector's pauses, made short: what is tried here is what it does between them."""

    async def short(event: asyncio.Event, seconds: float) -> bool:
        assert 0 <= seconds <= 400
        await asyncio.sleep(0.001)
        return event.is_set()

    monkeypatch.setattr(reflector, "pause", short)


async def reflected(
    kube: KubeClient, server: HostileServer, api: ApiServer, resource: Resource = MODULES
) -> list[Any]:
    """What the reflector yields until the server has said everything twice; nothing it raises is caught."""
    server.answers(api.answer)
    stop = asyncio.Event()
    kind, to_row = KINDS[resource]
    happenings: list[Any] = []

    async def follow() -> None:
        async for happening in Reflector(kube, resource, kind).run(stop):
            happenings.append(happening)
            if isinstance(happening, Seen | Removed):
                to_row(happening.object)

    following = asyncio.create_task(follow())
    through = asyncio.create_task(api.is_through.wait())
    try:
        async with asyncio.timeout(20):
            await asyncio.wait({following, through}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
        assert api.is_through.is_set()
    finally:
        stop.set()
        following.cancel()
        through.cancel()
        await asyncio.gather(following, through, return_exceptions=True)
    return happenings


def page(*items: Any, version: Any = "5", **metadata: Any) -> bytes:
    return json.dumps({"metadata": {"resourceVersion": version, **metadata}, "items": list(items)}).encode()


def names(happenings: list[Any]) -> set[str]:
    return {one.object.metadata.name for one in happenings if isinstance(one, Seen)}


@pytest.mark.parametrize("resource", KINDS, ids=lambda resource: resource.plural)
def test_any_line_of_a_watch_is_survived(
    resource: Resource, kube: KubeClient, server: HostileServer, run: Callable[[Awaitable[Any]], Any]
) -> None:
    @QUICK
    @given(st.lists(LINES, max_size=5))
    def attempt(lines: list[bytes]) -> None:
        happenings = run(reflected(kube, server, ApiServer([page(GOOD)], lines), resource))
        assert "good" in names(happenings)

    attempt()


@pytest.mark.parametrize("resource", KINDS, ids=lambda resource: resource.plural)
def test_any_list_is_survived_and_forgets_nothing_that_has_a_name(
    resource: Resource, kube: KubeClient, server: HostileServer, run: Callable[[Awaitable[Any]], Any]
) -> None:
    @QUICK
    @given(st.lists(OBJECTS | VALUES, max_size=3), st.binary(max_size=40) | st.none())
    def attempt(items: list[Any], answer: bytes | None) -> None:
        pages = [page(*items, GOOD) if answer is None else answer, page(GOOD)]
        happenings = run(reflected(kube, server, ApiServer(pages), resource))
        assert any(isinstance(one, Listed) for one in happenings)
        first = next(one for one in happenings if isinstance(one, Listed))
        assert ("", "good") in first.keys

    attempt()


@pytest.fixture
async def run() -> Callable[[Awaitable[Any]], Any]:
    """Runs a coroutine of an example in the loop of the fixtures."""
    return asyncio.get_running_loop().run_until_complete


async def test_an_object_that_cannot_be_read_is_kept_by_name(kube: KubeClient, server: HostileServer) -> None:
    odd = [
        {"metadata": {"name": "no-number", "uid": "u", "resourceVersion": "abc"}},
        {"metadata": {"name": "no-uid", "resourceVersion": "1"}},
        {"metadata": {"name": "huge", "uid": "u", "resourceVersion": "9" * 30}},
        {"metadata": {"name": "list", "uid": "u", "resourceVersion": "1"}, "spec": []},
    ]
    with capture_logs() as logs:
        happenings = await reflected(kube, server, ApiServer([page(*odd, GOOD)]))
    listed = next(one for one in happenings if isinstance(one, Listed))
    assert listed.keys == {("", name) for name in ("no-number", "no-uid", "huge", "list", "good")}
    assert names(happenings) == {"good"}
    told = [log for log in logs if log["event"] == "watch.undecodable"]
    assert all(log["error"] for log in told)
    assert {log["key"][1] for log in told} == {"no-number", "no-uid", "huge", "list"}


@pytest.mark.parametrize("depth", [101, 500, 950, 5000, 200_000])
async def test_one_deep_object_hides_no_other(kube: KubeClient, server: HostileServer, depth: int) -> None:
    deep = b'{"metadata":{"name":"deep","namespace":"c","uid":"u","resourceVersion":"8"},"spec":{"x":%s}}' % (
        b"[" * depth + b"]" * depth
    )
    pages = [b'{"metadata":{"resourceVersion":"9"},"items":[%s,%s]}' % (deep, json.dumps(GOOD).encode())]
    lines = [b'{"type":"MODIFIED","object":%s}' % deep, b'{"type":"ADDED","object":%s}' % page()]
    happenings = await reflected(kube, server, ApiServer(pages, lines), MANIFEST_WORKS)
    assert names(happenings) == {"good"}
    listed = next(one for one in happenings if isinstance(one, Listed))
    assert listed.keys == {("c", "deep"), ("", "good")}


async def test_a_list_without_an_end_is_given_up(
    kube: KubeClient, server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "MAX_PAGES", 20)
    endless = page(GOOD, **{"continue": "again"})
    with capture_logs() as logs:
        happenings = await reflected(kube, server, ApiServer([endless] * 20 + [page(GOOD)] * 2))
    assert any("more than 20 pages" in log.get("error", "") for log in logs)
    assert any(isinstance(one, Listed) for one in happenings)


@pytest.mark.parametrize(
    "error", [{"code": 410}, {"code": 500, "message": "x"}, {"code": "odd"}, {}, [], "text", None]
)
async def test_an_error_event_is_no_busy_loop_and_lists_anew_only_if_the_version_is_gone(
    kube: KubeClient, server: HostileServer, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []

    async def noted(event: asyncio.Event, seconds: float) -> bool:
        paused.append(seconds)
        await asyncio.sleep(0.001)
        return event.is_set()

    monkeypatch.setattr(reflector, "pause", noted)
    line = json.dumps({"type": "ERROR", "object": error}).encode()
    api = ApiServer([page(GOOD)], [line])
    await reflected(kube, server, api)
    assert paused
    assert min(paused) >= 0.4
    assert api.lists == (2 if error == {"code": 410} else 1)


async def test_a_line_that_no_watch_gets_past_lists_anew(kube: KubeClient, server: HostileServer) -> None:
    api = ApiServer([page(GOOD)], [b"no json"], is_stuck=True)
    happenings = await reflected(kube, server, api)
    assert [type(one) for one in happenings[:4]] == [Seen, Listed, Seen, Listed]
    assert api.watches >= reflector.MAX_FAILURES


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_watch_that_broke_is_told_from_one_that_never_was(
    kube: KubeClient, server: HostileServer, is_open: bool
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        if is_open:
            await response.prepare(request)
            await response.write(b"line\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    server.answers(answer)
    watch = kube.watch(MODULES, resource_version="5")
    if is_open:
        assert await anext(watch) == b"line\n"
    with pytest.raises(ApiUnavailable) as caught:
        await anext(watch)
    assert isinstance(caught.value, WatchBroken) is is_open


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b"5", b'{"a":' * 2000, b"\xff"])
async def test_an_answer_that_is_no_object_has_a_reason(
    kube: KubeClient, server: HostileServer, body: bytes
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    server.answers(answer)
    with pytest.raises(HubError, match="no JSON"):
        await kube.get(MODULES, "m")


@pytest.mark.parametrize("header", ["9" * 400, "-1", "٣", "soon", "1e9", ""])
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_that_asks_for_patience_gets_some(
    kube: KubeClient, server: HostileServer, header: str, status: int
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Retry-After": header}, body=b"[")

    server.answers(answer)
    with pytest.raises(HubError) as caught:
        await kube.get(MODULES, "m")
    assert getattr(caught.value, "retry_after", None) in {None, 300.0}

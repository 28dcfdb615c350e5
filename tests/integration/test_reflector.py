"""List and watch against the real API server: over lines that break, with versions that are too old."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from cut_line import CutLine, cut_line
from running_services import eventually

from localhub.hub import HubAddresses
from shared.kube import client
from shared.kube.client import CONFIG_MAPS, MANIFEST_WORKS, NAMESPACES, KubeClient, Resource
from shared.kube.reflector import Listed, Metadata, Reflector, Removed, Seen

pytestmark = pytest.mark.integration


class Note(msgspec.Struct):
    """A ConfigMap with a text that must be readable."""

    metadata: Metadata
    data: dict[str, str] | None = None

    @property
    def text(self) -> str:
        return (self.data or {}).get("text", "")


Good = Annotated[str, msgspec.Meta(pattern="^good$")]


class StrictNote(Note):
    """A ConfigMap with nothing but good in it: others cannot be decoded."""

    data: dict[str, Good] | None = None


class Follower:
    """Follows a reflector and keeps what it yields, as a watcher would."""

    def __init__(self, kube: KubeClient, namespace: str, kind: type[Note], resource: Resource) -> None:
        self.stop = asyncio.Event()
        self.happenings: list[Seen[Note] | Removed[Note] | Listed] = []
        self.texts: dict[str, str] = {}
        self._reflector = Reflector(kube, resource, kind, namespace=namespace)

    async def run(self) -> None:
        async for happening in self._reflector.run(self.stop):
            self.happenings.append(happening)
            match happening:
                case Seen(object=note):
                    self.texts[note.metadata.name] = note.text
                case Removed(object=note):
                    self.texts.pop(note.metadata.name, None)
                case Listed(keys=keys):
                    names = {name for _, name in keys}
                    self.texts = {name: text for name, text in self.texts.items() if name in names}

    @property
    def lists(self) -> list[Listed]:
        return [happening for happening in self.happenings if isinstance(happening, Listed)]

    async def listed(self, times: int, *, seconds: float = 20) -> Listed:
        async def look() -> bool:
            return len(self.lists) >= times

        await eventually(look, what=f"{times} complete lists", seconds=seconds)
        return self.lists[-1]

    async def knows(self, expected: dict[str, str], *, seconds: float = 20) -> None:
        async def look() -> bool:
            assert self.texts == expected
            return True

        await eventually(look, what=f"exactly {expected} is known", seconds=seconds)


@contextlib.asynccontextmanager
async def following(
    kube: KubeClient, namespace: str, kind: type[Note] = Note, resource: Resource = CONFIG_MAPS
) -> AsyncIterator[Follower]:
    """A follower beside the test; it must not have failed at the end."""
    follower = Follower(kube, namespace, kind, resource)
    task = asyncio.create_task(follower.run())
    try:
        await follower.listed(1)
        yield follower
        if task.done():
            task.result()
        assert not task.done()
    finally:
        follower.stop.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def kube(hub: HubAddresses) -> AsyncIterator[KubeClient]:
    async with await KubeClient.connect(hub.kubeconfig) as opened:
        yield opened


@pytest.fixture
async def line(hub: HubAddresses, tmp_path: Path) -> AsyncIterator[CutLine]:
    async with cut_line(hub.kubeconfig, tmp_path / "kubeconfig") as opened:
        yield opened


@pytest.fixture
async def weak(line: CutLine, tmp_path: Path) -> AsyncIterator[KubeClient]:
    """A client whose requests go over the line that can be cut."""
    async with await KubeClient.connect(tmp_path / "kubeconfig") as opened:
        yield opened


@pytest.fixture
async def namespace(kube: KubeClient) -> str:
    name = f"reflector-{secrets.token_hex(4)}"
    await kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


async def write(kube: KubeClient, namespace: str, name: str, **data: str) -> None:
    """Make a ConfigMap, or change it."""
    body: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
    await kube.apply(CONFIG_MAPS, name, body, manager="test", namespace=namespace)


async def remove(kube: KubeClient, namespace: str, name: str) -> None:
    await kube.delete(CONFIG_MAPS, name, namespace=namespace)


async def test_what_exists_is_listed_and_what_happens_is_seen(kube: KubeClient, namespace: str) -> None:
    for name in ("a", "b"):
        await write(kube, namespace, name, text="old")
    async with following(kube, namespace) as follower:
        listed = await follower.listed(1)
        assert listed.keys == {(namespace, "a"), (namespace, "b")}
        seen = [one.object.metadata for one in follower.happenings if isinstance(one, Seen)]
        assert all(0 < int(one.resource_version) <= listed.resource_version and one.uid for one in seen)

        await write(kube, namespace, "c", text="new")
        await write(kube, namespace, "a", text="changed")
        await remove(kube, namespace, "b")

        await follower.knows({"a": "changed", "c": "new"})
        removed = follower.happenings[-1]
        assert isinstance(removed, Removed)
        assert int(removed.object.metadata.resource_version) > listed.resource_version
        assert len(follower.lists) == 1


async def test_a_list_of_several_pages_is_one_list(kube: KubeClient, namespace: str) -> None:
    names = [f"n{number}" for number in range(1100)]
    await asyncio.gather(*(write(kube, namespace, name, text=name) for name in names))

    async with following(kube, namespace) as follower:
        listed = await follower.listed(1)
        assert listed.keys == {(namespace, name) for name in names}
        await follower.knows({name: name for name in names})
        await asyncio.gather(*(remove(kube, namespace, name) for name in names[:600]))
        await follower.knows({name: name for name in names[600:]})
        assert len(follower.lists) == 1


async def test_an_empty_collection_is_listed_too(kube: KubeClient, namespace: str) -> None:
    async with following(kube, namespace) as follower:
        assert (await follower.listed(1)).keys == frozenset()


class OutdatedOnce(KubeClient):
    """Its first watch asks for a version that the API server has long forgotten."""

    watches = 0

    def watch(
        self, resource: Resource, *, resource_version: str, namespace: str | None = None
    ) -> AsyncIterator[bytes]:
        self.watches += 1
        version = "1" if self.watches == 1 else resource_version
        return super().watch(resource, resource_version=version, namespace=namespace)


async def test_after_gone_everything_is_listed_again(
    hub: HubAddresses, kube: KubeClient, namespace: str
) -> None:
    """The API server's memory of a custom resource begins when the resource was made, long after version 1."""

    async def add_work(name: str) -> None:
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "default"},
        }
        body = {"metadata": {"name": name}, "spec": {"workload": {"manifests": [manifest]}}}
        kind = {"apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork"}
        await kube.create(MANIFEST_WORKS, kind | body, namespace=namespace)

    await add_work("a")
    async with (
        await OutdatedOnce.connect(hub.kubeconfig) as outdated,
        following(outdated, namespace, resource=MANIFEST_WORKS) as follower,
    ):
        await follower.listed(2)
        await add_work("b")
        await follower.knows({"a": "", "b": ""})
        assert len(follower.lists) == 2


async def test_an_object_that_cannot_be_read_is_known_to_exist_and_stops_nothing(
    kube: KubeClient, namespace: str
) -> None:
    await write(kube, namespace, "bad", mood="bad")
    async with following(kube, namespace, StrictNote) as follower:
        assert (await follower.listed(1)).keys == {(namespace, "bad")}
        assert follower.texts == {}
        await write(kube, namespace, "turning", mood="good")
        await follower.knows({"turning": ""})
        await write(kube, namespace, "turning", mood="bad")
        await write(kube, namespace, "next", mood="good")
        await follower.knows({"turning": "", "next": ""})

        await remove(kube, namespace, "turning")

        await follower.knows({"next": ""})


async def test_what_happens_while_the_line_is_cut_is_not_missed(
    kube: KubeClient, weak: KubeClient, line: CutLine, namespace: str
) -> None:
    await write(kube, namespace, "stays", text="1")
    await write(kube, namespace, "goes", text="1")
    async with following(weak, namespace) as follower:
        line.silence()
        line.cut()
        await write(kube, namespace, "stays", text="2")
        await remove(kube, namespace, "goes")
        await write(kube, namespace, "comes", text="2")
        line.speak()

        await follower.knows({"stays": "2", "comes": "2"})
        for number in range(5):
            line.cut()
            await write(kube, namespace, "stays", text=str(number))
            await asyncio.sleep(0.1)
        await follower.knows({"stays": "4", "comes": "2"})


async def test_an_answer_that_breaks_off_is_asked_for_again(
    kube: KubeClient, weak: KubeClient, line: CutLine, namespace: str
) -> None:
    async with following(weak, namespace) as follower:
        for number, size in enumerate((100, 30_000, 150_000, 399_000)):
            line.remaining = size
            await write(kube, namespace, "large", text=f"{number}" * 400_000)
            await follower.knows({"large": f"{number}" * 400_000})


async def test_a_watch_that_falls_silent_is_left(
    kube: KubeClient, weak: KubeClient, line: CutLine, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WATCH_SILENCE_SECONDS", 1.0)
    async with following(weak, namespace) as follower:
        await write(kube, namespace, "a", text="heard")
        await follower.knows({"a": "heard"})
        line.silence()
        await write(kube, namespace, "a", text="unheard")
        await asyncio.sleep(1.5)
        assert follower.texts == {"a": "heard"}

        line.speak()

        await follower.knows({"a": "unheard"})
        assert len(follower.lists) == 1


async def test_a_watch_that_the_server_ends_goes_on_where_it_was(
    kube: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WATCH_SECONDS", 1)
    async with following(kube, namespace) as follower:
        for number in range(12):
            await write(kube, namespace, "a", text=str(number))
            await asyncio.sleep(0.3)
        await follower.knows({"a": "11"})
        texts = [one.object.text for one in follower.happenings if isinstance(one, Seen)]
        assert texts == [str(number) for number in range(12)]
        assert len(follower.lists) == 1

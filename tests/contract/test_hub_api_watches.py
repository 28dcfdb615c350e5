"""Lists, pages, watches and what the production reflector makes of them: real API server and simulated one."""

import asyncio
import contextlib
import json

import msgspec
import pytest
from hub_api_bench import Bench, first_events, kubeconfig_with_modules, on_both, run_case, run_simulated, work

from shared.kube.client import CONFIG_MAPS, MANIFEST_WORKS, NAMESPACES, WATCH_SECONDS
from shared.kube.errors import Gone, Refused
from shared.kube.port import HubApi
from shared.kube.reflector import Listed, Metadata, Reflector, Removed, Seen
from simulation.hub import BOOKMARK_SECONDS, HubState, SimulatedKube
from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.process import SimulatedProcess
from simulation.run import simulate

__all__ = ["kubeconfig_with_modules", "run_case"]


@on_both
async def test_a_list_comes_in_the_order_of_names(bench: Bench) -> None:
    for name in ("c", "a", "b"):
        await bench.add(name)
    names, metadata = await bench.names(limit=500)
    assert names == ["a", "b", "c"]
    assert metadata["continue"] == ""
    items = json.loads(await bench.kube.list_page(MANIFEST_WORKS, namespace=bench.namespace))["items"]
    assert items[0] == await bench.get("a")
    versions = [int(item["metadata"]["resourceVersion"]) for item in items]
    assert max(versions) <= int(metadata["resourceVersion"])


@on_both
async def test_a_collection_that_is_empty_or_nowhere_is_listed(bench: Bench) -> None:
    assert (await bench.names(limit=1))[0] == []
    page = json.loads(await bench.kube.list_page(MANIFEST_WORKS, namespace="no-such-namespace"))
    assert page["items"] == []
    assert int(page["metadata"]["resourceVersion"]) > 0


@on_both
async def test_all_pages_show_the_collection_as_it_was_for_the_first(bench: Bench) -> None:
    for number in range(5):
        await bench.add(f"p{number}")
    names, first = await bench.names(limit=2)
    assert (names, first["remainingItemCount"]) == (["p0", "p1"], 3)
    await bench.delete("p4")
    await bench.add("p9")
    names, second = await bench.names(limit=2, token=first["continue"])
    assert (names, second["remainingItemCount"]) == (["p2", "p3"], 1)
    names, third = await bench.names(limit=2, token=second["continue"])
    assert names == ["p4"]
    assert not third.get("continue")
    assert len({page["resourceVersion"] for page in (first, second, third)}) == 1
    types = [event["type"] for event in await bench.events(third["resourceVersion"], 2)]
    assert types == ["DELETED", "ADDED"]


@on_both
async def test_a_token_that_never_was_is_refused(bench: Bench) -> None:
    with pytest.raises(Refused, match="continue"):
        await bench.names(limit=2, token="rubbish")


@on_both
async def test_a_list_that_was_compacted_cannot_be_continued(bench: Bench) -> None:
    for number in range(3):
        await bench.add(f"p{number}")
    _, first = await bench.names(limit=2)
    await bench.compact()
    with pytest.raises(Gone, match="too old"):
        await bench.names(limit=2, token=bench.age(first["continue"]))


@on_both
async def test_a_watch_that_is_open_goes_on_after_compaction(bench: Bench) -> None:
    _, metadata = await bench.names(limit=1)
    watching = asyncio.create_task(bench.events(metadata["resourceVersion"], 2))
    await asyncio.sleep(0.3)
    await bench.add("a")
    await bench.compact()
    await bench.add("b")
    assert [event["type"] for event in await watching] == ["ADDED", "ADDED"]


@on_both
async def test_labels_select(bench: Bench) -> None:
    for number in range(4):
        await bench.add(f"p{number}", labels={"half": str(number % 2), "all": "yes"})
    await bench.add("other")
    names, metadata = await bench.names(limit=1, half="1", all="yes")
    assert names == ["p1"]
    assert "remainingItemCount" not in metadata
    names, metadata = await bench.names(limit=1, token=metadata["continue"], half="1", all="yes")
    assert (names, metadata["continue"]) == (["p3"], "")
    assert (await bench.names(limit=9, half="2"))[0] == []


@on_both
async def test_core_lists_leave_out_the_kind_of_their_items(bench: Bench) -> None:
    note = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "n"}, "data": {"a": "b"}}
    await bench.kube.create(CONFIG_MAPS, note, namespace=bench.namespace)
    page = json.loads(await bench.kube.list_page(CONFIG_MAPS, namespace=bench.namespace))
    assert page["kind"] == "ConfigMapList"
    assert [item.get("kind") for item in page["items"]] == [None]
    assert page["metadata"].keys() == {"resourceVersion"}
    listed = (await bench.events("1", 1, CONFIG_MAPS))[0]
    assert listed["object"]["kind"] == "ConfigMap"


@on_both
async def test_a_watch_tells_everything_after_its_version_in_order(bench: Bench) -> None:
    made = await bench.add("a")
    start = made["metadata"]["resourceVersion"]
    await bench.patch("a", metadata={"labels": {"a": "b"}})
    await bench.add("b")
    await bench.patch("a", "status", status={"conditions": []})
    await bench.delete("a")
    events = await bench.events(start, 4)
    told = [(event["type"], event["object"]["metadata"]["name"]) for event in events]
    assert told == [("MODIFIED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "a")]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))
    assert versions[0] > int(start)
    assert events[-1]["object"]["metadata"]["labels"] == {"a": "b"}
    assert await bench.events(str(versions[1]), 2) == events[2:]


@on_both
async def test_a_watch_tells_what_happens_while_it_is_open(bench: Bench) -> None:
    _, metadata = await bench.names(limit=1)
    watching = asyncio.create_task(bench.events(metadata["resourceVersion"], 3))
    await asyncio.sleep(0.3)
    await bench.add("a")
    await asyncio.sleep(0.1)
    await bench.patch("a", metadata={"labels": {"a": "b"}})
    await bench.delete("a")
    assert [event["type"] for event in await watching] == ["ADDED", "MODIFIED", "DELETED"]


@on_both
async def test_a_watch_of_a_namespace_tells_nothing_of_others(bench: Bench) -> None:
    other = f"{bench.namespace}-other"
    await bench.kube.create(
        NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}}
    )
    start = (await bench.add("a"))["metadata"]["resourceVersion"]
    elsewhere = Bench(kube=bench.kube, namespace=other, compact=bench.compact)
    await elsewhere.add("x")
    await bench.add("b")
    assert [event["object"]["metadata"]["name"] for event in await bench.events(start, 1)] == ["b"]
    everywhere = await first_events(bench.kube, MANIFEST_WORKS, start, 2)
    assert [event["object"]["metadata"]["name"] for event in everywhere] == ["x", "b"]


@on_both
async def test_a_version_that_is_too_old_is_gone(bench: Bench) -> None:
    await bench.add("a")
    await bench.compact()
    event = (await bench.events("1", 1))[0]
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")


class Note(msgspec.Struct):
    """A work of which the labels matter."""

    metadata: Metadata


class Follower:
    """Keeps what a reflector yields, as a watcher would: names with the label `text`."""

    def __init__(self, kube: HubApi, namespace: str | None) -> None:
        self.stop = asyncio.Event()
        self.lists = 0
        self.removed: list[Note] = []
        self.texts: dict[str, str] = {}
        self._reflector = Reflector(kube, MANIFEST_WORKS, Note, namespace=namespace)

    async def run(self) -> None:
        async for happening in self._reflector.run(self.stop):
            match happening:
                case Seen(object=note):
                    self.texts[note.metadata.name] = (note.metadata.labels or {}).get("text", "")
                case Removed(object=note):
                    self.removed.append(note)
                    self.texts.pop(note.metadata.name, None)
                case Listed(keys=keys):
                    self.lists += 1
                    names = {name for _, name in keys}
                    self.texts = {name: text for name, text in self.texts.items() if name in names}

    async def knows(self, expected: dict[str, str], *, seconds: float = 20) -> None:
        async with asyncio.timeout(seconds):
            while self.texts != expected or not self.lists:  # noqa: ASYNC110 - as an onlooker
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def following(bench: Bench):
    follower = Follower(bench.kube, bench.namespace)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
        assert not task.done()
    finally:
        follower.stop.set()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@on_both
async def test_the_reflector_lists_and_follows(bench: Bench) -> None:
    for name in ("a", "b"):
        await bench.add(name, labels={"text": "old"})
    async with following(bench) as follower:
        await follower.knows({"a": "old", "b": "old"})
        await bench.add("c", labels={"text": "new"})
        await bench.patch("a", metadata={"labels": {"text": "changed"}})
        await bench.delete("b")
        await follower.knows({"a": "changed", "c": "new"})
        assert follower.lists == 1
        assert [note.metadata.name for note in follower.removed] == ["b"]


@on_both
async def test_the_reflector_lists_many_pages(bench: Bench) -> None:
    await asyncio.gather(*(bench.add(f"n{number}") for number in range(1100)))
    async with following(bench) as follower:
        await follower.knows({f"n{number}": "" for number in range(1100)})
        assert follower.lists == 1


async def bad_weather(loop: SimulationLoop) -> tuple[int, int, float]:
    """A reflector that follows works while everything goes wrong. Returns lists, steps and seconds."""
    chance = loop.chance("nemesis")
    state = HubState(loop.chance("hub"), loop.time)
    state.watch_delay = 5.0
    user = SimulatedKube(state, Line("user", Weather(), loop.chance("user")))
    process = SimulatedProcess("watcher", loop)
    weather = Weather(loss=0.05, lost_answers=0.05, delay=0.5)
    process.lines.append(Line("watcher", weather, loop.chance("watcher")))
    follower = Follower(SimulatedKube(state, process.lines[0]), None)
    process.start(follower.run)
    expected: dict[str, str] = {}
    for number in range(200):
        await asyncio.sleep(chance.random() * 4)
        name = f"n{chance.randrange(10)}"
        if name not in expected:
            body = work(name, labels={"text": str(number)})
            await user.create(MANIFEST_WORKS, body, namespace="default")
            expected[name] = str(number)
        elif chance.random() < 0.3:
            await user.delete(MANIFEST_WORKS, name, namespace="default")
            del expected[name]
        else:
            patch = {"metadata": {"labels": {"text": str(number)}}}
            await user.merge_patch(MANIFEST_WORKS, name, patch, namespace="default")
            expected[name] = str(number)
        action = chance.choice((state.compact, state.cut_watches, state.silence_watches, None, None))
        if action:
            action()
    await follower.knows(expected, seconds=300)
    assert process.is_alive
    return follower.lists, loop.steps, loop.time()


def test_the_reflector_learns_the_truth_in_any_weather() -> None:
    """Simulated alone: no real server compacts, cuts, silences and delays at will."""
    runs = [simulate(bad_weather, seed=seed) for seed in range(30)]
    assert max(lists for lists, _, _ in runs) > 5
    assert len(set(runs)) == 30
    assert [simulate(bad_weather, seed=seed) for seed in range(3)] == runs[:3]


def test_namespaces_that_end_take_everything_with_them() -> None:
    """A controller's work, which no hub of the tests runs: simulated alone."""

    async def main(loop: SimulationLoop) -> None:
        state = HubState(loop.chance("hub"), loop.time)
        kube = SimulatedKube(state, Line("user", Weather(), loop.chance("user")))
        await kube.create(NAMESPACES, {"metadata": {"name": "ending"}})
        await kube.create(MANIFEST_WORKS, work("free"), namespace="ending")
        held = work("held", finalizers=["a.example/x"])
        await kube.create(MANIFEST_WORKS, held, namespace="ending")
        await kube.delete(NAMESPACES, "ending")
        state.finish_namespaces()
        assert [item["metadata"]["name"] for item in state.objects(MANIFEST_WORKS)] == ["held"]
        patch = {"metadata": {"finalizers": None}}
        await kube.merge_patch(MANIFEST_WORKS, "held", patch, namespace="ending")
        state.finish_namespaces()
        names = [item["metadata"]["name"] for item in state.objects(NAMESPACES)]
        assert "ending" not in names
        await kube.create(NAMESPACES, {"metadata": {"name": "ending"}})

    simulate(main, seed=1)


def test_a_watch_that_nothing_happens_on_gets_bookmarks_and_ends_in_time() -> None:
    async def case(bench: Bench) -> None:
        loop = asyncio.get_running_loop()
        await bench.add("a")
        _, metadata = await bench.names(limit=1)
        started, types = loop.time(), []
        async for line in bench.kube.watch(
            MANIFEST_WORKS, resource_version=metadata["resourceVersion"], namespace=bench.namespace
        ):
            event = json.loads(line)
            types.append(event["type"])
            assert event["object"]["metadata"]["resourceVersion"] == metadata["resourceVersion"]
        assert types == ["BOOKMARK"] * int(WATCH_SECONDS // BOOKMARK_SECONDS)
        assert WATCH_SECONDS <= loop.time() - started < WATCH_SECONDS + 1

    run_simulated(case)

"""Answers of the API server that are none, such as a proxy's own: the server counts as away, nothing more."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fleet_values import without_loader
from small_hub import EVERYTHING, SmallHub, small_hub

from services.dispatcher.apply import (
    FINALIZER,
    apply_decision,
    ensure_finalizer,
    has_works,
    write_status,
)
from services.dispatcher.decide import Create
from services.dispatcher.gather import read_modules
from services.dispatcher.stored import StoredModule
from shared.kube.client import EVENTS, MANIFEST_WORKS, MODULES
from shared.kube.errors import ApiUnavailable, Conflict

HTML = b"<html><body>It works!</body></html>"


async def one_module() -> SmallHub:
    hub = await small_hub()
    await hub.add_cluster("c1")
    await hub.add_module("m", without_loader())
    return hub


async def stored(hub: SmallHub) -> StoredModule:
    async with hub.store.begin() as transaction:
        return (await read_modules(transaction))["m"]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        pytest.param(b'{"items":[],"metadata":{}}', False, id="none"),
        pytest.param(b'{"items":[],"metadata":{"continue":""}}', False, id="last-page"),
        pytest.param(b'{"items":[{}],"metadata":{}}', True, id="one"),
        pytest.param(b'{"items":[],"metadata":{"continue":"abc"}}', True, id="empty-page-of-several"),
        pytest.param(b'{"items":[{}],"metadata":{"continue":"abc"}}', True, id="one-of-several"),
    ],
)
async def test_works_are_gone_only_if_the_whole_list_is_empty(page: bytes, expected: bool) -> None:
    hub = await one_module()
    hub.kube.fault = lambda verb, *_: page if verb == "list" else None
    assert await has_works(hub.kube, "m") is expected


@pytest.mark.parametrize(
    "page", [HTML, b"", b"{}", b"[]", b'{"items":null}', b'{"kind":"Status","metadata":{}}', b"\xff"]
)
async def test_a_page_that_is_no_list_says_nothing_about_works(page: bytes) -> None:
    hub = await one_module()
    hub.kube.fault = lambda verb, *_: page if verb == "list" else None
    with pytest.raises(ApiUnavailable):
        await has_works(hub.kube, "m")


async def test_a_module_whose_works_cannot_be_listed_is_kept_and_looked_at_again() -> None:
    hub = await one_module()
    await hub.reconciler.reconcile(EVERYTHING)
    hub.state.delete(MODULES, "m")
    hub.state.delete(MANIFEST_WORKS, "m", namespace="c1")
    await hub.observe()
    hub.kube.fault = lambda verb, *_: HTML if verb == "list" else None
    outcome = await hub.reconciler.reconcile(EVERYTHING)
    assert {change.name for change in outcome.failed} == {"m"}
    assert [one["metadata"]["finalizers"] for one in hub.state.objects(MODULES)] == [[FINALIZER]]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"metadata": None},
        {"metadata": {"name": "m", "namespace": "c1", "uid": "u", "resourceVersion": "x"}},
        {"metadata": {"name": "m", "namespace": "c1", "uid": "u", "resourceVersion": "1", "labels": "x"}},
    ],
)
async def test_a_write_whose_answer_is_nonsense_may_not_have_happened(answer: dict[str, Any]) -> None:
    hub = await one_module()
    hub.kube.fault = lambda *_: answer
    work = {"metadata": {"name": "m", "namespace": "c1"}, "spec": {}}
    with pytest.raises(ApiUnavailable):
        await apply_decision(hub.kube, hub.store, module="m", cluster="c1", decision=Create(work=work))
    async with hub.store.begin() as transaction:
        assert await transaction.known_works() == set()


def conflict_then(answer: dict[str, Any]) -> Callable[..., Any]:
    async def conflict() -> None:
        await asyncio.sleep(0)
        raise Conflict("it was written since")

    return lambda verb, *_: conflict() if verb == "patch" else answer


@pytest.mark.parametrize("answer", [{}, {"metadata": []}, {"metadata": {"uid": "u"}}])
async def test_a_module_that_cannot_be_read_again_is_an_outage(answer: dict[str, Any]) -> None:
    hub = await one_module()
    module = await stored(hub)
    hub.kube.fault = conflict_then(answer)
    with pytest.raises(ApiUnavailable):
        await ensure_finalizer(hub.kube, module)
    with pytest.raises(ApiUnavailable):
        await write_status(hub.kube, module, {"numberDesired": 1}, now="now")


async def test_nothing_is_told_of_a_status_whose_answer_is_nonsense() -> None:
    hub = await one_module()
    module = await stored(hub)
    hub.kube.fault = lambda verb, *_: {} if verb == "patch" else None
    conditions = [{"type": "Degraded", "status": "True", "reason": "BuildFailed", "message": "no"}]
    with pytest.raises(ApiUnavailable):
        await write_status(hub.kube, module, {"conditions": conditions}, now="2026-01-01T00:00:00Z")
    assert hub.state.objects(EVENTS) == []


async def test_a_count_that_is_none_keeps_an_event_from_being_told_and_nothing_else() -> None:
    hub = await one_module()
    module = await stored(hub)
    conditions = [{"type": "Degraded", "status": "True", "reason": "BuildFailed", "message": "no"}]

    async def told_before() -> None:
        await asyncio.sleep(0)
        raise Conflict("it exists")

    def fault(verb: str, resource: object, _: str) -> Any:
        if resource != EVENTS:
            return None
        return told_before() if verb == "create" else {"count": "many"}

    hub.kube.fault = fault
    written = await write_status(hub.kube, module, {"conditions": conditions}, now="2026-01-01T00:00:00Z")
    assert written is not None
    assert hub.status("m")["conditions"] == conditions
    assert ("get", "events") in {write[:2] for write in hub.kube.writes}

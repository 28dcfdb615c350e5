"""The hub's API for one simulated process: the shared state at the other end of the process's line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import orjson

from shared.domain.errors import HubError
from shared.kube import client
from shared.kube.client import Resource, WatchBroken
from shared.kube.errors import ApiUnavailable
from shared.kube.port import HubApi
from shared.runtime.pause import pause
from simulation.hub_state import Feed, HubState
from simulation.line import Line, LineBroken

__all__ = ["HubState", "SimulatedKube"]

T = TypeVar("T")

BOOKMARK_SECONDS = 60.0
"""How often an API server sends bookmarks on a watch that is quiet."""


class SimulatedKube(HubApi):
    """One process's client. Make one for each process, on a line of its own."""

    def __init__(self, state: HubState, line: Line) -> None:
        self._state = state
        self._line = line

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> dict[str, Any]:
        """As `HubApi.get`."""
        return await self._object(
            f"get {resource.plural}", lambda: self._state.get(resource, name, namespace=namespace)
        )

    async def list_page(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        limit: int = 500,
        token: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> bytes:
        """As `HubApi.list_page`."""
        return await self._request(
            f"list {resource.plural}",
            lambda: self._state.list_page(
                resource, namespace=namespace, limit=limit, token=token, labels=labels
            ),
        )

    async def create(
        self, resource: Resource, body: Mapping[str, Any], *, namespace: str | None = None
    ) -> dict[str, Any]:
        """As `HubApi.create`."""
        sent = orjson.loads(orjson.dumps(body))
        return await self._object(
            f"create {resource.plural}", lambda: self._state.create(resource, sent, namespace=namespace)
        )

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        """As `HubApi.merge_patch`."""
        sent = orjson.loads(orjson.dumps(body))
        return await self._object(
            f"patch {resource.plural}",
            lambda: self._state.merge_patch(
                resource, name, sent, namespace=namespace, subresource=subresource
            ),
        )

    async def delete(
        self, resource: Resource, name: str, *, namespace: str | None = None, uid: str | None = None
    ) -> None:
        """As `HubApi.delete`."""
        await self._request(
            f"delete {resource.plural}",
            lambda: self._state.delete(resource, name, namespace=namespace, uid=uid),
        )

    async def watch(
        self, resource: Resource, *, resource_version: str, namespace: str | None = None
    ) -> AsyncIterator[bytes]:
        """As `HubApi.watch`."""
        feed = Feed(namespace=namespace)
        try:
            await self._request(
                f"watch {resource.plural}",
                lambda: self._state.open_watch(resource, resource_version, feed),
            )
            try:
                async for line in self._follow(resource, feed):
                    yield line
            except ApiUnavailable as error:
                raise WatchBroken(str(error)) from error
        finally:
            self._state.close_watch(resource, feed)

    async def _follow(self, resource: Resource, feed: Feed) -> AsyncIterator[bytes]:
        """Lines of an open watch until it ends or breaks, or the client takes its silence for a break."""
        loop = asyncio.get_running_loop()
        heard = loop.time()
        ends = heard + client.WATCH_SECONDS
        while True:
            patience = heard + client.WATCH_SILENCE_SECONDS
            until = patience if feed.is_silent else min(ends, heard + BOOKMARK_SECONDS)
            is_due = not await pause(feed.wake, max(0.0, until - loop.time()))
            feed.wake.clear()
            if feed.lines and self._state.watch_delay:
                await asyncio.sleep(self._state.chance.random() * self._state.watch_delay)
            if feed.is_silent:
                if loop.time() >= patience:
                    raise ApiUnavailable(f"the watch of {resource.plural} broke: silence")
                continue
            lines = await self._request(
                f"watch of {resource.plural}", partial(self._state.send, resource, feed, is_due=is_due)
            )
            heard = loop.time()
            for line in lines:
                yield line
            if feed.cut in ("break", "torn"):
                raise ApiUnavailable(f"the watch of {resource.plural} broke")
            if feed.cut == "end" or loop.time() >= ends:
                return

    async def _object(self, effect: str, act: Callable[[], bytes]) -> dict[str, Any]:
        answer: dict[str, Any] = orjson.loads(await self._request(effect, act))
        return answer

    async def _request(self, effect: str, act: Callable[[], T]) -> T:
        """Cross the line and back; the hub's refusals come back the same way as its answers."""
        refusal: HubError | None = None
        try:
            async with self._line.crossing(effect):
                try:
                    answer = act()
                except HubError as error:
                    refusal = error
        except LineBroken as error:
            raise ApiUnavailable(str(error)) from error
        if refusal is not None:
            raise refusal
        return answer

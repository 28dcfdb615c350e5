"""A server on loopback that answers what a test says: the API server, a registry or a proxy in a bad mood."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HostileServer:
    """Set `answer`; `requests` counts what came since."""

    def __init__(self) -> None:
        self.port = 0
        self.requests = 0
        self.answer: Answer = _nothing

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answers(self, answer: Answer) -> None:
        self.answer, self.requests = answer, 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        return await self.answer(request)


async def _nothing(_: web.Request) -> web.StreamResponse:
    return web.Response(status=404)


@contextlib.asynccontextmanager
async def hostile_server() -> AsyncIterator[HostileServer]:
    """The server, on a free port."""
    server = HostileServer()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        await runner.cleanup()

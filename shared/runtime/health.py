"""The health and metrics endpoint of a service."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

import prometheus_client
import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

Check = Callable[[], bool]


def make_app(checks: Mapping[str, Check]) -> FastAPI:
    """An app with `/healthz` (the process lives), `/readyz` (there are checks and all hold) and `/metrics`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        results = {name: check() for name, check in checks.items()}
        return JSONResponse(results, status_code=200 if results and all(results.values()) else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(prometheus_client.generate_latest(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return app


class HealthServer(uvicorn.Server):
    """Serves inside of the service's own event loop and leaves signals to it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the service, which stops this server last."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Never called: no signal handler is installed."""


def make_server(bind: str, checks: Mapping[str, Check]) -> tuple[HealthServer, socket.socket]:
    """Bind `host:port` and prepare the server; `serve(sockets=[socket])` runs it."""
    host, _, port = bind.rpartition(":")
    name = host.strip("[]")
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    listener = socket.create_server((name, int(port)), family=family)
    server = HealthServer(uvicorn.Config(make_app(checks), log_config=None, access_log=False, lifespan="off"))
    return server, listener

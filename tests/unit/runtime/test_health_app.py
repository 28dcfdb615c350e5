"""Health, readiness and metrics, asked in process."""

from collections.abc import Mapping
from typing import Any

import orjson
import prometheus_client
import pytest
from fastapi import FastAPI

from shared.runtime.health import Check, make_app


async def ask(app: FastAPI, path: str, method: str = "GET") -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of an answer, over ASGI."""
    sent: list[Mapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    start = next(message for message in sent if message["type"] == "http.response.start")
    body = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    return start["status"], dict(start["headers"]), body


def yes() -> bool:
    return True


def no() -> bool:
    return False


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ({"bus": yes}, 200),
        ({"bus": yes, "database": yes}, 200),
        ({"bus": no}, 503),
        ({"bus": yes, "database": no}, 503),
    ],
)
async def test_ready_when_every_check_holds(checks: dict[str, Check], status: int) -> None:
    answer = await ask(make_app(checks), "/readyz")
    assert answer[0] == status
    assert orjson.loads(answer[2]) == {name: check() for name, check in checks.items()}


async def test_checks_that_come_later_count() -> None:
    """A service fills them while it starts."""
    checks: dict[str, Check] = {"bus": yes}
    app = make_app(checks)
    assert (await ask(app, "/readyz"))[0] == 200
    checks["database"] = no
    assert (await ask(app, "/readyz"))[0] == 503


async def test_a_service_that_has_not_started_is_not_ready() -> None:
    """No check is there until the backbone is connected; upstream's hub makes the same mistake."""
    assert (await ask(make_app({}), "/readyz"))[0] == 503


async def test_a_process_lives_whatever_its_checks_say() -> None:
    assert (await ask(make_app({"bus": no}), "/healthz"))[0] == 200


async def test_metrics() -> None:
    prometheus_client.Counter("kmmhub_test_health", "Only here.").inc()
    status, headers, body = await ask(make_app({}), "/metrics")
    assert status == 200
    assert headers[b"content-type"].decode() == prometheus_client.CONTENT_TYPE_LATEST
    assert b"kmmhub_test_health_total 1.0" in body


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/openapi.json", "/healthz/../metrics"])
async def test_nothing_else_is_served(path: str) -> None:
    assert (await ask(make_app({}), path))[0] == 404


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_nothing_is_written(path: str) -> None:
    assert (await ask(make_app({}), path, "POST"))[0] == 405

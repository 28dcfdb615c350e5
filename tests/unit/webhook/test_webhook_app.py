"""The webhook's HTTP side, asked in process."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from reviews import module, review

from services.admission import app as admission_app
from services.admission.app import MAX_BODY_BYTES, PATH, make_app


async def post(
    *chunks: bytes,
    path: str = PATH,
    method: str = "POST",
    headers: Iterable[tuple[bytes, bytes]] = (),
    is_cut: bool = False,
    hangs: bool = False,
) -> tuple[int, bytes, int]:
    """Status and body of the answer to a body that comes in chunks, and how many chunks were read."""
    sent: list[dict[str, Any]] = []
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        if not waiting and hangs:
            await asyncio.sleep(60)
        if not waiting:
            return {"type": "http.disconnect"}
        chunk = waiting.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(waiting) or is_cut or hangs}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"timeout=10s",
        "headers": list(headers),
        "server": ("127.0.0.1", 443),
        "client": ("127.0.0.1", 1),
    }
    await make_app()(scope, receive, send)
    status = next(message["status"] for message in sent if message["type"] == "http.response.start")
    body = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    return status, body, len(chunks) - len(waiting)


async def test_a_review_is_answered() -> None:
    text = json.dumps(review("CREATE", module())).encode()

    status, body, _ = await post(text[:100], text[100:])

    assert status == 200
    assert json.loads(body)["response"] == {"uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "allowed": True}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", b"body: Invalid JSON"),
        (b"{", b"Invalid JSON"),
        (b"[" * 100_000, b"Invalid JSON"),
        (b"\xff", b"Invalid JSON"),
        (b"[]", b"body: "),
        (b"{}", b"apiVersion: Field required"),
        (
            json.dumps(review("CREATE", module()) | {"apiVersion": "admission.k8s.io/v1beta1"}).encode(),
            b"apiVersion",
        ),
        (json.dumps(review("PATCH", module())).encode(), b"request.operation"),
        (json.dumps(review("CREATE", None)).encode(), b"no object"),
    ],
)
async def test_what_is_no_review_is_refused_with_the_reason(body: bytes, says: bytes) -> None:
    status, answer, _ = await post(body)

    assert status == 400
    assert says in answer


async def test_a_long_body_is_not_read_to_its_end() -> None:
    announced = [(b"content-length", str(MAX_BODY_BYTES + 1).encode())]
    assert await post(b"x", headers=announced) == (413, b"A review may have 8388608 bytes.", 0)
    assert (await post(b"x", headers=[(b"content-length", b"-1")]))[0] == 413

    status, _, chunks = await post(*[b"x" * 1024 * 1024] * 20)

    assert (status, chunks) == (413, 9)


async def test_a_body_that_ends_too_early_is_no_review() -> None:
    assert (await post(b"{", is_cut=True))[:2] == (400, b"The body ends too early.")


async def test_a_body_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_app, "BODY_SECONDS", 0.05)

    assert (await post(b"{", hangs=True))[0] == 408


@pytest.mark.parametrize(
    ("path", "method", "status"), [(PATH, "GET", 405), ("/docs", "GET", 404), ("/", "POST", 404)]
)
async def test_there_is_nothing_else(path: str, method: str, status: int) -> None:
    assert (await post(b"{}", path=path, method=method))[0] == status

"""The webhook's HTTP side: size and time limits, and what is no review at all."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import Counter
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from services.admission.review import AdmissionReview, UnexpectedReview, answer

PATH = "/validate-hub-kmm-sigs-x-k8s-io-v1beta1-managedclustermodule"
"""Where reviews go, the same as at kernel-module-management's webhook."""

MAX_BODY_BYTES = 8 * 1024 * 1024
"""A review holds an object twice, and the API server takes no request of more than 3 MiB."""

BODY_SECONDS = 5.0
"""How long a body may take to arrive; the API server gives up a review after 10 seconds."""

REVIEWS = Counter(
    "kmmhub_admission_reviews_total", "Reviews answered, by operation and result.", ["operation", "result"]
)


def make_app() -> FastAPI:
    """An app that answers reviews at `PATH`, and nothing else."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post(PATH)
    async def review(request: Request) -> Response:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(request)
        except TimeoutError:
            return PlainTextResponse(f"The body takes longer than {BODY_SECONDS:.0f} seconds.", 408)
        except ClientDisconnect:
            return PlainTextResponse("The body ends too early.", 400)
        if body is None:
            return PlainTextResponse(f"A review may have {MAX_BODY_BYTES} bytes.", 413)
        return _reply(body)

    return app


async def _body(request: Request) -> bytes | None:
    """The body, None if it is too long; what is announced as too long is not read."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _reply(body: bytes) -> Response:
    try:
        review = AdmissionReview.model_validate_json(body)
        answered = answer(review)
    except ValidationError as error:
        places = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        return PlainTextResponse(f"This is no AdmissionReview of admission.k8s.io/v1: {places}", 400)
    except UnexpectedReview as error:
        return PlainTextResponse(str(error), 400)
    REVIEWS.labels(
        review.request.operation, "allowed" if answered["response"]["allowed"] else "refused"
    ).inc()
    return JSONResponse(answered)

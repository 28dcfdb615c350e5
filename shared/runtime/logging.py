"""Structured logs: an event name that never changes, and values as keys. Never a secret."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


def configure_logging(*, service: str, style: Literal["json", "console"], level: str) -> None:
    """Send structlog and the standard library's logs to standard error in one form.

    Args:
        service: bound to every line.
        style: `json` or `console`.
        level: the least severe level that is shown.
    """
    shared_processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if style == "json":
        last: list[structlog.typing.Processor] = [
            # Without local variables: one of them may hold a secret.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(),
        ]
    else:
        plain = structlog.dev.RichTracebackFormatter(show_locals=False)
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared_processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared_processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn", "uvicorn.access", "uvicorn.error", "nats", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_is_worth_telling)
    structlog.contextvars.bind_contextvars(service=service)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Not what asyncpg leaves behind when a connect is cancelled in its first step, which nobody can wait for.

    Source: asyncpg/connect_utils.py, `TLSUpgradeProto.connection_lost`; whoever connects gets the timeout anyway.
    """
    message = record.getMessage()
    return not (message.startswith("Future exception was never") and _LEFT_BY_ASYNCPG in message)


_LEFT_BY_ASYNCPG = "ConnectionError('unexpected connection_lost() call')"

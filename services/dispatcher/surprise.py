"""Errors that no rule expects: told with their traceback, counted, and kept to the one thing that they befell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog
from prometheus_client import Counter

from shared.domain.errors import HubError, TransientError

log = structlog.get_logger()

SURPRISES = Counter(
    "kmmhub_dispatcher_surprises_total",
    "Errors inside of the dispatcher that no rule expects, by what was being done; its log has the traceback.",
    ["doing"],
)


class Surprise(TransientError):
    """A bug, or a stored row that nobody foresaw. It must cost its own module or pair only, never the whole hub."""

    reason = "InternalError"


@contextlib.contextmanager
def surprises(doing: str, **where: str) -> Iterator[None]:
    """Turn what is no HubError into one, so that whoever handles refusals and outages handles bugs, too.

    Args:
        doing: a word for the log and the metric.
        where: such as the module and the cluster.

    Raises:
        Surprise: instead of the error, which is logged.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        SURPRISES.labels(doing).inc()
        log.exception("dispatcher.surprised", doing=doing, **where)
        raise Surprise(
            f"an error inside of the hub while doing {doing!r} ({type(error).__name__}); the dispatcher's log has its "
            "traceback: report it. It is tried again"
        ) from error

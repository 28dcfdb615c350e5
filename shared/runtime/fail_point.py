"""Places where a test lets a service die or freeze: after each effect that others see, and before some.

Whoever runs a service by its environment may name one place in KMMHUB_FAIL_POINT; nothing else reaches this: no
resource of the API, no message, no row and no request can, and services that are run without the variable have no
place to act at. A test walks through all places (docs/fail-points.md).
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.domain.errors import PermanentError


class FailPoint(StrEnum):
    """All places. Each name says what has just happened, and stands in exactly one line of the services."""

    MESSAGE_FETCHED = "message_fetched"
    MESSAGE_HANDLED = "message_handled"
    MESSAGE_SETTLED = "message_settled"
    LETTER_BURIED = "letter_buried"

    LEADERSHIP_HELD = "leadership_held"

    OUTBOX_LOCKED = "outbox_locked"
    OUTBOX_PUBLISHED = "outbox_published"
    OUTBOX_DELETED = "outbox_deleted"
    OUTBOX_COMMITTED = "outbox_committed"

    LEASE_TAKEN = "lease_taken"
    LEASE_EXTENDED = "lease_extended"
    LEASE_RELEASED = "lease_released"
    STAGE_PERFORMED = "stage_performed"
    RESULT_RECORDED = "result_recorded"

    BUILD_PLANNED = "build_planned"
    IMAGE_BUILT = "image_built"
    IMAGE_PROMOTED = "image_promoted"

    SIGNED_IMAGE_PUSHED = "signed_image_pushed"
    SIGNATURES_VERIFIED = "signatures_verified"
    TAG_MOVED = "tag_moved"

    BATCH_READ = "batch_read"
    BATCH_WRITTEN = "batch_written"
    BATCH_RECORDED = "batch_recorded"

    PICTURE_TAKEN = "picture_taken"
    ARTIFACTS_WANTED = "artifacts_wanted"
    FINALIZER_SET = "finalizer_set"
    WORK_WRITTEN = "work_written"
    WORK_STORED = "work_stored"
    WORK_DELETED = "work_deleted"
    STATUS_WRITTEN = "status_written"
    EVENT_TOLD = "event_told"
    MODULE_RELEASED = "module_released"
    SWEEP_ANNOUNCED = "sweep_announced"


Action: TypeAlias = Literal["kill", "stop"]
"""SIGKILL or SIGSTOP, for the process itself."""

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class FailPointInvalid(PermanentError):
    """KMMHUB_FAIL_POINT is not `<name>=<kill|stop>[@<n>]` with a known name, or KMMHUB_FAIL_POINT_FILE is missing."""

    reason = "InvalidSettings"


class FailPointSettings(BaseSettings):
    """For tests alone, and therefore apart from the settings of services."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    trigger: str = Field(default="", validation_alias="KMMHUB_FAIL_POINT")
    """`<name>=<kill|stop>[@<n>]`: what happens where, the n-th time (default 1) that this place is reached."""

    file: Path | None = Field(default=None, validation_alias="KMMHUB_FAIL_POINT_FILE")
    """Where the name is written just before. While this file has content, nothing happens and nothing is counted."""


@dataclass(slots=True, kw_only=True)
class Trigger:
    """What happens at one place. The only value here that changes is `left`.

    Attributes:
        left: how often the place must still be reached; the last time counts.
    """

    point: FailPoint
    action: Action
    left: int
    file: Path


_armed: Trigger | None = None


def arm_fail_point(settings: FailPointSettings) -> None:
    """Let this process act at one place, once. Without KMMHUB_FAIL_POINT it never does.

    Raises:
        FailPointInvalid: the settings cannot be read; it names the places that there are.
    """
    global _armed  # noqa: PLW0603 - one process, one place; passing it through every function would clutter them all
    _armed = read_trigger(settings)


def read_trigger(settings: FailPointSettings) -> Trigger | None:
    """What the settings ask for, None if nothing. Raises FailPointInvalid."""
    if not settings.trigger:
        return None
    name, _, what = settings.trigger.partition("=")
    action, _, number = what.partition("@")
    if name not in set(FailPoint):
        raise FailPointInvalid(f"KMMHUB_FAIL_POINT: there is no {name!r}; there are {', '.join(FailPoint)}")
    is_number = number.isascii() and number.isdigit() and int(number) > 0
    if action not in _SIGNALS or not (is_number or what == action):
        raise FailPointInvalid(
            f"KMMHUB_FAIL_POINT: {what!r} is not kill, stop, kill@<n> or stop@<n>, n from 1"
        )
    if settings.file is None:
        raise FailPointInvalid("KMMHUB_FAIL_POINT_FILE: missing; the name is written there before it happens")
    known: Action = "kill" if action == "kill" else "stop"
    return Trigger(point=FailPoint(name), action=known, left=int(number or 1), file=settings.file)


def fail_point(point: FailPoint) -> None:
    """Say that the process is at this place now; it goes on, unless a test lets it die or freeze here."""
    if _armed is not None and _armed.point is point:
        _act(_armed)


def _act(trigger: Trigger) -> None:
    """Write the name where the test looks, then do it; once per file, however many processes have it."""
    if trigger.file.exists() and trigger.file.stat().st_size:
        return
    trigger.left -= 1
    if trigger.left > 0:
        return
    with trigger.file.open("w") as file:
        file.write(trigger.point)
        file.flush()
        os.fsync(file.fileno())
    os.kill(os.getpid(), _SIGNALS[trigger.action])

"""The messages, typed and versioned.

Names that users chose stand in the payload only. A subject carries a hash, because a name with a dot, `*` or
`>` would change what a NATS subject means.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.domain.artifact import ArtifactKey, Stage
from shared.domain.errors import PermanentError

SUBJECT_ROOT = "kmm"
MAX_MESSAGE_BYTES = 64 * 1024


class Kind(StrEnum):
    """What changed."""

    MODULE = "module"
    CLUSTER = "cluster"
    WORK = "work"
    CONFIG_MAP = "config-map"
    SECRET = "secret"  # noqa: S105 - a kind of object, not a secret
    ARTIFACT = "artifact"
    EVERYTHING = "everything"


class Changed(BaseModel):
    """A stored fact changed; read it again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["kmm.changed.v1"] = "kmm.changed.v1"
    kind: Kind
    name: str = Field(max_length=512)
    namespace: str | None = Field(default=None, max_length=253)

    @property
    def subject(self) -> str:
        """`kmm.changed.<kind>.<hash of the key>`."""
        key = f"{self.namespace or ''}/{self.name}"
        return f"{SUBJECT_ROOT}.changed.{self.kind}.{_token(key)}"


class Requested(BaseModel):
    """An artifact waits for a worker of a stage."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["kmm.requested.v1"] = "kmm.requested.v1"
    stage: Stage
    artifact: ArtifactKey = Field(pattern=r"^[0-9a-f]{64}$")
    announcement: int = Field(ge=0, lt=2**63, strict=True)

    @property
    def subject(self) -> str:
        """`kmm.build.<hash>` or `kmm.sign.<hash>`."""
        return f"{SUBJECT_ROOT}.{self.stage}.{self.artifact[:16]}"

    @property
    def message_id(self) -> str:
        """Key and attempt: a deliberate repetition is never swallowed by the stream's de-duplication."""
        return f"{self.artifact}/{self.stage}/{self.announcement}"


class UnreadableMessage(PermanentError):
    """A message is not one of ours; delivering it again cannot help."""

    reason = "UnreadableMessage"


M = TypeVar("M")

_changed = TypeAdapter(Changed)
_requested = TypeAdapter(Requested)


def encode(message: Changed | Requested) -> bytes:
    """The message's bytes."""
    return message.model_dump_json(exclude_none=True).encode()


def decode_changed(payload: bytes) -> Changed:
    """Read a `Changed`. Raises UnreadableMessage."""
    change = _decode(_changed, payload)
    if "\0" in f"{change.namespace}{change.name}":
        # Postgres fails every statement with that character, also one that only asks.
        raise UnreadableMessage(
            "a message names an object with a NUL character: nothing that is stored has one"
        )
    return change


def decode_requested(payload: bytes) -> Requested:
    """Read a `Requested`. Raises UnreadableMessage."""
    return _decode(_requested, payload)


def _decode(adapter: TypeAdapter[M], payload: bytes) -> M:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise UnreadableMessage(f"a message of {len(payload)} bytes exceeds the limit of {MAX_MESSAGE_BYTES}")
    try:
        return adapter.validate_json(payload)
    except ValidationError as error:
        # Not what stands in the message: this goes into logs, too.
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'message'}: {one['msg']}"
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise UnreadableMessage(f"a message does not follow its schema: {problems}") from None


def _token(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

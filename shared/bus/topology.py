"""Streams and consumers as data."""

from __future__ import annotations

from dataclasses import dataclass

from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

from shared.domain.artifact import Stage
from shared.events.messages import MAX_MESSAGE_BYTES, SUBJECT_ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A stream and the one durable consumer that drains it.

    `ack_wait` is in seconds: a worker that runs longer must say so (`in_progress`).
    """

    stream: str
    consumer: str
    subjects: tuple[str, ...]
    retention: RetentionPolicy
    max_age: float
    ack_wait: float

    def stream_config(self) -> StreamConfig:
        """As JetStream wants it. Old messages make room: each is a wake-up that the sweeper can repeat."""
        return StreamConfig(
            name=self.stream,
            subjects=list(self.subjects),
            retention=self.retention,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_age=self.max_age,
            max_msg_size=MAX_MESSAGE_BYTES,
            duplicate_window=120,
        )

    def consumer_config(self) -> ConsumerConfig:
        """Delivery is unlimited; attempts are counted in Postgres, where they survive the broker."""
        return ConsumerConfig(
            durable_name=self.consumer,
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.ALL,
            ack_wait=self.ack_wait,
            max_deliver=-1,
            max_ack_pending=10_000,
        )


CHANGES = Queue(
    stream="KMM_CHANGES",
    consumer="dispatcher",
    subjects=(f"{SUBJECT_ROOT}.changed.>",),
    retention=RetentionPolicy.WORK_QUEUE,
    max_age=24 * 3600,
    ack_wait=60,
)

BUILDS = Queue(
    stream="KMM_BUILDS",
    consumer="builder",
    subjects=(f"{SUBJECT_ROOT}.{Stage.BUILD}.>",),
    retention=RetentionPolicy.WORK_QUEUE,
    max_age=24 * 3600,
    ack_wait=30,
)

SIGNATURES = Queue(
    stream="KMM_SIGNATURES",
    consumer="signer",
    subjects=(f"{SUBJECT_ROOT}.{Stage.SIGN}.>",),
    retention=RetentionPolicy.WORK_QUEUE,
    max_age=24 * 3600,
    ack_wait=30,
)

QUEUES = (CHANGES, BUILDS, SIGNATURES)

"""Each invariant finds the breach that is planted, and nothing in what is right."""

import base64
import datetime as dt
from collections.abc import Mapping
from typing import Any

import pytest

from chaos.audit import Change
from chaos.inputs import Cluster, Inputs, Module, ModuleKind, Moment
from chaos.oracle import (
    MAX_ATTEMPTS,
    MODULE_LABEL,
    PERMISSIONS_LABELS,
    PERMISSIONS_WORK,
    Announcement,
    Breach,
    Build,
    Posted,
    builds_from,
    concurrent_builds,
    digest_breaches,
    find_secrets,
    is_lease_lost,
    lease_breaches,
    lost_announcements,
    needles_of,
    place_breaches,
    surprises,
)

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
HOLDER, STRANGER = 41, 42

ROW: dict[str, Any] = {
    "key": "0123456789abcdef0123456789abcdef",
    "target": "registry/m1:k1",
    "kernel": "k1",
    "state": "wanted",
    "fence": 4,
    "lease_owner": None,
    "not_before": NOON.isoformat(),
    "attempts": 0,
    "source": None,
    "digest": None,
    "signed_by": None,
    "reason": None,
}
TAKEN = ROW | {
    "state": "building",
    "fence": 5,
    "lease_owner": f"host/{HOLDER}",
    "attempts": 1,
    "not_before": (NOON + dt.timedelta(seconds=3)).isoformat(),
}
READY = TAKEN | {"state": "ready", "digest": "sha256:1", "source": "registry/m1@sha256:1", "attempts": 0}

DROPPED = TAKEN | {"state": "unwanted", "fence": 6, "attempts": 0}


def change(
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    *,
    seconds: float = 1,
    application: str = "kmmhub-builder",
) -> Change:
    at = NOON + dt.timedelta(seconds=seconds)
    return Change(
        number=1,
        at=at,
        began=at,
        port=1,
        application=application,
        table="artifacts",
        before=before,
        after=after,
    )


def invariants(seen: Change, writer: int | None = HOLDER) -> list[str]:
    return [breach.invariant[:2] for breach in lease_breaches(seen, writer, when=1.0)]


@pytest.mark.parametrize(
    "seen",
    [
        change(None, ROW, application="kmmhub-dispatcher"),
        change(ROW, TAKEN),
        change(TAKEN, TAKEN | {"not_before": (NOON + dt.timedelta(seconds=5)).isoformat()}),
        change(TAKEN, READY),
        change(TAKEN, TAKEN | {"fence": 6, "lease_owner": f"host/{STRANGER}", "attempts": 2}, seconds=4),
        change(TAKEN, DROPPED, application="kmmhub-dispatcher"),
        change(READY, READY | {"state": "wanted", "digest": None}, application="kmmhub-dispatcher"),
    ],
    ids=["wanted", "taken", "kept", "finished", "taken over", "dropped", "checked again"],
)
def test_what_leases_allow_is_no_breach(seen: Change) -> None:
    assert invariants(seen) == []


@pytest.mark.parametrize(
    ("seen", "writer", "invariant"),
    [
        (change(TAKEN, TAKEN | {"fence": 6, "lease_owner": "host/42"}, seconds=2), STRANGER, "S1"),
        (change(READY, TAKEN | {"fence": 6}, seconds=4), HOLDER, "S1"),
        (change(TAKEN, READY), STRANGER, "S2"),
        (change(TAKEN, DROPPED), HOLDER, "S2"),
        (change(TAKEN, READY, application="kmmhub-dispatcher"), None, "S2"),
        (change(TAKEN, READY | {"fence": 4}), HOLDER, "S2"),
        (change(ROW, TAKEN | {"fence": 4}), HOLDER, "S2"),
        (change(READY, READY | {"digest": "sha256:2"}), HOLDER, "S2"),
        (change(ROW, TAKEN, seconds=-1), HOLDER, "S7"),
        (change(ROW, TAKEN | {"attempts": MAX_ATTEMPTS + 1}), HOLDER, "S7"),
    ],
    ids=[
        "a lease that was held is taken",
        "a lease on what has ended",
        "a result by somebody else",
        "dropped by its holder",
        "a result by another program",
        "a fence that falls",
        "a lease without a new fence",
        "a result that nobody may write",
        "a pause that is not kept",
        "too many attempts",
    ],
)
def test_planted_breaches_of_leases(seen: Change, writer: int | None, invariant: str) -> None:
    assert invariants(seen, writer) == [invariant]


def test_a_lease_is_lost_when_it_ran_out_or_nobody_needs_the_artifact() -> None:
    assert is_lease_lost(change(TAKEN, TAKEN | {"fence": 6}, seconds=4))
    assert not is_lease_lost(change(TAKEN, TAKEN | {"fence": 6}, seconds=2))  # it had not run out
    assert is_lease_lost(change(TAKEN, DROPPED, seconds=2))
    assert not is_lease_lost(change(ROW, TAKEN))
    assert not is_lease_lost(change(TAKEN, READY))


def build(service: str, since: float, until: float | None) -> Build:
    return Build(artifact="a", service=service, since=since, until=until)


def test_two_builds_at_once_are_found() -> None:
    overlapping = [build("builder-1", 10, 14), build("builder-2", 12, 13)]
    (breach,) = concurrent_builds(overlapping, {}, started=5)
    assert breach.invariant == "S1 one live build"
    assert breach.when == 7
    assert list(concurrent_builds(overlapping, {"a": [11.9]}, started=5)) == []
    assert list(concurrent_builds(overlapping, {"b": [11.9]}, started=5)) != []
    assert list(concurrent_builds([build("x", 10, None), build("y", 12, 13)], {}, started=5)) != []


def test_builds_that_follow_each_other_are_fine() -> None:
    assert list(concurrent_builds([build("x", 10, 11), build("y", 11, None)], {}, started=5)) == []


def line(event: str, second: int, **fields: Any) -> dict[str, Any]:
    return {"event": event, "timestamp": f"2026-01-01T12:00:{second:02}Z", "artifact": "a", **fields}


def test_builds_are_read_from_a_log_and_end_with_their_process() -> None:
    zero = NOON.timestamp()
    lines = [
        line("build.started", 1),
        line("build.finished", 2),
        line("build.started", 3),
        line("build.started", 7),
        {"event": "service.started", "timestamp": "2026-01-01T12:00:06Z"},
    ]
    found = builds_from(lines, "builder-1", [zero + 5])
    assert [(one.since - zero, one.until and one.until - zero) for one in found] == [
        (1, 2),
        (3, 5),
        (7, None),
    ]


HISTORY = [
    Moment(
        since=0,
        inputs=Inputs(
            clusters={"c1": Cluster(label="east", kernels=("k1",))},
            modules={"m1": Module(kind=ModuleKind.BUILT, select="east", version=1)},
        ),
    )
]


def posted(
    name: str = "m1",
    *,
    cluster: str = "c1",
    labels: Mapping[str, str] | None = None,
    served: Mapping[str, str] | None = None,
) -> Posted:
    return Posted(
        cluster=cluster,
        name=name,
        labels={MODULE_LABEL: name} if labels is None else labels,
        served={"k1": "registry/m1@sha256:1"} if served is None else served,
        when=20.0,
    )


def places(work: Posted) -> list[str]:
    return [breach.invariant[:2] for breach in place_breaches(work, HISTORY, lag=10)]


def test_works_where_they_belong_are_fine() -> None:
    assert places(posted()) == []
    assert places(posted(PERMISSIONS_WORK, labels=PERMISSIONS_LABELS, served={})) == []


def test_planted_works_that_nobody_wanted_or_that_nobody_owns() -> None:
    assert places(posted(cluster="c2")) == ["S5"]
    assert places(posted(served={"k2": "registry/m1@sha256:1"})) == ["S5"]
    assert places(posted(labels={})) == ["S9"]
    assert places(posted(labels={MODULE_LABEL: "m2"})) == ["S9"]
    assert places(posted(PERMISSIONS_WORK, labels={})) == ["S9"]


@pytest.mark.parametrize(
    "image", ["registry/m1:k1", "registry/m1@sha256:2", "elsewhere/m1@sha256:1"], ids=["tag", "other", "name"]
)
def test_planted_digests_that_no_artifact_had(image: str) -> None:
    ready = {("k1", "registry/m1"): {"sha256:1"}}
    assert list(digest_breaches(posted(), ready)) == []
    (breach,) = digest_breaches(posted(served={"k1": image}), ready)
    assert breach.invariant == "S4 digest of the artifact"
    assert list(digest_breaches(posted(served={"k2": "registry/m1@sha256:1"}), ready)) != []


def row(message: str, since: float, until: float) -> Announcement:
    return Announcement(message_id=message, subject="kmm.build.a", since=since, until=until)


def test_a_row_that_was_never_published_is_found_unless_nobody_could_hear() -> None:
    rows = [row("heard", 1, 2), row("lost", 1, 2), row("unheard", 9, 10)]
    judged, breaches = lost_announcements(rows, {"heard": 1.5}, [(9.5, 11)])
    assert judged == 2
    assert [(breach.invariant, breach.where) for breach in breaches] == [
        ("S6 outbox published", "outbox, message lost")
    ]


SECRET = b"canary-0123456789abcdef0123456789"


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        base64.b64encode(SECRET),
        base64.b64encode(b"x" + SECRET + b"tail"),
        base64.b64encode(b"xy" + SECRET + b"tail"),
        SECRET.hex().encode(),
    ],
    ids=["plain", "base64", "base64 at 1", "base64 at 2", "hex"],
)
def test_planted_secrets_are_found(text: bytes) -> None:
    needles = needles_of({"password": SECRET})
    (breach,) = find_secrets(b"before " + text + b" after", needles, where="a log", when=3)
    assert breach == Breach(invariant="S8 no secrets", what="holds the password", where="a log", when=3)
    assert find_secrets(b"canary-" + b"0" * 200, needles, where="a log", when=3) == []


def test_errors_in_a_log_are_surprises_and_warnings_are_not() -> None:
    lines = [
        line("watch.failed", 1, level="warning"),
        line("service.crashed", 2, level="error"),
        line("Future <… ConnectionError('unexpected connection_lost() call')>", 2, level="error"),
        line("bus.handler_failed", 3, level="warning", exception="…"),
    ]
    found = list(surprises(lines, "watcher", started=NOON.timestamp()))
    assert [(breach.where, breach.when) for breach in found] == [("watcher", 2.0), ("watcher", 3.0)]


PUT_BACK = TAKEN | {"state": "wanted", "reason": "WorkerDied", "not_before": NOON.isoformat()}


def test_whoever_sees_it_puts_back_what_a_worker_that_vanished_held() -> None:
    seen = change(TAKEN, PUT_BACK, seconds=4, application="kmmhub-dispatcher")
    assert invariants(seen, STRANGER) == []
    assert is_lease_lost(seen)
    assert invariants(change(TAKEN, PUT_BACK | {"state": "failed"}, seconds=4), STRANGER) == []


@pytest.mark.parametrize(
    ("after", "seconds"),
    [(PUT_BACK, 2), (PUT_BACK | {"state": "ready"}, 4), (PUT_BACK | {"reason": "BuildFailed"}, 4)],
    ids=["before its lease ran out", "with a result", "for another reason"],
)
def test_nothing_else_is_written_for_a_holder(after: dict[str, Any], seconds: float) -> None:
    seen = change(TAKEN, after, seconds=seconds, application="kmmhub-dispatcher")
    assert invariants(seen, STRANGER) == ["S2"]
    assert not is_lease_lost(seen)

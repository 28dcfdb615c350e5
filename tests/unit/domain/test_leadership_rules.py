"""Who leads: the rules one by one, and any number of clocks, pauses and losses without two leaders."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain.leadership import (
    Acquire,
    LeaseRecord,
    Renew,
    Seen,
    Terms,
    Wait,
    held_spec,
    next_step,
    observe,
    read_lease,
    released_spec,
)

TERMS = Terms(lease_seconds=15)
WALL = dt.datetime(2026, 1, 2, 3, 4, 5, 678, dt.UTC)
OTHERS = LeaseRecord(holder="b", seconds=15, transitions=4, acquired="then", version="7")


def step(record: LeaseRecord, now: float, *, at: float = 100.0, terms: Terms = TERMS) -> object:
    return next_step(Seen(record=record, at=at), identity="a", now=now, terms=terms)


def test_a_lease_that_does_not_exist_is_made() -> None:
    assert observe(None, None, 1.0) is None
    assert next_step(None, identity="a", now=1.0, terms=TERMS) == Acquire(transitions=0, creates=True)


def test_the_holder_renews_and_keeps_when_it_became_it() -> None:
    record = replace(OTHERS, holder="a")
    for now in (100.0, 1000.0):
        assert step(record, now) == Renew(transitions=4, acquired="then", creates=False)


@pytest.mark.parametrize(("now", "seconds"), [(100.0, 1.0), (114.5, 0.5)])
def test_another_waits_while_the_record_may_still_move(now: float, seconds: float) -> None:
    assert step(OTHERS, now) == Wait(seconds=seconds, holder="b")


def test_another_takes_over_what_did_not_move_and_counts_it() -> None:
    assert step(OTHERS, 115.0) == Acquire(transitions=5, creates=False)


def test_a_lease_that_was_given_back_is_taken_at_once() -> None:
    released = read_lease({"metadata": {"resourceVersion": "8"}, "spec": released_spec(WALL)})
    assert step(released, 100.0) == Acquire(transitions=1, creates=False)


def test_the_promise_of_the_holder_counts_not_the_reader_s_own_terms() -> None:
    assert isinstance(step(replace(OTHERS, seconds=60), 150.0), Wait)
    assert isinstance(step(replace(OTHERS, seconds=5), 106.0), Acquire)
    assert isinstance(step(replace(OTHERS, seconds=None), 114.0), Wait)


def test_every_write_is_a_sign_of_life_and_an_unchanged_record_is_none() -> None:
    seen = observe(None, OTHERS, 100.0)
    assert observe(seen, OTHERS, 110.0) == seen
    assert observe(seen, replace(OTHERS, version="8"), 110.0) == Seen(
        record=replace(OTHERS, version="8"), at=110.0
    )


def test_a_lease_that_vanished_is_free_only_after_its_time() -> None:
    seen = observe(Seen(record=OTHERS, at=100.0), None, 110.0)
    assert seen is not None
    assert observe(seen, None, 112.0) == seen
    assert isinstance(next_step(seen, identity="a", now=124.0, terms=TERMS), Wait)
    assert next_step(seen, identity="a", now=125.0, terms=TERMS) == Acquire(transitions=5, creates=True)
    assert next_step(seen, identity="b", now=110.0, terms=TERMS) == Renew(
        transitions=4, acquired="then", creates=True
    )


def test_what_is_written_is_read_again() -> None:
    spec = held_spec(Acquire(transitions=3, creates=False), identity="a", terms=TERMS, wall=WALL)
    assert spec["renewTime"] == spec["acquireTime"] == "2026-01-02T03:04:05.000678Z"
    record = read_lease({"metadata": {"resourceVersion": "9"}, "spec": spec})
    assert record == LeaseRecord(
        holder="a", seconds=15, transitions=3, acquired=spec["acquireTime"], version="9"
    )
    renewal = Renew(transitions=3, acquired=record.acquired, creates=False)
    later = held_spec(renewal, identity="a", terms=TERMS, wall=WALL + dt.timedelta(seconds=2))
    assert later == spec | {"renewTime": "2026-01-02T03:04:07.000678Z"}


@pytest.mark.parametrize("spec", [None, {}, {"holderIdentity": None, "leaseTransitions": None}])
def test_a_lease_that_says_nothing_is_nobody_s(spec: Mapping[str, Any] | None) -> None:
    lease = {"metadata": {"resourceVersion": "1"}} | ({"spec": spec} if spec is not None else {})
    assert step(read_lease(lease), 100.0) == Acquire(transitions=1, creates=False)


@pytest.mark.parametrize("seconds", [1, 3, 15, 3600])
def test_a_holder_has_two_attempts_before_its_deadline_and_stops_before_another_may_start(
    seconds: int,
) -> None:
    terms = Terms(lease_seconds=seconds)
    last_chance = terms.renew_interval + 2 * terms.request_seconds + terms.poll_interval
    assert terms.poll_interval < terms.renew_interval < last_chance < terms.renew_seconds + 1e-9
    assert terms.renew_seconds < terms.lease_seconds


def test_a_lease_shorter_than_a_second_is_refused() -> None:
    with pytest.raises(ValueError, match="at least a second"):
        Terms(lease_seconds=0)


PHASES = 4
"""A look at the Lease, its answer, a write, its answer."""


@dataclass(slots=True)
class Store:
    """The API server's part: a write counts only on the version that was read."""

    record: LeaseRecord | None = None
    version: int = 0

    def write(self, spec: Mapping[str, Any], *, version: str | None) -> bool:
        if version != (self.record.version if self.record else None):
            return False
        self.version += 1
        self.record = read_lease({"metadata": {"resourceVersion": str(self.version)}, "spec": spec})
        return True


@dataclass(slots=True, kw_only=True)
class Contender:
    """A candidate between whose every two steps any time may pass; its clock has its own start and rate."""

    identity: str
    terms: Terms
    rate: float
    start: float
    seen: Seen | None = None
    renewed: float | None = None
    answer: tuple[LeaseRecord | None] | None = None
    request: tuple[float, dict[str, Any], str | None] | None = None
    written: float | None = None
    adrift: list[tuple[dict[str, Any], str | None]] = field(default_factory=list)

    def clock(self, time: float) -> float:
        return self.start + self.rate * time

    def leads(self, time: float) -> bool:
        return self.renewed is not None and self.clock(time) < self.renewed + self.terms.renew_seconds

    def go_on(self, store: Store, time: float, fate: str) -> None:
        """The next thing it does, or that happens to its request."""
        now = self.clock(time)
        if fate == "restart":
            self.identity += "'"
            self.seen = self.renewed = self.answer = self.request = self.written = None
        elif fate == "late" and self.adrift:
            spec, version = self.adrift.pop()
            store.write(spec, version=version)
        elif self.written is not None:
            sent, self.written = self.written, None
            if fate != "lost":
                self.renewed = sent
        elif self.request is not None:
            (sent, spec, version), self.request = self.request, None
            if fate == "lost":
                self.adrift.append((spec, version))
            elif store.write(spec, version=version):
                self.written = sent
        elif self.answer is None:
            self.answer = (store.record,)
        else:
            (record,), self.answer = self.answer, None
            self.seen = observe(self.seen, record, now)
            self.decide(store, record, now, gives_back=fate == "give back")

    def decide(self, store: Store, record: LeaseRecord | None, now: float, *, gives_back: bool) -> None:
        if gives_back and record is not None and record.holder == self.identity:
            self.renewed = None
            store.write(released_spec(WALL), version=record.version)
            return
        taken = next_step(self.seen, identity=self.identity, now=now, terms=self.terms)
        if isinstance(taken, Wait):
            self.renewed = None
            return
        spec = held_spec(taken, identity=self.identity, terms=self.terms, wall=WALL)
        self.request = (now, spec, None if taken.creates else record.version if record else "")


RATES = st.one_of(st.sampled_from([1.0, 1.49]), st.floats(1.0, 1.49))
LEASES = st.one_of(st.just(15), st.integers(1, 60))
TIMES = st.one_of(st.sampled_from([0.0, 0.5, 2.0, 5.0, 9.0, 10.0, 15.0]), st.floats(0, 20))
FATES = st.sampled_from(["round"] * 6 + ["well"] * 3 + ["lost", "late", "give back", "restart", "deleted"])
STEPS = st.lists(st.tuples(st.integers(0, 2), TIMES, FATES), min_size=10, max_size=60)


@settings(max_examples=800)
@given(
    rates=st.tuples(RATES, RATES, RATES),
    starts=st.tuples(*[st.floats(0, 1e6)] * 3),
    leases=st.tuples(LEASES, LEASES, LEASES),
    steps=STEPS,
)
def test_two_never_lead_at_once(
    rates: tuple[float, ...], starts: tuple[float, ...], leases: tuple[int, ...], steps: list[Any]
) -> None:
    store, time = Store(), 0.0
    contenders = [
        Contender(identity=name, terms=Terms(lease_seconds=lease), rate=rate, start=start)
        for name, lease, rate, start in zip("abc", leases, rates, starts, strict=True)
    ]
    for number, passed, fate in steps:
        time += passed
        if fate != "deleted":
            for _ in range(PHASES if fate == "round" else 1):
                contenders[number].go_on(store, time, fate)
        elif all(one.seen and one.seen.record == store.record for one in contenders):
            store.record = None  # of a Lease that came and went unseen nobody can know
        leaders = [one.identity for one in contenders if one.leads(time)]
        assert len(leaders) <= 1


@given(rates=st.tuples(RATES, RATES), polls=st.floats(0.0, 1.0))
def test_a_silent_leader_is_replaced_within_its_lease_and_a_look(
    rates: tuple[float, float], polls: float
) -> None:
    store = Store()
    first, second = (
        Contender(identity=name, terms=TERMS, rate=rate, start=0)
        for name, rate in zip("ab", rates, strict=True)
    )
    for _ in range(PHASES):
        first.go_on(store, 0.0, "well")
    assert first.leads(0.0)
    time = polls
    while True:
        for _ in range(PHASES):
            second.go_on(store, time, "well")
        if second.leads(time):
            break
        time += TERMS.poll_interval / second.rate
    assert 15 - 1e-6 <= (time - polls) * second.rate <= 15 + TERMS.poll_interval + 1e-6
    assert not first.leads(time)

"""Leases as objects in a store: liveness by the observer's own clock, and who may commit, in any order of events."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ccr_dist.generate.lease import Lease, Leases
from ccr_dist.generate.traces.base import Traces
from ccr_dist.generate.traces.objects import WorkObjects

URL, S = "memory://bucket/toy", "000003"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    empty()
    yield
    empty()


def empty() -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_heartbeats_are_seen_in_listings_by_the_observers_own_clock() -> None:
    clock, place = Clock(), WorkObjects(f"{URL}/x")
    owner = Leases(place, 60).take(S, Traces(), of=5)
    assert owner is not None
    other = Leases(place, 60, clock)
    for _ in range(3):
        assert other.held(S, other.look(S))
        clock.now += 59
        owner.beat(1, 2)
    assert other.held(S, other.look(S))
    clock.now += 60
    assert not other.held(S, other.look(S))
    about, beat = place.read_lease(S, 1) or ({}, {})
    assert about["worker"].split(":")[1].isdecimal() and beat["beat"] == 4 and beat["rows"] == 1
    assert time.time() - place.changed(S, 1) < 100
    owner.release()
    assert place.look() == {}


def test_a_listing_that_is_old_by_the_time_it_is_judged_is_no_long_silence() -> None:
    clock, place = Clock(), WorkObjects(f"{URL}/x")
    assert Leases(place, 60).take(S, Traces(), of=5) is not None
    other = Leases(place, 60, clock)
    assert other.held(S, other.look(S))
    listed = other.look(S)
    clock.now += 1000  # this process slept
    assert other.held(S, listed)


class Interleavings(RuleBasedStateMachine):
    """Workers that take, sleep, wake, claim and give up, in any order: at most one generation commits, and a worker
    that was overtaken never does.
    """

    @initialize()
    def begin(self) -> None:
        empty()
        self.clock, self.place = Clock(), WorkObjects(f"{URL}/x")
        self.workers = [Leases(self.place, 10, self.clock) for _ in range(3)]
        self.held: dict[int, Lease] = {}
        self.looked = [Traces() for _ in range(3)]
        self.claimed: dict[int, Lease] = {}
        self.decided = False

    @rule(i=st.integers(0, 2))
    def looks(self, i: int) -> None:
        self.looked[i] = self.workers[i].look(S)

    @rule(i=st.integers(0, 2), tidies=st.booleans())
    def takes_with_an_old_look(self, i: int, tidies: bool) -> None:
        if i in self.held or self.workers[i].held(S, self.workers[i].look(S)):
            return
        before = [lease for lease in self.held.values() if lease.valid()]
        lease = self.workers[i].take(S, self.looked[i], of=5)
        if lease is None:
            return
        self.place.close_below(S, lease.generation)
        assert not any(other.valid() for other in before)
        traces = self.place.look(S)[S]
        # who began to commit while it held the shard is found, as long as its journal is there
        assert self.place.is_decided(S, traces) == bool(self.claimed)
        lease.journal(b"{}\n")
        if self.claimed:
            assert lease.claim()
            self.claimed = {i: lease}
        if tidies:
            self.place.tidy(S, traces, below=lease.generation)
        self.held[i] = lease

    @rule(i=st.integers(0, 2))
    def claims(self, i: int) -> None:
        if i in self.held:
            valid = self.held[i].valid()
            assert self.held[i].claim() == valid
            if valid:
                self.claimed = {i: self.held[i]}

    @rule(i=st.integers(0, 2))
    def beats(self, i: int) -> None:
        if i in self.held:
            self.held[i].beat(0, 0)

    @rule(i=st.integers(0, 2))
    def stops(self, i: int) -> None:
        if i in self.held:
            self.held.pop(i).release()

    @precondition(lambda self: hasattr(self, "clock"))
    @rule(seconds=st.sampled_from([1, 4, 11]))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def at_most_one_may_commit(self) -> None:
        assert sum(lease.valid() for lease in getattr(self, "held", {}).values()) <= 1


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=25, stateful_step_count=25)

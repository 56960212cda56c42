"""Leases: one owner at a time, judged by beats and the observer's own clock; whoever was overtaken finds out."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ccr_dist.generate.lease import Deaths, Lease, Leases
from ccr_dist.generate.traces.base import Traces
from ccr_dist.generate.traces.files import WorkFiles, journal_path, lease_path, look, read_lease

S = "000003"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def traces(folder: Path) -> Traces:
    return look(folder, S).get(S, Traces())


def folder_of(leases: Leases) -> Path:
    assert isinstance(leases.place, WorkFiles)
    return leases.place.folder


def take(leases: Leases, past: Deaths | None = None) -> Lease | None:
    """As the runner does."""
    return (
        None
        if leases.held(S, traces(folder_of(leases)))
        else leases.take(S, traces(folder_of(leases)), of=5, past=past)
    )


def elsewhere(leases: Leases) -> Leases:
    """On another machine: what the lock on a file says here tells it nothing."""
    assert isinstance(leases.place, WorkFiles)
    leases.place.boot = "another machine"
    return leases


def test_what_a_lease_says(tmp_path: Path) -> None:
    lease = take(Leases(WorkFiles(tmp_path), 60), Deaths(2))
    assert lease is not None
    lines = (tmp_path / f"{S}.lease.1").read_bytes().split(b"\n")
    assert len(lines) == 3 and len(lines[1]) == 159
    about, beat = read_lease(lease.path) or ({}, {})
    assert about.keys() == {"worker", "host", "pid", "boot", "since", "stuck", "lease_s"} and about["lease_s"] == 60
    assert (about["pid"], about["stuck"], about["worker"].split(":")[1]) == (os.getpid(), 2, str(os.getpid()))
    assert beat == {"beat": 1, "rows": 0, "of": 5, "tokens": 0, "begun": False}
    lease.begin(1)
    lease.beat(3, 40)
    assert (read_lease(lease.path) or ({}, {}))[1] == {"beat": 3, "rows": 3, "of": 5, "tokens": 40, "begun": True}
    assert (tmp_path / f"{S}.lease.1").read_bytes().split(b"\n")[0] == lines[0]


def test_looking_tells_traces_by_shard(tmp_path: Path) -> None:
    names = [
        "000003.lease.2",
        "000003.journal.1",
        "000003.journal.12",
        ".tmp-000003.tar.h.1.ab",
        "000004.json",
        "000005.lease.7",
        "x.lease.1",
    ]
    for name in [*names, ".tmp-column.json.h.1.ab", "000003.tar", "000003.stats.json"]:
        (tmp_path / name).touch()
    found = look(tmp_path)
    assert found.keys() == {"000003", "000005"}
    there = found["000003"]
    assert (there.leases, sorted(there.journals), there.rubbish) == ([2], [1, 12], [".tmp-000003.tar.h.1.ab"])
    assert look(tmp_path, "000005").keys() == {"000005"}


@pytest.mark.parametrize("same_machine", [True, False])
def test_a_living_owner_keeps_the_shard_as_long_as_it_beats(tmp_path: Path, same_machine: bool) -> None:
    clock = Clock()
    owner, other = take(Leases(WorkFiles(tmp_path), 60)), Leases(WorkFiles(tmp_path), 60, clock)
    assert owner is not None
    if not same_machine:
        elsewhere(other)
    for _ in range(5):
        assert take(other) is None
        clock.now += 50
        owner.beat(0, 0)
    clock.now += 59
    assert take(other) is None  # the beat was not seen before now: silence is counted from here
    clock.now += 59.9
    assert take(other) is None
    assert owner.valid()
    clock.now += 0.1
    second = take(other)
    assert second is not None and second.generation == 2
    assert second.valid() and not owner.valid()


@pytest.mark.parametrize(("own", "observers"), [(600.0, 1.0), (1.0, 600.0)])
def test_the_length_of_a_lease_is_its_owners(tmp_path: Path, own: float, observers: float) -> None:
    """Its heartbeats come accordingly: a worker with shorter leases would take shards of living ones."""
    clock = Clock()
    owner = take(Leases(WorkFiles(tmp_path), own))
    other = elsewhere(Leases(WorkFiles(tmp_path), observers, clock))
    assert owner is not None and take(other) is None
    clock.now += own * 0.999
    assert take(other) is None and owner.valid()
    clock.now += own * 0.001
    assert take(other) is not None and not owner.valid()


def test_leases_of_earlier_versions_do_not_say_their_length(tmp_path: Path) -> None:
    clock = Clock()
    owner = take(Leases(WorkFiles(tmp_path), 600))
    assert owner is not None
    path = tmp_path / f"{S}.lease.1"
    path.write_bytes(path.read_bytes().replace(b', "lease_s": 600', b""))
    other = elsewhere(Leases(WorkFiles(tmp_path), 60, clock))
    assert take(other) is None
    clock.now += 60
    assert take(other) is not None


def test_a_late_first_look_is_no_long_silence(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = 1e9
    other = elsewhere(Leases(WorkFiles(tmp_path), 60, clock))
    assert take(Leases(WorkFiles(tmp_path), 60)) is not None
    assert take(other) is None


def test_an_owner_that_is_gone_is_succeeded_at_once_on_its_machine_only(tmp_path: Path) -> None:
    code = "import sys, os, pathlib; from ccr_dist.generate.lease import *; "
    code += "from ccr_dist.generate.traces.files import *; "
    code += f"Leases(WorkFiles(pathlib.Path(sys.argv[1])), 60).take('{S}', Traces(), of=5).begin(0); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert take(elsewhere(Leases(WorkFiles(tmp_path), 60))) is None
    lease = take(Leases(WorkFiles(tmp_path), 60))
    assert lease is not None and lease.generation == 2


def test_only_one_racer_gets_a_generation(tmp_path: Path) -> None:
    leases = [Leases(WorkFiles(tmp_path), 60) for _ in range(3)]
    before = traces(tmp_path)
    got = [one.take(S, before, of=5) for one in leases]
    assert [lease is not None for lease in got] == [True, False, False]
    assert [p.name for p in tmp_path.iterdir()] == [f"{S}.lease.1"]  # nor a temporary file


def test_an_old_look_takes_nothing_that_has_been_worked_on_since(tmp_path: Path) -> None:
    """Somebody took generation 1 after the look, kept a journal and gave the shard up: 1 must not be taken again over
    that journal.
    """
    old = traces(tmp_path)
    journal_path(tmp_path, S, 1).touch()
    assert Leases(WorkFiles(tmp_path), 60).take(S, old, of=5) is None
    assert traces(tmp_path) == Traces(journals=[1])
    lease = take(Leases(WorkFiles(tmp_path), 60))
    assert lease is not None and lease.generation == 2


def test_a_temporary_file_that_was_tidied_away_is_a_lost_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def late(source: Path, target: Path) -> None:
        Path(source).unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert Leases(WorkFiles(tmp_path), 60).take(S, Traces(), of=5) is None
    assert not [*tmp_path.iterdir()]


def test_release_frees_the_shard_but_not_that_of_a_successor(tmp_path: Path) -> None:
    first = take(Leases(WorkFiles(tmp_path), 60))
    assert first is not None
    first.release()
    assert not [*tmp_path.iterdir()] and not first.valid()
    second = take(Leases(WorkFiles(tmp_path), 60))
    assert second is not None and second.generation == 1
    second.path.unlink()
    third = take(Leases(WorkFiles(tmp_path), 60))  # the same name, another file
    assert third is not None and third.path == second.path
    assert not second.valid() and third.valid()
    second.release()
    second.beat(4, 4)
    assert third.valid()
    assert json.loads(third.path.read_bytes().split(b"\n")[1])["beat"] == 1


def test_garbage_of_a_crashed_machine_expires(tmp_path: Path) -> None:
    lease_path(tmp_path, S, 4).write_bytes(b"\0" * 300)
    clock = Clock()
    other = Leases(WorkFiles(tmp_path), 60, clock)
    assert take(other) is None
    clock.now = 60
    lease = take(other)
    assert lease is not None and lease.generation == 5


class Interleavings(RuleBasedStateMachine):
    """Workers on machines of their own that take, beat, sleep, wake, and give up, in any order: at most one of them may
    commit.
    """

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.workers = [elsewhere(Leases(WorkFiles(self.folder), 10, self.clock)) for _ in range(3)]
        self.held: dict[int, Lease] = {}
        self.looked = [Traces() for _ in range(3)]
        self.top = 0

    @rule(i=st.integers(0, 2))
    def looks(self, i: int) -> None:
        self.looked[i] = traces(self.folder)

    @rule(i=st.integers(0, 2))
    def takes_with_an_old_look(self, i: int) -> None:
        if i in self.held or self.workers[i].held(S, traces(self.folder)):
            return
        owner = [lease for lease in self.held.values() if lease.valid()]
        lease = self.workers[i].take(S, self.looked[i], of=5)
        if lease is not None:
            assert lease.generation > self.top or not traces(self.folder).journals
            self.held[i], self.top = lease, lease.generation
            journal_path(self.folder, S, lease.generation).touch()
            assert not any(other.valid() for other in owner)
            for g in [g for g in traces(self.folder).leases if g < lease.generation]:
                lease_path(self.folder, S, g).unlink()

    @rule(i=st.integers(0, 2))
    def beats(self, i: int) -> None:
        if i in self.held:
            self.held[i].beat(0, 0)

    @rule(i=st.integers(0, 2), graceful=st.booleans())
    def stops(self, i: int, graceful: bool) -> None:
        if i in self.held and graceful:
            self.held.pop(i).release()

    @precondition(lambda self: hasattr(self, "clock"))
    @rule(seconds=st.sampled_from([1, 4, 11]))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def at_most_one_may_commit(self) -> None:
        assert sum(lease.valid() for lease in getattr(self, "held", {}).values()) <= 1


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=40, stateful_step_count=30)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_beat_that_cannot_be_written_names_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    lease = take(Leases(WorkFiles(tmp_path), 60))
    assert lease is not None

    def fail(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=str(lease.path)):
        lease.begin(0)

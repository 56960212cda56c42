"""Jobs in a store whose workers are killed at the worst moments: what they leave blocks nobody, and hides nothing."""

from __future__ import annotations

import socket

import pytest

from ccr_dist.data.storage.cache_folder import cache_folder
from ccr_dist.data.storage.object_store import Store
from ccr_dist.data.storage.payload_cache import claimed
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataBudgetError, StorageError
from ccr_dist.generate.bad_items import Budget
from ccr_dist.generate.lease import Lease
from ccr_dist.generate.processor import RowOutcome
from ccr_dist.generate.traces.objects import HeldObject
from tests.running import XX, shout
from tests.store_jobs import URL, Killed, bench, dead, made, overtaken, taken, there


def test_a_commit_that_had_begun_is_found_after_another_death(plain: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor is killed between its own journal and its word that it goes on with the commit."""
    _, first = taken()
    first.keep([(0, RowOutcome(["a"])), (1, RowOutcome(error="bad"))])
    assert first.lease.claim()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Lease, "claim", dead)
        overtaken(first)
    third = bench(lease_s=0.0).take(0)
    assert third is not None and third.decided and third.missing == []


def test_a_journal_of_which_only_a_part_is_left_blocks_nobody(plain: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of a shard was killed while several threads removed its journal."""
    one, work = taken()
    for row in (0, 1):
        work.keep([(row, RowOutcome(["x"]))])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(one.place), "remove_journal", dead)
        one.commit(work, lambda: 0, {})
    store = Store(f"{URL}/{XX}/jobs")
    store.remove([name for name in store.listing() if name.endswith(".000001")])
    summary = shout(Dataset(URL), lease_s=0.02)
    assert summary.complete and not [name for name in there() if name.startswith("jobs/")]


def test_rows_after_a_gap_of_a_journal_are_made_again(plain: object) -> None:
    _, work = taken()
    work.keep([(0, RowOutcome(["x"]))])
    work.keep([(1, RowOutcome(["x"]))])
    store = Store(f"{URL}/{XX}/jobs")
    store.remove([name for name in store.listing() if name.endswith(".000001")])
    assert overtaken(work).missing == [0, 1]


def test_a_journal_is_removed_whole_or_not_at_all(plain: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its objects are removed at once by several threads: without the first one the others count for nothing."""
    removed: list[list[str]] = []
    one, work = taken()
    work.keep([(0, RowOutcome(["x"]))])
    work.keep([(1, RowOutcome(["x"]))])
    real = Store.remove
    monkeypatch.setattr(Store, "remove", lambda store, names: (removed.append(list(names)), real(store, names))[1])
    assert one.commit(work, lambda: 0, {})
    journals = [names for names in removed if any(".journal." in name for name in names)]
    assert [name.rpartition(".")[2] for name in journals[0]] == ["000000"]
    assert {name.rpartition(".")[2] for names in journals[1:] for name in names} == {"000001", "000002"}


def test_a_store_that_fails_at_the_end_does_not_hide_why_a_job_ends(
    plain: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(held: HeldObject) -> None:
        raise StorageError("no connection")

    monkeypatch.setattr(HeldObject, "release", gone)
    with pytest.raises(DataBudgetError, match="bad items"):
        made(budget=Budget(items=0))
    said = capsys.readouterr().err
    assert f"{URL}/{XX}/jobs/000000.lease.1: not given up (no connection)" in said


def test_a_finished_shard_is_not_refused_for_the_deaths_before(plain: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers die over a shard; the third makes it, and is killed before it has removed its lease."""
    for _ in range(2):
        work = bench(lease_s=0.0).take(0)
        assert work is not None
        work.lease.begin(0)
    one = bench(lease_s=0.0)
    work = one.take(0)
    assert work is not None
    work.lease.begin(0)
    work.keep([(row, RowOutcome(["x"])) for row in (0, 1)])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Lease, "release", dead)
        one.commit(work, lambda: 0, {})
    summary = shout(Dataset(URL), lease_s=0.02)
    assert summary.complete and not [name for name in there() if name.startswith("jobs/")]


def test_what_killed_workers_left_in_the_cache_is_removed_and_nothing_else(plain: object) -> None:
    """Two containers may have one host's name, and numbers of processes of their own."""
    parent = cache_folder("remote/made")
    living, left = parent / f"{socket.gethostname()}.4194305.x", parent / "a-pod-that-is-gone.1.x"
    for folder in (living, left):
        (folder / "keys").mkdir(parents=True)
    with claimed(living):
        made()
        assert living.is_dir() and not left.exists()
    made(column="caption.xx.again")
    assert not list(parent.iterdir())

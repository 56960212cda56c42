"""Runners beside others: shards under leases, work that processes prepare ahead, one first load a machine."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.data.table.dataset import Dataset, create_column
from ccr_dist.errors import ConfigError, DataBudgetError, DataError, EngineError
from ccr_dist.generate.bad_items import BadItems, Budget
from ccr_dist.generate.job_parts import JobParts
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.lease import Lease, Leases
from ccr_dist.generate.load_once import first_load
from ccr_dist.generate.open_shards import OpenShards
from ccr_dist.generate.processor import EngineWait, Feed, RowOutcome, Ticket
from ccr_dist.generate.results import Results
from ccr_dist.generate.runner import run
from ccr_dist.generate.shard_work import Bench, Work
from ccr_dist.generate.stop_request import StopRequest
from ccr_dist.generate.summary import JobReport, JobSummary
from ccr_dist.generate.traces.base import Traces
from ccr_dist.generate.traces.files import HeldFile, WorkFiles
from tests.jobs import Shout, captions, column_files, content
from tests.running import XX, shout


def leased(dataset: Dataset, shard: int) -> Lease:
    """As another living worker would hold it."""
    plan = {**Translate(Shout(), "caption.en").plan(), "inputs": {"caption.en": dataset.column("caption.en").digest}}
    column = create_column(dataset, XX, kind="texts", extension="json", plan=plan, provenance={})
    lease = Leases(WorkFiles(column.folder), 60).take(dataset.shards[shard], Traces(), of=dataset.shard_rows[shard])
    assert lease is not None
    return lease


def kill(lease: Lease) -> None:
    """As its process leaves it when it is killed."""
    assert isinstance(lease.held, HeldFile)
    lease.held.close()


def test_without_waiting_the_shards_of_others_are_reported(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(2, 3, 2))
    lease = leased(dataset, 1)
    summary = shout(dataset, wait=False)
    assert (summary.done, summary.busy, summary.complete) == (2, 1, False)
    assert lease.valid() and dataset.column(XX).missing() == [1]
    idle = Shout()
    assert shout(dataset, engine=idle, wait=False).busy == 1
    assert idle.loaded == 0  # nothing to do
    lease.release()
    assert shout(dataset, wait=False).complete


def test_waiting_it_takes_what_others_give_up(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(2, 3, 2))
    lease = leased(dataset, 1)
    done: list[str] = []

    def release(name: str, info: dict[str, Any]) -> None:
        if name == "committed":
            done.append(info["shard"])
        if len(done) == 2:
            lease.release()

    summary = shout(dataset, on_event=release, lease_s=0.4)
    assert done == ["000000", "000002", "000001"]
    assert (summary.done, summary.busy, summary.lost, summary.complete) == (3, 0, 0, True)
    assert not [name for name in column_files(dataset.root / XX) if "lease" in name or "journal" in name]


def test_a_shard_whose_lease_was_taken_over_is_dropped_and_looked_at_again(tmp_path: Path) -> None:
    """The lease file vanishes, as after a takeover, while rows are being made; what was journalled before is not made
    again.
    """
    dataset = captions(tmp_path / "d", rows=(4, 2))

    class Overtaken(Shout):
        def translate(self, texts: list[str]) -> list[str | DataError]:
            if "0-2 one" in texts and self.loaded:
                self.loaded = 0
                (dataset.root / XX / "000000.lease.1").unlink()
            return super().translate(texts)

    used = Overtaken()
    summary = shout(dataset, engine=used, batch=2, lease_s=0.4)
    assert (summary.lost, summary.done, summary.complete) == (1, 2, True)
    assert [text for call in used.calls for text in call].count("0-0 one") == 1
    assert not [name for name in column_files(dataset.root / XX) if "lease" in name or "journal" in name]


def test_a_shard_over_which_a_worker_died_is_alone_in_work_until_it_gives_a_row(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(2, 3, 2, 2))
    lease = leased(dataset, 1)
    lease.begin(0)
    kill(lease)
    used = Shout()
    assert shout(dataset, engine=used).complete
    shards = [{text.partition("-")[0] for text in call} for call in used.calls]
    assert [each for each in shards if "1" in each] == [{"1"}]


def opened(dataset: Dataset) -> tuple[JobParts, Work]:
    """The parts of a run that holds the first shard."""
    leased(dataset, 0).release()
    column = dataset.column(XX)
    report = JobReport(JobSummary(XX, shards=1), lambda name, details: None, lambda rows: None)
    bad_items = BadItems(column, column.dataset.rows, Budget(), report.summary)
    bench = Bench(column, Leases(WorkFiles(column.folder), 60))
    parts = JobParts(
        column, bench, OpenShards(bad_items, report), bad_items, report, StopRequest(), engine_wait=EngineWait()
    )
    work = bench.take(0)
    assert work is not None
    parts.open_shards.add(work)
    return parts, work


def test_a_row_that_comes_back_twice_is_kept_once(tmp_path: Path) -> None:
    """As of a shard that was lost and taken again while the row was in work."""
    parts, work = opened(captions(tmp_path / "d", rows=(2,)))
    results = Results(parts, lambda: 0)
    for value in ("FIRST", "SECOND"):
        results.keep([(Ticket(0, 0, "0-0"), RowOutcome([value]))])
    assert parts.report.summary.rows == 1 and work.outcomes[0].value == ["FIRST"]
    parts.open_shards.close()


@pytest.mark.parametrize("overtaken", [True, False])
def test_a_journal_that_cannot_be_written_is_an_error_unless_another_worker_has_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overtaken: bool
) -> None:
    parts, work = opened(captions(tmp_path / "d", rows=(2,)))

    def full(rows: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(work.journal, "append", full)
    if overtaken:
        work.lease.path.unlink()
    with nullcontext() if overtaken else pytest.raises(OSError, match="no space"):
        Results(parts, lambda: 0).keep([(Ticket(0, 0, "0-0"), RowOutcome(["A"]))])
    summary = parts.report.summary
    assert (summary.rows, summary.lost, len(parts.open_shards)) == (0, int(overtaken), int(not overtaken))
    assert parts.open_shards.take_lost() == ([0] if overtaken else [])
    parts.open_shards.close()


def test_a_shard_that_another_worker_took_over_before_its_commit_is_given_up(tmp_path: Path) -> None:
    parts, work = opened(captions(tmp_path / "d", rows=(1,)))
    work.lease.path.unlink()
    Results(parts, lambda: 0).keep([(Ticket(0, 0, "0-0"), RowOutcome(["A"]))])
    summary = parts.report.summary
    assert (summary.done, summary.lost, len(parts.open_shards)) == (0, 1, 0)
    assert parts.open_shards.take_lost() == [0] and parts.target.missing() == [0]


def test_temporary_files_that_a_stale_worker_removes_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that slept past its lease tidies a shard while its new owner writes there."""
    shout(expected := captions(tmp_path / "expected", rows=(3, 2)))
    dataset = captions(tmp_path / "d", rows=(3, 2))
    removed: set[str] = set()

    def disturbed(call: Any) -> Any:
        def moved(source: Any, target: Any, **options: Any) -> Any:
            if Path(target).name[0].isdigit() and Path(target).name not in removed:
                removed.add(Path(target).name)
                Path(source).unlink()
            return call(source, target, **options)

        return moved

    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, disturbed(getattr(os, name)))
    summary = shout(dataset)
    assert summary.done == 2 and {"000000.tar", "000000.json", "000000.journal.1", "000000.stats.json"} <= removed
    assert content(dataset.column(XX).folder) == content(expected.column(XX).folder)


def test_what_counts_as_a_bad_item(tmp_path: Path) -> None:
    parts, work = opened(captions(tmp_path / "d", rows=(8,)))
    rows = (RowOutcome(["A"]), RowOutcome(["A"], lacks="a part"), RowOutcome(error="none"))
    Results(parts, lambda: 0).keep([(Ticket(0, row, f"0-{row}"), each) for row, each in enumerate(rows)])
    assert parts.report.summary.bad == 2
    parts.open_shards.lose(work)  # they are those of the other worker now
    parts.bad_items.require_within_budget()
    assert parts.report.summary.bad == 0


def test_final_errors_of_earlier_workers_are_bad_items(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(4,))
    parts, work = opened(dataset)
    work.keep([(0, RowOutcome(error="it kills its workers", final=True))])
    parts.open_shards.close()
    with pytest.raises(DataBudgetError, match="it kills its workers"):
        shout(dataset, budget=Budget(items=0, fraction=0))
    assert shout(dataset).bad == 1


def test_what_a_worker_leaves_that_dies_after_its_commit_is_removed(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(2, 2))
    shout(dataset)
    kill(leased(dataset, 1))
    idle = Shout()
    assert shout(dataset, engine=idle).complete and idle.calls == []
    assert not [name for name in column_files(dataset.root / XX) if "lease" in name]


def test_processes_prepare_as_threads_do(tmp_path: Path) -> None:
    dataset, plain = captions(tmp_path / "d", rows=(3, 4)), captions(tmp_path / "p", rows=(3, 4))
    shout(plain)
    summary = shout(dataset, workers=2, batch=2)
    assert summary.complete and summary.waited_s > 0
    assert content(dataset.root / XX) == content(plain.root / XX)

    class Lambda(Translate):
        def preparer(self) -> Any:
            return lambda key, values: values["caption.en"]

    with pytest.raises(ConfigError, match="--workers 2: this job cannot prepare its rows in processes"):
        run(dataset, Lambda(Shout(), "caption.en"), "caption.yy.shout", workers=2, progress=False)


def test_a_feed_never_blocks_an_engine_that_has_something_to_do() -> None:
    pool: list[Future[Any]] = []

    def submit(ticket: Ticket) -> Future[Any]:
        pool.append(Future())
        return pool[-1]

    free, ended = deque(Ticket(0, i, str(i)) for i in range(3)), False

    def tickets() -> Iterator[Ticket | None]:
        while free or not ended:
            yield free.popleft() if free else None

    feed = Feed(tickets(), submit, ahead=3)
    assert feed.take(2, wait=False) == []
    pool[0].set_result("a")
    pool[2].set_result("c")
    assert feed.take(3, wait=False) == [(Ticket(0, 0, "0"), "a")]  # in order: 1 is not there yet
    assert feed.take(3, wait=False) == []
    pool[1].set_result(RowOutcome(error="e"))
    assert feed.take(3, wait=False) == [(Ticket(0, 2, "2"), "c")]
    assert feed.settled == [(Ticket(0, 1, "1"), RowOutcome(error="e"))]
    feed.settled.clear()
    assert feed.take(3) == []  # others have the rest, but two rows have not come back
    feed.back([Ticket(0, 0, "0"), Ticket(0, 2, "2")])
    free.append(Ticket(0, 3, "3"))
    assert feed.take(3, wait=False) == []
    pool[3].set_result("d")
    assert feed.take(3) == [(Ticket(0, 3, "3"), "d")]
    ended = True
    assert feed.take(3) is None


def test_of_a_nodes_processes_one_loads_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inside: list[int] = []

    def load(number: int) -> None:
        with first_load("a model"):
            inside.append(number)
            time.sleep(0.05)
            inside.append(number)

    threads = [threading.Thread(target=load, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside[0] == inside[1]  # the others came when it was done, and then all at once
    with pytest.raises(EngineError), first_load("another model"):
        raise EngineError("failed")
    assert sorted(p.suffix for p in tmp_path.glob("*/*")) == [".done", ".lock", ".lock"]
    with first_load(None):
        pass

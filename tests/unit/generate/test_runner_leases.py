"""Runners beside others: shards under leases, work that processes prepare ahead, one first load a machine."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.data.table.dataset import Dataset, create_column
from ccr_dist.errors import ConfigError, DataError, EngineError
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.lease import Lease, Leases, Traces
from ccr_dist.generate.load_once import first_load
from ccr_dist.generate.processor import Feed, RowOutcome, Ticket
from ccr_dist.generate.runner import run
from tests.jobs import Shout, captions, column_files, content
from tests.running import XX, shout


def leased(dataset: Dataset, shard: int) -> Lease:
    """As another living worker would hold it."""
    plan = {**Translate(Shout(), "caption.en").plan(), "inputs": {"caption.en": dataset.column("caption.en").digest}}
    column = create_column(dataset, XX, kind="texts", extension="json", plan=plan, provenance={})
    lease = Leases(column.folder, 60).take(dataset.shards[shard], Traces(), of=dataset.shard_rows[shard])
    assert lease is not None
    return lease


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

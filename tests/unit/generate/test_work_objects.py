"""Jobs whose leases, journals and commits are objects in a store: only conditional creation decides."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ccr_dist.cluster import checks
from ccr_dist.cluster.pipeline import load_plan
from ccr_dist.cluster.progress import Progress, progress
from ccr_dist.data.storage import remote
from ccr_dist.data.storage.object_store import Store
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.stores import push as push_module
from ccr_dist.data.table.stores.push import push
from ccr_dist.data.table.verify import verify
from ccr_dist.declare import Table, Uses
from ccr_dist.errors import ConfigError, DataBudgetError, DataError
from ccr_dist.generate.lease import Leases
from ccr_dist.generate.processor import RowOutcome
from ccr_dist.generate.shard_work import Lost, Work
from ccr_dist.generate.status import status
from tests.running import XX, engine, shout
from tests.store_jobs import URL, Killed, bench, empty, made, overtaken, taken, there


def test_a_job_in_a_store_makes_the_bytes_of_one_in_a_folder(plain: dict[str, bytes]) -> None:
    summary = made()
    assert (summary.done, summary.bad, summary.complete) == (2, 1, True)
    assert there() == plain and "000000.errors.jsonl" in plain
    assert verify(URL) == []
    (column,) = (one for one in status(URL)["columns"] if one["column"] == XX)
    assert column["shards"]["done"] == 2 and column["rows"] == {"total": 3, "done": 3, "bad": 1}
    assert made().skipped == 2
    with pytest.raises(DataError, match=rf"{URL}/{XX}/column\.json: the column was made under another plan"):
        shout(Dataset(URL), engine=engine(version="2"))


def test_a_store_without_the_condition_is_refused(
    tmp_path: Path, plain: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tmp_path / "d", f"file://{tmp_path}/store", columns=["caption.en"])
    with pytest.raises(ConfigError, match=r"its client does not create objects on the condition"):
        shout(Dataset(f"file://{tmp_path}/store"))
    real = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda fs, path, value, mode="overwrite": real(fs, path, value))
    before = MemoryFileSystem.store["/bucket/toy/dataset.json"].getvalue()
    with pytest.raises(ConfigError, match=rf"{URL}/dataset\.json: could be created a second time: this store ignores"):
        made()
    assert MemoryFileSystem.store["/bucket/toy/dataset.json"].getvalue() == before and not there()


def test_a_shard_that_is_lost_in_the_store_is_named_and_nothing_is_removed(plain: object) -> None:
    made()
    before = there()
    del MemoryFileSystem.store[f"/bucket/toy/{XX}/000000.tar"]
    remote.look_again()
    with pytest.raises(DataError, match=rf"{URL}/{XX}/000000\.tar: missing.*remove {URL}/{XX}/000000\.json, "):
        made()
    assert there() == {name: data for name, data in before.items() if name != "000000.tar"} or "jobs/" in str(there())
    said = status(URL, column=XX)["columns"][0]["advice"]
    assert any("The same command says what to remove in the store" in line for line in said)
    for name in ("000000.json", "000000.index.json"):
        Store(f"{URL}/{XX}").remove([name])
    made()
    assert there() == before


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Just before (even) or after (odd) the n-th request that changes the store. What is returned counts them."""
    calls, real = [0], Store._do

    def do(self: Store, what: str, call: Callable[[Any, str], Any]) -> Any:
        if calls[0] > number:
            raise Killed
        if call.__name__ not in ("put", "rm", "write"):
            return real(self, what, call)
        calls[0] += 2
        if calls[0] - 2 == number:
            calls[0] += 1
            raise Killed
        result = real(self, what, call)
        if calls[0] - 1 == number:
            raise Killed
        return result

    monkeypatch.setattr(Store, "_do", do)
    return calls


def killed_everywhere(plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int) -> int:
    number = 0
    # Of the killed worker, which beats so seldom that no heartbeat is among the requests that are counted.
    monkeypatch.setattr(Leases, "_length", lambda self, shard, generation: 0.02)
    while True:
        empty()
        push(tmp_path / "d", URL, columns=["caption.en"])
        with monkeypatch.context() as patch:
            kill_at(patch, number)
            try:
                made(batch=1, lease_s=20.0)
                return number
            except Killed:
                pass
        remote.look_again()
        made(batch=1, lease_s=0.02)
        assert there() == plain, f"killed at {number}"
        number += step


def test_killed_at_a_request_the_next_one_makes_the_same(
    plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert killed_everywhere(plain, monkeypatch, tmp_path, 7) > 50


@pytest.mark.slow
def test_killed_at_every_request_the_next_one_makes_the_same(
    plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert killed_everywhere(plain, monkeypatch, tmp_path, 1) > 50


def test_a_worker_that_was_overtaken_commits_nothing(plain: object) -> None:
    stale, first = taken()
    first.keep([(0, RowOutcome(["OF THE FIRST"]))])
    second = overtaken(first)
    assert second.outcomes == {0: RowOutcome(["OF THE FIRST"])}
    first.keep([(1, RowOutcome(["LATE"]))])  # it does not know yet
    with pytest.raises(Lost):
        stale.commit(first, lambda: 0, {})
    assert not [name for name in there() if "tar" in name]
    third = overtaken(second)  # what came late counts for nobody
    assert third.missing == [1]
    first.close()
    third.keep([(1, RowOutcome(["OF THE THIRD"]))])
    own = bench()
    assert own.commit(third, lambda: 0, {})
    second.close()
    assert sorted(there()) == ["000000.index.json", "000000.json", "000000.tar"]
    assert Dataset(URL).column(XX).value(0, 1) == ["OF THE THIRD"]


def test_what_a_worker_creates_after_all_is_over_is_removed(plain: object) -> None:
    stale, first = taken()
    second = overtaken(first)
    second.keep([(row, RowOutcome(["x"])) for row in (0, 1)])
    bench().commit(second, lambda: 0, {})
    before = there()
    first.keep([(0, RowOutcome(["LATE"]))])
    first.lease.beat(1, 0)
    with pytest.raises(Lost):
        stale.commit(first, lambda: 0, {})
    assert there() != before
    first.close()
    assert there() == before
    first.keep([(1, RowOutcome(["LATE"]))])  # and now it is killed: whoever comes next cleans up
    shout(Dataset(URL))
    assert not [name for name in there() if name.startswith("jobs/")]


def test_a_commit_that_had_begun_is_finished_as_it_is(plain: object) -> None:
    """The owner sleeps between its word and the payload. Its bad row is not tried again: its payload may still come."""
    stale, first = taken()
    first.keep([(0, RowOutcome(["a"])), (1, RowOutcome(error="bad"))])
    assert first.lease.claim()
    second = overtaken(first)
    assert second.decided and second.missing == []
    third = overtaken(second)  # the second died, too
    assert third.decided and third.missing == []
    assert stale.target.commit(0, [stale.target.encode(["a"]), None])  # it wakes
    assert not bench().commit(third, lambda: 0, {})
    column = Dataset(URL).column(XX)
    assert [column.value(0, row) for row in (0, 1)] == [["a"], None]
    assert json.loads(there()["000000.errors.jsonl"]) == {"key": "0-1", "error": "bad"}


def test_the_fence_does_not_rest_on_listings(plain: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was overtaken, and whose listings are those from before, cannot begin to commit."""
    stale, first = taken()
    before = stale.place.look()
    successor = bench(lease_s=0.0)
    lease = successor.leases.take(first.name, successor.leases.look(first.name), of=2)
    assert lease is not None
    successor.place.close_below(first.name, lease.generation)
    monkeypatch.setattr(first.lease._place, "look", lambda shard=None: before)
    with pytest.raises(Lost):
        stale.commit(first, lambda: 0, {})


def test_what_a_reader_has_not_listed_yet_is_not_lost(plain: object) -> None:
    """The mirror is shared: a record may come into it after the listing that a reader relies on for a minute."""
    assert Dataset(URL).column("caption.en").missing() == []
    one, work = taken()
    work.keep([(row, RowOutcome(["x"])) for row in (0, 1)])
    assert one.commit(work, lambda: 0, {})
    column = Dataset(URL).column(XX)
    assert column.lost() == {} and column.finished() == {0}


@pytest.mark.parametrize("named", [URL, "memory://bucket", None])
def test_verify_names_the_command_that_makes_the_rest(
    plain: object, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["/usr/bin/ccr-dist", "translate", *([named] if named else []), "--engine", "shout", "--to", "xx"]
    monkeypatch.setattr(sys, "argv", command)
    one, work = taken()
    work.keep([(row, RowOutcome(["x"])) for row in (0, 1)])
    one.commit(work, lambda: 0, {})
    bench().take(1)
    (problem,) = verify(URL, fast=True)
    remedy = f"ccr-dist translate {named} --engine shout --to xx" if named else f"ccr-dist shards push FOLDER {URL}"
    assert problem.what == f"1 of 2 shards are not finished: 000001; to make them: {remedy}"


def test_a_shard_that_a_job_in_the_store_makes_is_not_pushed(plain: object, tmp_path: Path) -> None:
    shout(Dataset(tmp_path / "d"), "caption.de.shout")
    _, work = taken()
    before = there()
    with pytest.raises(DataError, match=rf"{URL}/{XX}/jobs/000000\.lease\.1: a job in the store makes this shard"):
        push(tmp_path / "d", URL, columns=[XX])
    assert {name: data for name, data in there().items() if name in before} == before and "000000.tar" not in there()
    assert push(tmp_path / "d", URL, columns=["caption.de.shout"])[0].shards == 2
    work.close()
    assert push(tmp_path / "d", URL)[0].shards == 2
    assert made().complete and verify(URL) == []


@pytest.mark.parametrize("until", ["it has ended", "it has a lease"])
def test_a_job_that_begins_while_its_shard_is_pushed_keeps_what_it_makes(
    plain: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    real, began = push_module._require_free, list[str]()

    def looked(target: Store, column: Column, shard: int) -> None:
        real(target, column, shard)
        if shard == 0 and not began:
            began.append(column.name)
            one, work = taken()
            if until == "it has ended":
                work.keep([(0, RowOutcome(["x", "y"])), (1, RowOutcome(["z", "z"]))])
                assert one.commit(work, lambda: 0, {})

    monkeypatch.setattr(push_module, "_require_free", looked)
    said = "000000.tar: a job in the store has made this payload" if until == "it has ended" else r"lease\.1: a job in"
    with pytest.raises(DataError, match=said):
        push(tmp_path / "d", URL, columns=[XX])
    monkeypatch.undo()
    remote.look_again()
    assert ("000000.json" in there()) == (until == "it has ended")
    assert began == [XX] and not [wrong for wrong in verify(URL) if "not finished" not in wrong.what]
    assert made(lease_s=0.02).complete and verify(URL) == []  # a payload without a record is the job's, too


def test_status_and_progress_tell_of_work_in_the_store(plain: object) -> None:
    _, first = taken()
    first.keep([(0, RowOutcome(["x"]))])
    first.beat()
    (seen,) = (one for one in status(URL, column=XX)["columns"])
    assert seen["shards"]["working"] == 1 and seen["shards"]["waiting"] == 1 and seen["rows"]["done"] == 1
    assert seen["leases"][0] | {"age_s": 0, "since": 0} == {
        "shard": "000000", "generation": 1, "worker": first_worker(first), "since": 0, "stuck": 0, "beat": 2, "rows": 1,
        "of": 2, "tokens": 0, "age_s": 0, "state": "working",
    }  # fmt: skip
    uses = Uses(fills=Table(URL, XX))
    assert progress(uses) == Progress("shards", 0, 2, 1)
    second = overtaken(first)
    assert progress(uses) == Progress("shards", 0, 2, 1)
    second.keep([(1, RowOutcome(["y"]))])
    second.close()
    assert progress(uses) == Progress("shards", 0, 2, 2)
    (seen,) = (one for one in status(URL, column=XX)["columns"])
    assert seen["shards"]["begun"] == 1 and seen["shards"]["leased"] == 0
    shout(Dataset(URL))
    assert progress(uses) == Progress("shards", 2, 2, 0)


def first_worker(work: Work) -> str:
    about, _ = work.lease._place.read_lease(work.name, 1) or ({}, {})
    return str(about["worker"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"{URL} --engine shout --to de", None),
        (f"{URL} --engine shout --to de --from caption.fr", rf"no step before makes caption\.fr, and {URL}: no column"),
    ],
)
def test_a_pipeline_whose_job_works_in_a_store_is_checked_there(
    plain: object, tmp_path: Path, words: str, said: str | None
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        f"name: p\nfolder: {tmp_path}/runs\nsteps:\n  s:\n    command: translate {words} --column caption.de\n"
    )
    if said is None:
        assert checks.check(load_plan(path), free_disk_gib=0).notes == []
        return
    with pytest.raises(ConfigError, match=said):
        checks.check(load_plan(path), free_disk_gib=0)


def test_a_row_over_which_workers_die_is_refused_by_the_name_of_the_lease(plain: object) -> None:
    for _ in range(3):
        work = bench(lease_s=0.0).take(0)
        assert work is not None
        work.lease.begin(0)
    with pytest.raises(DataBudgetError, match=rf"remove {URL}/{XX}/jobs/000000\.lease\.3 to have them tried again"):
        bench(lease_s=0.0).take(0)

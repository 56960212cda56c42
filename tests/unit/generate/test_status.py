"""What `jobs status` tells from the files of a column, and that it changes none of them."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.data.table.dataset import Column, Dataset, create_column
from ccr_dist.errors import DataError
from ccr_dist.generate.status import status
from ccr_dist.generate.status_table import render
from ccr_dist.generate.traces.files import boot_id, read_lease
from tests.jobs import captions

NAME = "caption.xx.slow"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Ten shards of two rows, of which a job has made the first three."""
    dataset = captions(tmp_path / "d" / "train", rows=[2] * 10)
    plan = {"processor": "translate", "engine": {"engine": "slow"}, "inputs": {"caption.en": "0"}}
    about = {"command": "ccr-dist translate d --engine slow"}
    column = create_column(dataset, NAME, kind="texts", extension="json", plan=plan, provenance=about)
    for shard in range(3):
        finish(column, shard)
    return dataset


def finish(column: Column, shard: int, **stats: Any) -> None:
    column.commit(shard, [column.encode(["x"])] * 2)
    column.write_stats(shard, {"rows": 2, "resumed": 0, "counts": {}, **stats})


Leaser = Callable[..., IO[bytes]]


@pytest.fixture
def lease(dataset: Dataset) -> Iterator[Leaser]:
    """Makes a lease that a live process holds. held=False: its process is gone; old_s: age of its last beat; boot: of
    another machine.
    """
    files = []

    def make(
        shard: int, generation: int = 1, held: bool = True, old_s: float = 0, boot: str | None = None, **more: Any
    ) -> IO[bytes]:
        path = dataset.root / NAME / f"{dataset.shards[shard]}.lease.{generation}"
        one = {
            "worker": "n1:7:ab",
            "host": "n1",
            "pid": 7,
            "boot": boot or boot_id(),
            "since": time.time() - 100 - old_s,
            "stuck": 0,
        }
        beat = {"beat": 1, "rows": 1, "of": 2, "tokens": 0}
        one, beat = ({k: more.get(k, v) for k, v in line.items()} for line in (one, beat))
        path.write_text(json.dumps(one) + "\n" + json.dumps(beat).ljust(120) + "\n")
        os.utime(path, (time.time() - old_s,) * 2)
        files.append(file := path.open("rb+"))
        if held:
            fcntl.flock(file, fcntl.LOCK_EX)
        return file

    yield make
    for file in files:
        file.close()


def only(dataset: Dataset, **more: Any) -> dict[str, Any]:
    [column] = status(dataset.root, pause_s=0, **more)["columns"]
    return dict(column)


def test_shards_and_rows(dataset: Dataset, lease: Leaser) -> None:
    lease(3)
    lease(4, generation=2, worker="n2:8:cd")
    folder = dataset.root / NAME
    (folder / "000004.journal.2").touch()
    (folder / "000005.journal.1").touch()  # stopped on request
    (folder / "000001.errors.jsonl").write_text('{"key": "1-0", "error": "a"}\n{"key": "1-1", "error": "b"}\n')
    (folder / "000005.errors.jsonl").write_text('{"key": "5-0", "error": "of an earlier try"}\n')
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    column = only(dataset)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert column["shards"] == {
        "total": 10,
        "done": 3,
        "leased": 2,
        "waiting": 5,
        "begun": 1,
        "lost": 0,
        "working": 2,
        "silent": 0,
        "dead": 0,
    }
    assert column["rows"] == {"total": 20, "done": 8, "bad": 2}
    assert [(one["shard"], one["generation"], one["worker"], one["rows"]) for one in column["leases"]] == [
        ("000003", 1, "n1:7:ab", 1),
        ("000004", 2, "n2:8:cd", 1),
    ]
    assert column["advice"] == []


def test_dead_silent_and_working(dataset: Dataset, lease: Leaser) -> None:
    lease(3, held=False)  # this machine, and nobody holds the lock
    lease(4, held=False, boot="another")  # what its lock says here means nothing
    lease(5, old_s=70, stuck=2)  # alive, as the lock tells, but stopped
    lease(6, held=False, boot="another", old_s=70, worker="n3:9:ef")
    lease(7, generation=1, held=False)
    lease(7, generation=2)  # taken over already
    column = only(dataset)
    assert [one["state"] for one in column["leases"]] == ["dead", "working", "silent", "silent", "working"]
    dead, silent, stuck = column["advice"]
    assert dead.startswith("shard 000003 (n1:7:ab): the worker is gone")
    assert silent.startswith("shards 000005 (n1:7:ab), 000006 (n3:9:ef): no beat for long")
    assert stuck.startswith("shard 000005: 2 workers died on it")


def test_a_beat_between_two_looks_is_a_sign_of_life(
    dataset: Dataset, lease: Leaser, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = lease(3, boot="another", old_s=86_400)  # the clock of this machine, or of the file system, is a day off
    lease(4, boot="another", old_s=86_400)

    def pause(seconds: float) -> None:
        content = Path(file.name).read_text().replace('"beat": 1', '"beat": 2')
        Path(file.name).write_text(content)
        os.utime(file.name, (time.time() - 86_399,) * 2)

    monkeypatch.setattr(time, "sleep", pause)
    assert [one["state"] for one in only(dataset)["leases"]] == ["working", "silent"]


def test_nobody_works(dataset: Dataset) -> None:
    assert only(dataset)["advice"] == ["nobody works on it. To resume: ccr-dist translate d --engine slow"]


def test_rate_of_those_who_work_by_their_own_clocks(dataset: Dataset, lease: Leaser) -> None:
    column = dataset.column(NAME)
    for shard, worker, began in (
        (3, "n1:7:ab", 1000),
        (4, "n1:7:ab", 1005),
        (5, "n2:8:cd", 99_000_000),
        (6, "gone", 1000),
    ):
        finish(column, shard, worker=worker, began=began, ended=began + 5, counts={"tokens": 50})
    finish(column, 7, worker="n1:7:ab", began=1010, ended=1020, resumed=2)  # nothing of it is this worker's
    lease(8, generation=2)
    lease(9, generation=2, worker="n2:8:cd")
    found = only(dataset)
    assert found["rows_per_s"] == pytest.approx(4 / 20 + 2 / 5) and found["tokens_per_s"] == pytest.approx(
        100 / 20 + 50 / 5
    )
    assert found["eta_s"] == round(2 / 0.6)


def test_rate_before_the_first_shard_is_done(dataset: Dataset, lease: Leaser) -> None:
    lease(3, tokens=300)
    found = only(dataset)
    assert found["rows_per_s"] == pytest.approx(1 / 100, rel=0.05) and found["tokens_per_s"] == pytest.approx(
        3, rel=0.05
    )


def test_which_columns(dataset: Dataset) -> None:
    assert [one["column"] for one in status(dataset.root.parent)["columns"]] == [NAME]
    with pytest.raises(DataError, match=r"no column 'caption\.xx\.slo'; did you mean"):
        status(dataset.root, column="caption.xx.slo")
    with pytest.raises(DataError, match=r"caption\.en: made by no job"):
        status(dataset.root, column="caption.en")


def test_a_lease_of_zeros_is_shown(dataset: Dataset, lease: Leaser) -> None:
    Path(lease(3, held=False).name).write_bytes(bytes(100))  # a crash of the machine
    [one] = only(dataset)["leases"]
    assert one["worker"] == "?" and one["state"] == "working"


def command(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["jobs", "status", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return " ".join(done.output.split())


def test_the_command(dataset: Dataset, lease: Leaser) -> None:
    lease(3, rows=0, tokens=42)
    lease(4, held=False)
    shown = command(dataset.root)
    assert "3 of 10 shards done, 2 leased, 5 waiting" in shown and "7 of 20 rows" in shown and "slow" in shown
    assert "n1:7:ab 000003" in shown and "0 of 2 42" in shown and "working" in shown and "dead" in shown
    assert json.loads(command(dataset.root, "--json"))["columns"][0]["shards"]["dead"] == 1


def test_watching_ends_when_all_is_done(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    column = dataset.column(NAME)

    def pause(seconds: float) -> None:
        assert seconds == 0.5
        for shard in range(3, 10):
            finish(column, shard)

    monkeypatch.setattr(time, "sleep", pause)
    shown = command(dataset.root, "--watch", 0.5)
    assert "3 of 10 shards done" in shown and shown.endswith("complete: 10 shards, 20 rows")


@pytest.mark.parametrize("how", ["gone", "cut", "no index"])
def test_shards_that_were_done_and_are_lost_are_not_complete(dataset: Dataset, how: str) -> None:
    column = dataset.column(NAME)
    for shard in range(3, 10):
        finish(column, shard)
    path = column.path(4, "index" if how == "no index" else "payload")
    path.write_bytes(path.read_bytes()[:100]) if how == "cut" else path.unlink()
    done = CliRunner().invoke(app, ["jobs", "status", str(dataset.root)])
    assert (
        "complete" not in done.stdout
        and "9 of 10 shards done" in done.stdout
        and "1 were done, but are damaged or gone" in done.stdout
    )
    assert (
        "shards 000004 were done and are lost: " in done.stdout and "ccr-dist translate d --engine slow" in done.stdout
    )
    assert status(dataset.root)["columns"][0]["shards"]["lost"] == 1


VALUES: tuple[Any, ...] = (None, [1], {"a": 1}, "x", 1.5, -1)


def test_a_lease_of_anything_else_says_nothing(dataset: Dataset, lease: Leaser) -> None:
    path = Path(lease(3, suspect={"row": 1, "deaths": 1}).name)
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:2]]
    wrong = [b"", b"\x00\xff\n\x00", b"[]\n[]\n", b"3\n3\n", b"{}\n{}\n", b"{}"]
    for number, line in enumerate(lines):
        for other in ({**line, key: value} for key in (*line, "suspect", "at", "begun") for value in VALUES):
            both = [json.dumps(other if number == n else each) for n, each in enumerate(lines)]
            wrong.append("\n".join((*both, "")).encode())
    for content in wrong:
        path.write_bytes(content)
        assert only(dataset)["shards"]["leased"] == 1
        assert read_lease(path) is not None
        render(status(dataset.root, pause_s=0))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ["worker", "began", "ended", "rows", "resumed", "counts"])
def test_figures_of_anything_else_are_left_out(dataset: Dataset, lease: Leaser, key: str, value: Any) -> None:
    lease(3, rows=1)
    stats = {"worker": "n1:7:ab", "began": 1.0, "ended": 2.0, "rows": 2, "resumed": 0, "counts": {"tokens": 1}}
    dataset.column(NAME).write_stats(0, {**stats, key: value})
    render(status(dataset.root, pause_s=0))

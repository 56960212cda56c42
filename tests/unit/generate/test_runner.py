"""The runner within one process: resume, budget, plans, shares, stop. Kills and races with real processes:
`procs/test_jobs_kill.py`.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccr_dist.data.table.dataset import Column, Dataset, create_column, create_dataset
from ccr_dist.errors import DataBudgetError, DataError, EngineError
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.processor import Processor, RowOutcome
from ccr_dist.generate.runner import Budget, run
from ccr_dist.generate.text import filters
from tests.jobs import Shout, captions, column_files, content
from tests.running import XX, engine, shout


def test_a_column_is_made_once_and_reused(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(3, 4, 5))
    first = shout(dataset)
    assert (first.done, first.skipped, first.rows, first.resumed_rows, first.complete) == (3, 0, 12, 0, True)
    assert first.counts == {"captions": 24}
    column = dataset.column(XX)
    column.require_complete()
    assert column.value(2, 4) == ["2-4 ONE", "2-4 TWO"]
    assert column_files(column.folder) == {"column.json"} | {
        f"{i:06d}{s}" for i in range(3) for s in (".tar", ".json", ".index.json", ".stats.json")
    }
    stats = json.loads(column.path(1, "stats").read_text())
    assert (stats["rows"], stats["bad"], stats["counts"]) == (4, 0, {"captions": 8})
    before = content(column.folder)
    idle = Shout()
    again = shout(dataset, engine=idle)
    assert (again.done, again.skipped, again.rows, again.complete) == (0, 3, 0, True)
    assert idle.loaded == 0 and idle.calls == []  # nothing to do: no model is loaded
    assert content(column.folder) == before


@pytest.mark.parametrize(
    "how", ["gone", "cut", "no index", "no record", "only the record", "record torn", "record and payload torn"]
)
def test_what_is_lost_of_a_column_is_made_again_by_the_same_command(tmp_path: Path, how: str) -> None:
    dataset = captions(tmp_path / "d", rows=(3, 4))
    shout(dataset, engine=engine(fail="1-2"))
    before = content(dataset.root / XX)
    column = dataset.column(XX)
    paths = {what: column.path(1, what) for what in ("payload", "index", "record")}
    if how == "cut":
        paths["payload"].write_bytes(paths["payload"].read_bytes()[:-512])
    for what in {
        "gone": ["payload"],
        "no index": ["index"],
        "no record": ["record"],
        "only the record": ["payload", "index"],
    }.get(how, []):
        paths[what].unlink()
    if "torn" in how:
        paths["record"].write_bytes(paths["record"].read_bytes().replace(b'"nulls": 1', b'"nulls": 0'))
    if how == "record and payload torn":
        paths["payload"].write_bytes(paths["payload"].read_bytes().replace(b"[", b"{"))
    again = shout(Dataset(dataset.root), engine=engine(fail="1-2"))
    assert (again.done, again.skipped, again.complete) == (1, 1, True)
    assert {name: data for name, data in content(dataset.root / XX).items() if not name.endswith(".damaged")} == before


def test_a_shard_that_somebody_finished_meanwhile_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = captions(tmp_path / "d")
    shout(dataset)
    looked, looks = Column.finished, iter([set[int]()])
    # an old look
    monkeypatch.setattr(Column, "finished", lambda self: next(looks, looked(self)) if self.name == XX else looked(self))
    idle, before = Shout(), content(dataset.root / XX)
    assert shout(dataset, engine=idle, lease_s=0.4).skipped == 2
    assert idle.calls == []
    assert content(dataset.root / XX) == before


def test_plan_and_provenance_say_how_it_was_made(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d")
    shout(dataset)
    column = dataset.column(XX)
    assert column.plan == {
        "processor": "translate",
        "engine": {"engine": "shout", "version": "1"},
        "filters": filters.VERSION,
        "inputs": {"caption.en": dataset.column("caption.en").digest},
    }
    assert {"ccr_dist", "python", "command"} <= column.provenance.keys()


def test_batches_cross_shard_borders(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(3, 4, 1, 5))
    used = Shout()
    shout(dataset, engine=used, batch=5)
    assert [len(call) // 2 for call in used.calls] == [5, 5, 3]


def test_another_plan_is_refused_with_the_difference(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d")
    shout(dataset)
    before = content(dataset.root / XX)
    with pytest.raises(DataError, match=r"plan\.engine\.version: there '1', asked '2'"):
        shout(dataset, engine=engine(version="2"))
    assert content(dataset.root / XX) == before
    assert shout(dataset, "caption.xx.shout2", engine=engine(version="2")).done == 2


def test_a_column_of_an_earlier_versions_rules_is_refused_by_name_and_stays(tmp_path: Path) -> None:
    class Ruled(Translate):
        filters: str | None = None

        def plan(self) -> dict[str, Any]:
            plan = {key: value for key, value in super().plan().items() if key != "filters"}
            return {**plan, "filters": self.filters} if self.filters else plan

    dataset = captions(tmp_path / "d")
    run(dataset, Ruled(Shout(), "caption.en"), XX, progress=False)
    before = content(dataset.root / XX)
    Ruled.filters = "2.1"
    with pytest.raises(
        DataError, match=r"filtered by rule 0, they now are by rule 2\.1 .*nothing is to be done if it is complete"
    ):
        run(Dataset(dataset.root), Ruled(Shout(), "caption.en"), XX, progress=False)
    assert content(dataset.root / XX) == before
    Dataset(dataset.root).column(XX).require_complete()


def test_incomplete_or_missing_inputs_are_refused(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d")
    with pytest.raises(DataError, match=r"no column 'caption\.de'"):
        run(dataset, Translate(Shout(), "caption.de"), XX, progress=False)
    begun = create_column(dataset, "caption.fr", kind="texts", extension="json", plan={}, provenance={})
    begun.commit(0, [begun.encode(["a"])] * 3)
    with pytest.raises(DataError, match=r"1 of 2 shards are missing \(000001\)"):
        run(dataset, Translate(Shout(), "caption.fr"), XX, progress=False)
    assert not (dataset.root / XX).exists()


def test_a_dead_engine_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(6, 6))
    plain = captions(tmp_path / "plain", rows=(6, 6))
    shout(plain, batch=2)
    with pytest.raises(EngineError, match="gone"):
        shout(dataset, engine=engine(die="1-3"), batch=2)
    assert dataset.column(XX).finished() == {0}
    used = Shout()
    second = shout(dataset, engine=used, batch=2)
    assert (second.done, second.skipped, second.resumed_rows, second.rows) == (1, 1, 2, 4)
    assert [text for call in used.calls for text in call] == [f"1-{i} {n}" for i in range(2, 6) for n in ("one", "two")]
    assert content(dataset.root / XX) == content(plain.root / XX)


def test_too_few_results_are_an_engine_error_and_keep_nothing(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d")
    with pytest.raises(EngineError, match=r"caption\.en: the engine gave 9 translations for 10 captions"):
        shout(dataset, engine=engine(lose=1))

    class Short(Numbers):
        def process(self, items: list[Any]) -> list[RowOutcome]:
            return super().process(items)[1:]

    with pytest.raises(EngineError, match=r"Short: 4 results for 5 items"):
        run(dataset, Short(), "feature.n", progress=False)
    assert shout(dataset).rows == 5


def test_bad_items_are_null_rows_with_a_reason(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(5, 5))
    summary = shout(dataset, engine=engine(fail="0-3"), budget=Budget(items=1, fraction=0))
    assert (summary.done, summary.bad) == (2, 1)
    column = dataset.column(XX)
    assert column.value(0, 3) is None
    assert column.value(0, 4) == ["0-4 ONE", "0-4 TWO"]
    assert column.present(0).tolist() == [True, True, True, False, True]
    lines = [json.loads(line) for line in (column.folder / "000000.errors.jsonl").read_text().splitlines()]
    assert lines == [{"key": "0-3", "error": "refused: 0-3 one"}]
    assert not (column.folder / "000001.errors.jsonl").exists()
    assert json.loads(column.path(0, "stats").read_text())["bad"] == 1


def test_budget_ends_the_run_and_bad_items_are_tried_again(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(10, 10))
    with pytest.raises(DataBudgetError, match=r"2 bad items, 1 are tolerated[\s\S]*0-1: refused: 0-1 one"):
        shout(dataset, engine=engine(fail="-1 "), budget=Budget(items=1, fraction=0), batch=15)
    assert dataset.column(XX).finished() == set()
    mended = Shout()
    summary = shout(dataset, engine=mended)
    assert (summary.resumed_rows, summary.rows, summary.bad) == (13, 7, 0)
    assert dataset.column(XX).value(0, 1) == ["0-1 ONE", "0-1 TWO"]
    assert not list((dataset.root / XX).glob("*.errors.jsonl"))


@pytest.mark.parametrize(
    ("budget", "limit"), [(Budget(3, 0), 3), (Budget(0, 0.1), 20), (Budget(30, 0.1), 30), (Budget(0, 0), 0)]
)
def test_budget_is_the_larger_of_both(budget: Budget, limit: int) -> None:
    assert budget.limit(200) == limit


def test_null_rows_need_no_engine(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(2, 2), values={(0, 0): None, (0, 1): None, (1, 0): ["", "a b"]})
    used = Shout()
    summary = shout(dataset, engine=used, batch=1)
    assert (summary.done, summary.bad) == (2, 0)
    column = dataset.column(XX)
    assert [column.value(0, 0), column.value(0, 1), column.value(1, 0)] == [None, None, ["", "A B"]]
    assert [call for call in used.calls] == [["a b"], ["1-1 one", "1-1 two"]]


def test_shares_are_disjoint_and_complete(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(1, 2, 3, 4, 5))
    used = [Shout() for _ in range(3)]
    summaries = [shout(dataset, engine=used[i], share=(i, 3)) for i in range(3)]
    assert [(s.shards, s.done) for s in summaries] == [(2, 2), (2, 2), (1, 1)]
    texts = [text for one in used for call in one.calls for text in call]
    assert len(texts) == len(set(texts)) == 30
    with pytest.raises(DataError, match="share 3/3"):
        shout(dataset, share=(3, 3))


def test_stop_request_ends_after_the_batch_and_resumes(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(6, 6))

    class Interrupted(Shout):
        def translate(self, texts: list[str]) -> list[str | DataError]:
            if "0-2 one" in texts:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().translate(texts)

    handler = signal.getsignal(signal.SIGTERM)
    summary = shout(dataset, engine=Interrupted(), batch=2)
    assert summary.stopped and not summary.complete
    assert summary.rows == 4  # the batch during which the signal came is kept
    assert signal.getsignal(signal.SIGTERM) is handler
    second = shout(dataset, batch=2)
    assert (second.resumed_rows, second.rows, second.stopped, second.complete) == (4, 8, False, True)


class Numbers(Processor):
    """Two vectors a row, from the key; some rows misbehave."""

    kind, extension, inputs, width = "matrix", "npy", (), 3

    def __init__(self, bad: dict[str, Any] | None = None) -> None:
        self.bad = bad or {}

    def plan(self) -> dict[str, Any]:
        return {"processor": "numbers"}

    def prepare(self, key: str, values: dict[str, Any]) -> Any:
        if key in self.bad and self.bad[key] is None:
            return None
        return key

    def process(self, items: list[Any]) -> list[RowOutcome]:
        return [RowOutcome(self.bad.get(key, np.full((2, 3), sum(map(ord, key)), np.float16))) for key in items]


def test_matrix_columns(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "d", name="toy", split="train", keys=[["a", "b", "c"], ["d"]])
    bad = {"b": np.full((1, 3), np.inf, np.float16), "d": None}
    summary = run(dataset, Numbers(bad), "feature.n", progress=False)
    assert (summary.done, summary.bad) == (2, 1)
    column = dataset.column("feature.n")
    assert np.array_equal(column.value(0, 2), np.full((2, 3), 99))
    assert column.value(0, 1) is None
    assert column.matrix(1)[0].shape == (0, 3)
    assert "finite" in (column.folder / "000000.errors.jsonl").read_text()


def test_matrix_rows_survive_in_the_journal(tmp_path: Path) -> None:
    class Dies(Numbers):
        def process(self, items: list[Any]) -> list[RowOutcome]:
            if "c" in items:
                raise EngineError("gone")
            return super().process(items)

    for name in ("d", "plain"):
        create_dataset(tmp_path / name, name="toy", split="train", keys=[["a", "b", "c"], ["d"]])
    dataset, plain = Dataset.open(tmp_path / "d"), Dataset.open(tmp_path / "plain")
    with pytest.raises(EngineError):
        run(dataset, Dies(), "feature.n", batch=2, progress=False)
    assert run(dataset, Numbers(), "feature.n", progress=False).resumed_rows == 2
    run(plain, Numbers(), "feature.n", progress=False)
    assert content(dataset.root / "feature.n") == content(plain.root / "feature.n")


def test_events(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(2, 2))
    events: list[tuple[str, dict[str, Any]]] = []
    shout(dataset, batch=3, on_event=lambda name, info: events.append((name, info)))
    assert [name for name, _ in events] == ["taken", "taken", "kept", "committed", "kept", "committed"]
    assert [info["rows"] for name, info in events if name == "kept"] == [3, 1]


def test_errors_tell_of_the_payload_that_won(tmp_path: Path) -> None:
    """An overtaken worker woke and published its payload, with a null row, while this one made all rows."""
    dataset = captions(tmp_path / "d", rows=(3,))

    class Late(Shout):
        def translate(self, texts: list[str]) -> list[str | DataError]:
            column = dataset.column(XX)
            payload = column.path(0)
            other = Column(dataset, XX)
            other.commit(0, [other.encode(["A"]), None, other.encode(["C"])])
            for name in ("record", "index"):
                column.path(0, name).unlink()
            assert payload.exists()
            return super().translate(texts)

    summary = shout(dataset, engine=Late(options=Shout.Options(fail="0-2")))
    assert summary.done == 1
    column = Dataset(dataset.root).column(XX)
    assert [column.value(0, row) for row in range(3)] == [["A"], None, ["C"]]
    lines = [json.loads(line) for line in (column.folder / "000000.errors.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["0-1"] and "lost the shard" in lines[0]["error"]
    stats = json.loads(column.path(0, "stats").read_text())
    assert (stats["nulls"], stats["bad"]) == (1, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_input_is_no_fault_of_its_rows(tmp_path: Path, workers: int) -> None:
    """A budget that allows bad items must not turn a shard that cannot be opened into nulls."""
    dataset = captions(tmp_path / "d", rows=(3, 3))
    index = dataset.root / "caption.en" / "000001.index.json"
    index.write_bytes(index.read_bytes()[:20])
    with pytest.raises(DataError, match=r"caption\.en/000001\.index\.json: damaged index"):
        shout(Dataset(dataset.root), workers=workers, budget=Budget(10, 1))
    assert 1 not in Dataset(dataset.root).column(XX).finished()

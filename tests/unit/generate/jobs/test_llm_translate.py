"""Translation by a language model that is asked to: alignment, filters, and which engine a name means."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ccr_dist.data.table.dataset import Dataset, create_column
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError
from ccr_dist.generate.cli import jobs_app
from ccr_dist.generate.jobs.llm_translate import LlmTranslate, make_translation
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.runner import run
from tests.generation import Parrot, ParrotOptions
from tests.jobs import captions


def test_captions_stay_aligned(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", values={(0, 1): ["  a\n b ", "", "third"], (0, 2): None, (1, 0): []})
    answers = {
        "0-0/0": '"Ein Hund."',
        "0-0/1": "Sagt „nein“",
        "0-1/0": "erste\nZeile",
        "0-1/2": "third",
        "1-1/0": "As an AI, I do not",
        "1-1/1": "und und und und und",
    }
    engine = Parrot(ParrotOptions(answers=answers))
    processor = LlmTranslate(engine, "en", "de")
    summary = run(dataset, processor, "caption.de.parrot", progress=False)
    column = dataset.column("caption.de.parrot")
    assert column.value(0, 0) == ["Ein Hund.", "Sagt „nein“"]
    assert column.value(0, 1) == ["erste Zeile", "", "third"]
    assert column.value(0, 2) is None and column.value(1, 0) == []
    assert column.value(1, 1) == ["", ""]
    counts = {name: n for name, n in summary.counts.items() if not name.endswith("tokens")}
    assert counts == {
        "captions": 7,
        "requests": 6,
        "unchanged": 1,
        "empty": 2,
        "refused": 1,
        "repeated": 1,
        "quotes": 1,
    }
    asked = {item["id"]: item["text"] for item in engine.started}
    assert asked["0-1/0"].startswith("Translate this image caption from English into German.") and asked[
        "0-1/0"
    ].endswith("\n\na b")
    assert verify(dataset.root) == []
    plan = column.plan
    assert (plan["processor"], plan["source"], plan["target"]) == ("llm-translate", "en", "de")


def test_one_word_in_a_script_without_spaces_is_kept(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(1,), values={(0, 0): ["dog"]})
    run(
        dataset,
        LlmTranslate(Parrot(ParrotOptions(answers={"0-0/0": "狗"})), "en", "zh"),
        "caption.zh.parrot",
        progress=False,
    )
    assert dataset.column("caption.zh.parrot").value(0, 0) == ["狗"]


def test_descriptions_are_translated_view_by_view(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(1,))
    column = create_column(dataset, "description.x", kind="views", extension="json", plan={}, provenance={})
    column.commit(0, [column.encode({"views": {"scene": "at night", "detail": "a dog"}})])
    for engine, source in (("parrot", "description.x"), ("shout", "description.x")):
        run(dataset, make_translation(engine, "en", "de", {}, source), f"caption.de.{engine}", progress=False)
    assert dataset.column("caption.de.shout").value(0, 0) == ["A DOG", "AT NIGHT"]
    assert "a dog" in dataset.column("caption.de.parrot").value(0, 0)[0]
    assert verify(dataset.root) == []


def test_which_engine_a_name_means() -> None:
    assert isinstance(make_translation("shout", "en", "de", {}, "caption.en"), Translate)
    assert isinstance(make_translation("parrot", "en", "de", {}, "caption.en"), LlmTranslate)
    with pytest.raises(
        ConfigError, match=r"unknown translation engine 'transformers-lm'; did you mean 'transformers-llm'\?.* vllm"
    ):
        make_translation("transformers-lm", "en", "de", {}, "caption.en")
    with pytest.raises(ConfigError, match="'shout' is a translation system"):
        make_translation("shout", "en", "de", {}, "caption.en", prompt="translate")


def test_prompts_and_languages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"language 'xx': the prompt 'translate' needs its name; known are af, "):
        LlmTranslate(Parrot(), "en", "xx")
    (tmp_path / "own.yaml").write_text('views:\n  it:\n    text: "Into Klingon: {text}"\n')
    LlmTranslate(Parrot(), "en", "xx", prompt=str(tmp_path / "own.yaml"))
    (tmp_path / "none.yaml").write_text("views:\n  it: {text: hello}\n")
    with pytest.raises(ConfigError, match=r"needs one view, with the field \{text\}"):
        LlmTranslate(Parrot(), "en", "de", prompt=str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="from 'deu' into 'de': the same language"):
        LlmTranslate(Parrot(), "deu", "de")


def test_the_command_there_and_back(tmp_path: Path) -> None:
    captions(tmp_path / "d")
    done = CliRunner().invoke(
        jobs_app, ["translate", str(tmp_path / "d"), "--engine", "parrot", "--to", "de", "--back", "--quiet"]
    )
    assert done.exit_code == 0, done.output
    dataset = Dataset(tmp_path / "d")
    back = dataset.column("caption.en.back-de-parrot")
    assert (back.plan["source"], back.plan["target"]) == ("de", "en") and back.missing() == []
    assert list(back.plan["inputs"]) == ["caption.de.parrot"]

"""Figures of translated columns: chrF like sacrebleu's own, alignment, there and back; and the way back as a job."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import CHRF
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.data.table.dataset import Dataset, create_column
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.jobs.llm_translate import LlmTranslate
from ccr_dist.generate.jobs.quality import quality
from ccr_dist.generate.jobs.translate import back_column
from ccr_dist.generate.runner import run
from ccr_dist.generate.text.identify import Sample, about
from tests.generation import Parrot, ParrotOptions
from tests.jobs import captions

ENGLISH = [["a red bus", "the bus"], ["two dogs run", " "], ["a cat", "cats"], None]
OPUS = [["ein roter Bus", "der Bus"], ["two dogs run", ""], ["eine Katze", ""], None]
HUMAN = [["ein roter Bus", "Bus"], ["zwei Hunde laufen", "Hunde", "rennende Hunde"], None, ["ein Haus"]]
BACK = [["a red bus", "the bus"], ["two dogs run", ""], ["one cat", ""], None]


def add(
    dataset: Dataset, name: str, values: list[Any], source: str | None = None, shards: tuple[int, ...] = (0, 1)
) -> None:
    plan = {"inputs": {source: "0"}} if source else {}
    column = create_column(dataset, name, kind="texts", extension="json", plan=plan, provenance={})
    for shard in shards:
        column.commit(
            shard, [None if value is None else column.encode(value) for value in values[3 * shard :][: 3 - 2 * shard]]
        )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    values = {(0, 0): ENGLISH[0], (0, 1): ENGLISH[1], (0, 2): ENGLISH[2], (1, 0): ENGLISH[3]}
    dataset = captions(tmp_path / "d" / "train", rows=(3, 1), values=values)
    add(dataset, "caption.de.opus", OPUS, "caption.en")
    return dataset


def test_against_human_captions(dataset: Dataset) -> None:
    add(dataset, "caption.de", HUMAN)
    [one] = quality(dataset.root, "caption.de.opus")
    texts = [*OPUS[0], *OPUS[1]]  # of the rows that have both
    references = [
        ["ein roter Bus", "Bus", *["zwei Hunde laufen"] * 2],
        [None, None, *["Hunde"] * 2],
        [None, None, *["rennende Hunde"] * 2],
    ]
    assert one["chrf"] == round(CHRF().corpus_score(texts, references).score, 2)
    assert (one["human"], one["chrf_captions"], one["rows"], one["captions"], one["nulls"], one["unfinished"]) == (
        "caption.de",
        4,
        3,
        4,  # two are blank
        1,
        0,
    )


def test_what_says_nothing_is_neither_counted_nor_a_reference(dataset: Dataset) -> None:
    add(
        dataset,
        "caption.de.mt",
        [["\u200b", ""], ["zwei Hunde laufen", "\ufeff"], ["eine Katze", "Katzen"], None],
        "caption.en",
    )
    add(dataset, "caption.de", [["ein Bus", ""], ["\u200b"], ["Katze", "\u00a0"], ["ein Haus"]])
    [one] = quality(dataset.root, "caption.de.mt")
    assert (one["rows"], one["captions"], one["nulls"], one["chrf_captions"], one["empty"]) == (2, 3, 2, 2, 0.4)
    assert one["chrf"] == round(CHRF().corpus_score(["\u200b", "eine Katze"], [["ein Bus", "Katze"]]).score, 2)


def test_as_many_human_captions_are_compared_one_by_one(dataset: Dataset) -> None:
    add(dataset, "caption.de", [["der Bus", "ein roter Bus"], None, None, None])  # the other way round
    [one] = quality(dataset.root, "caption.de.opus")
    assert one["chrf"] == round(CHRF().corpus_score(OPUS[0], [["der Bus", "ein roter Bus"]]).score, 2) < 100


def test_against_the_source(dataset: Dataset) -> None:
    [one] = quality(dataset.root, "caption.de.opus")
    assert one["source"] == "caption.en" and one["human"] is None and one["chrf"] is None and one["back_chrf"] is None
    assert (one["identical"], one["empty"]) == (0.2, 0.2)  # of the five captions that are not blank
    assert one["length_ratio"] == round(
        len("ein roter Busder Bustwo dogs runeine Katze") / len("a red busthe bustwo dogs runa catcats"), 3
    )


def test_there_and_back(dataset: Dataset) -> None:
    add(dataset, "caption.bg.from-de", OPUS, "caption.de.opus")  # made from it, but not in the language of the source
    add(dataset, "caption.en.back-de-opus", BACK, "caption.de.opus")
    [one] = quality(dataset.root, "caption.de.opus")
    flat = [[text for row in rows if row for text in row] for rows in (BACK, ENGLISH)]
    flat = [texts[:3] + texts[4:] for texts in flat]  # a blank caption asks for nothing
    assert one["back"] == "caption.en.back-de-opus" and one["back_captions"] == 5
    assert one["back_chrf"] == round(CHRF().corpus_score(flat[0], [flat[1]]).score, 2) < 100


def test_of_a_translated_description(dataset: Dataset) -> None:
    column = create_column(dataset, "description.m", kind="views", extension="json", plan={}, provenance={})
    views = [{"views": {"detail": one[0], "objects": one[1]}} if one else None for one in ENGLISH]
    for shard, values in enumerate((views[:3], views[3:])):
        column.commit(shard, [column.encode(value) for value in values])
    add(dataset, "caption.de.of-m", OPUS, "description.m")
    [one], [other] = quality(dataset.root, "caption.de.of-m"), quality(dataset.root, "caption.de.opus")
    assert one["source"] == "description.m" and one["back"] is None and one["length_ratio"] == other["length_ratio"]


def test_of_what_is_done(dataset: Dataset) -> None:
    add(dataset, "caption.de.half", OPUS, "caption.en", shards=(0,))
    [one] = quality(dataset.root, "caption.de.half")
    assert one["rows"] == 3 and one["unfinished"] == 1


def test_captions_that_do_not_fit_are_not_compared(dataset: Dataset) -> None:
    add(dataset, "caption.de.odd", [["only one"]] * 4, "caption.en")
    with pytest.raises(
        DataError, match=r"caption\.de\.odd/000000 item '0-0' .* 1 captions, but 2 in caption\.en: not made from it"
    ):
        quality(dataset.root, "caption.de.odd")
    with pytest.raises(ConfigError, match=r"--human caption\.it: no dataset"):
        quality(dataset.root, "caption.de.opus", human="caption.it")
    with pytest.raises(DataError, match=r"no column 'caption\.de\.opsu'; did you mean 'caption\.de\.opus'"):
        quality(dataset.root, "caption.de.opsu")


def test_the_command_shows_each_split(dataset: Dataset) -> None:
    captions(dataset.root.parent / "val")  # without the column
    done = CliRunner().invoke(
        app, ["shards", "quality", str(dataset.root.parent), "--column", "caption.de.opus"], catch_exceptions=False
    )
    assert done.exit_code == 0 and "train" in done.output and "20.0%" in done.output
    assert "caption.de.opus; source: caption.en, human: none, back: none" in done.output
    arguments = ["shards", "quality", str(dataset.root.parent), "--column", "caption.de.opus", "--json"]
    figures = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).output)
    assert figures == quality(dataset.root, "caption.de.opus")


def test_name_of_the_way_back() -> None:
    assert back_column("caption.de.opus", "en") == "caption.en.back-de-opus"
    assert back_column("caption.pt_BR.x.y", "en") == "caption.en.back-pt_BR-x.y"
    assert back_column("caption.de", "en") == "caption.en.back-de"


GERMAN = [
    "ein rotes Auto steht vor einem alten Haus",
    "zwei Hunde spielen im frischen Schnee",
    "ein Mann mit Bart trägt einen Hut",
]
PORTUGUESE = [
    "um carro vermelho diante de uma casa velha",
    "dois cães brincam na neve fresca",
    "um homem de barba usa um chapéu",
]


def test_the_language_is_looked_at_and_told(tmp_path: Path) -> None:
    pytest.importorskip("py3langid", reason="py3langid is not installed (extra quality)")
    source = {(0, i): ["a red car stands in front of an old house", "two dogs play in fresh snow"] for i in range(12)}
    dataset = captions(tmp_path / "d" / "train", rows=(12,), values=source)
    for name, texts in {"right": PORTUGUESE, "wrong": GERMAN, "source": [source[0, 0][0], source[0, 0][1]]}.items():
        column = create_column(
            dataset,
            f"caption.pt-BR.{name}",
            kind="texts",
            extension="json",
            plan={"inputs": {"caption.en": "0"}},
            provenance={},
        )
        column.commit(0, [column.encode([texts[i % len(texts)], texts[(i + 1) % len(texts)]]) for i in range(12)])
    right, wrong, unchanged = (
        quality(dataset.root, f"caption.pt-BR.{name}")[0] for name in ("right", "wrong", "source")
    )
    assert right["language"] == 1 and right["warnings"] == [] and right["language_seen"] == {"pt": 1}
    assert wrong["language"] == 0 and wrong["language_seen"] == {"de": 1}
    assert wrong["warnings"][0].startswith(
        "0% of 8 sampled pieces look like Brazilian Portuguese; they look like: German 100%. Was the model told"
    )
    assert (
        unchanged["language_seen"] == {"en": 1}
        and "50.0% of the captions came out as they went in" in unchanged["warnings"][1]
    )
    done = CliRunner().invoke(
        app, ["shards", "quality", str(dataset.root), "--column", "caption.pt-BR.wrong"], catch_exceptions=False
    )
    assert "train: 0% of 8 sampled pieces" in " ".join(done.output.split())


def test_what_the_identifier_cannot_tell_is_left_open(tmp_path: Path) -> None:
    pytest.importorskip("py3langid", reason="py3langid is not installed (extra quality)")
    sample = Sample()
    for text in PORTUGUESE * 10:
        sample.add(text)
    assert about(sample, "tlh")["language"] is None and about(Sample(), "pt")["language"] is None
    many = Sample()
    for number in range(5000):
        many.add(
            f"{number} um carro vermelho diante de uma casa velha e dois cães que brincam na neve fresca com um homem"
        )
    numbers = [int(piece.split()[0]) for piece in many.pieces]
    assert (
        100 < len(numbers) < 256
        and numbers[-1] > 4500
        and {b - a for a, b in itertools.pairwise(numbers)} == {numbers[1]}
    )


def test_loops_and_long_translations_are_told(tmp_path: Path) -> None:
    dataset = captions(
        tmp_path / "d" / "train",
        rows=(2,),
        values={(0, 0): ["a red car", "a dog"], (0, 1): ["no, no, no, no!", "a cat"]},
    )
    add(dataset, "caption.de.mt", [], shards=())
    column = dataset.column("caption.de.mt")
    column.commit(
        0,
        [
            column.encode(["rot rot rot rot rot", "ein Hund, und " + "noch ein anderes Wort dazu, " * 3]),
            column.encode(["Nein, nein, nein, nein!", "Katze"]),
        ],
    )
    [one] = quality(dataset.root, "caption.de.mt", source="caption.en")
    assert (one["repeated"], one["long"]) == (0.25, 0.25)
    assert "25.0% of the captions are loops" in one["warnings"] and any(
        "several times as long" in warning for warning in one["warnings"]
    )


def test_what_the_job_counted_is_shown(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d" / "train", rows=(1,), values={(0, 0): ["a red car", "a dog"]})
    engine = Parrot(ParrotOptions(answers={"0-0/0": "Translation: ein rotes Auto", "0-0/1": "und und und und und"}))
    run(dataset, LlmTranslate(engine, "en", "de"), "caption.de.parrot", progress=False)
    [one] = quality(dataset.root, "caption.de.parrot")
    assert one["filtered"] == {"empty": 1, "preamble": 1, "repeated": 1}
    done = CliRunner().invoke(
        app, ["shards", "quality", str(dataset.root), "--column", "caption.de.parrot"], catch_exceptions=False
    )
    status = CliRunner().invoke(app, ["jobs", "status", str(dataset.root)], catch_exceptions=False)
    assert "filters: repeated 1, preamble 1, empty 1" in " ".join(status.output.split())
    assert "train: counted by the job: empty 1, preamble 1, repeated 1" in " ".join(done.output.split())

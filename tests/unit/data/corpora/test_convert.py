"""Datasets to NRCCR's and MLA's files and back: nothing is lost on the way, and their own readers' rules hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ccr_dist.data.cli import shards_app
from ccr_dist.data.corpora.build import build
from ccr_dist.data.corpora.convert import to_mla, to_nrccr, to_replay
from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow, load_recipe
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.cli import jobs_app
from tests.corpus import picture
from tests.published import write

CAPTIONS: dict[str, dict[str, Any]] = {
    "train": {
        "caption.en": {"11": ["A dog runs.", "The dog #1."], "12": ["A cat."]},
        "caption.de.google": {"11": ["Ein Hund rennt.", "Der Hund."], "12": ["Eine Katze."]},
        "caption.en.back-de-google": {"11": ["A dog is running.", "A dog."], "12": ["One cat."]},
        "description.videochat2": {"11": {"views": {"detail": "The image shows a dog.", "more": "It runs."}}},
    },
    "val": {
        "caption.en": {"21": ["A house."]},
        "caption.de": {"21": ["Ein Haus.", "Häuser"]},
        "caption.en.google": {"21": ["House"]},
    },
    "test": {"caption.en": {"31": ["A ball."]}, "caption.de": {"31": ["Ein Ball."]}},
}


class Toy(Recipe):
    """The captions above; of the pictures one is a PNG."""

    kind: str = "toy"

    def material(self) -> Material:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for split, columns in CAPTIONS.items():
            for name, values in columns.items():
                for key, value in values.items():
                    rows.setdefault(
                        (split, key), {"image": picture(int(key), format="PNG" if key == "12" else "JPEG")}
                    )[name] = value
        names = sorted({name for columns in CAPTIONS.values() for name in columns})
        specs = [ColumnSpec("image", "image", "jpg;png", {}, {})]
        for name in names:
            plan = {"inputs": {"caption.de": "0"}} if name == "caption.en.google" else {}
            splits = tuple(split for split in CAPTIONS if name in CAPTIONS[split])
            specs.append(
                ColumnSpec(name, "views" if name.startswith("description") else "texts", "json", plan, {}, splits)
            )
        return Material({}, specs, [RecipeRow(split, key, values) for (split, key), values in rows.items()])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    build(Toy(name="toy"), tmp_path / "data", workers=0, progress=False)
    return tmp_path / "data"


def values(root: Path, name: str) -> dict[str, Any]:
    dataset = Dataset(root)
    found = {
        key: dataset.column(name).value(s, r)
        for s in range(len(dataset.shards))
        for r, key in enumerate(dataset.keys(s))
    }
    return {key: value for key, value in found.items() if value is not None}


def test_nrccr_files_and_back(dataset: Path, tmp_path: Path) -> None:
    done = to_nrccr(dataset, tmp_path / "out", name="toy")
    texts = {path.name: path.read_text() for path in (tmp_path / "out/TextData").iterdir()}
    assert texts["toytrain_enc.caption.txt"] == "11#enc#0 A dog runs.\n11#enc#1 The dog #1.\n12#enc#0 A cat.\n"
    assert texts["toytrain_google_enc2de.caption.txt"].startswith("11#enc2de#0 Ein Hund rennt.\n")
    assert texts["toytrain_google_enc2de2enc.caption.txt"].endswith("12#enc2de2enc#0 One cat.\n")
    assert texts["toyval_google_de2enc.caption.txt"] == "21#de2enc#0 House\n"
    assert texts["toyval_de.caption.txt"] == "21#de#0 Ein Haus.\n21#de#1 Häuser\n" and len(texts) == 8
    assert (tmp_path / "out/img_id/train_id.txt").read_text() == "11\n12\n"
    assert (tmp_path / "out/description.videochat2/11.txt").read_text() == "The image shows a dog. It runs."
    assert all(path.exists() for path in done.files)

    variables = "{target: de, engine: google, train: toytrain_enc, translated: toytrain_google_enc2de, "
    variables += "back: toytrain_google_enc2de2enc, val: toyval_de, test: toytest_de}"
    overrides = [f"folder={tmp_path / 'out'}", "media=null", f"variables={variables}"]
    build(load_recipe("nrccr", overrides), tmp_path / "back", progress=False)
    for split, name in (
        ("train", "caption.en"),
        ("train", "caption.de.google"),
        ("train", "caption.en.back-de-google"),
        ("val", "caption.de"),
    ):
        assert values(tmp_path / "back" / split, name) == CAPTIONS[split][name]


def test_captions_that_the_lines_cannot_hold(tmp_path: Path) -> None:
    from ccr_dist.data.corpora.formats.writers import write_keyed

    assert write_keyed(tmp_path / "a.txt", "enc", [("x", ["two\r\nlines", " ", "three"])]) == 1
    assert (tmp_path / "a.txt").read_text() == "x#enc#0 two lines\nx#enc#2 three\n"  # the numbers of the others stay
    with pytest.raises(DataError, match=r"the key 'a b' has white space or #"):
        write_keyed(tmp_path / "b.txt", "enc", [("a b", ["x"])])


def test_mla_files_and_back(dataset: Path, tmp_path: Path) -> None:
    to_mla(dataset, tmp_path / "out", media="pictures")
    out = tmp_path / "out"
    names = np.load(out / "public_split/train.npy", allow_pickle=False)
    assert names.tolist() == ["11.jpg", "12.png"] and names.dtype.kind == "U"
    paths = json.loads((out / "path.json").read_text())
    assert paths["train"]["langs"] == ["en", "de"] and paths["train"]["feature"] == ["pictures"] * 2
    assert [Path(file).name for file in paths["train"]["anno_file"]] == ["train_en.json", "train_de.google.json"]
    assert [Path(file).name for file in paths["val"]["anno_file"]] == ["val_en.json", "val_de.json"]
    assert paths["test"]["name_file"] == [str(out / "public_split/test.npy")] * 2
    # as MLA's loader pairs them
    english, german = (json.loads(Path(file).read_text()) for file in paths["train"]["anno_file"])
    assert [pair for name in names for pair in zip(english[name], german[name], strict=True)][1] == (
        "The dog #1.",
        "Der Hund.",
    )

    recipe: dict[str, Any] = {
        "kind": "published",
        "name": "back",
        "title": "t",
        "licence": "l",
        "download": [],
        "folder": str(out),
        "media": None,
    }
    recipe["splits"] = {s: {"read": {"format": "names", "file": f"public_split/{s}.npy"}} for s in CAPTIONS}
    read = {"format": "mapping", "file": "annotation/{part}.json"}
    recipe["captions"] = [
        {"column": "caption.en", "each": {"part": ["train_en", "val_en", "test_en"]}, "read": read},
        {
            "column": "caption.de.google",
            "translates": "caption.en",
            "each": {"part": ["train_de.google"]},
            "read": read,
        },
    ]
    write(tmp_path, {"back.yaml": json.dumps(recipe)})
    build(load_recipe(tmp_path / "back.yaml"), tmp_path / "back", progress=False)
    for name in ("caption.en", "caption.de.google"):
        assert values(tmp_path / "back/train", name) == CAPTIONS["train"][name]


def test_two_engines_are_not_mixed(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CAPTIONS["train"], "caption.de.opus", {"11": ["x", "y"]})
    build(Toy(name="toy"), tmp_path / "two", workers=0, progress=False)
    with pytest.raises(ConfigError, match=r"de has caption\.de\.google and caption\.de\.opus; choose with --column"):
        to_mla(tmp_path / "two", tmp_path / "out")
    to_mla(tmp_path / "two", tmp_path / "one", columns=["caption.en", "caption.de.opus"])
    assert json.loads((tmp_path / "one/path.json").read_text())["train"]["anno_file"][1].endswith("train_de.opus.json")
    with pytest.raises(ConfigError, match=r"no column caption\.xx; there are: caption\.de"):
        to_nrccr(tmp_path / "two", tmp_path / "x", columns=["caption.xx"])
    with pytest.raises(ConfigError, match="already holds files"):
        to_nrccr(dataset, tmp_path / "one")


def test_translations_made_elsewhere_are_replayed(dataset: Path, tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "mt.caption.txt": ["11#enc2fr#0 Un chien.", "11#enc2fr#1 Le chien.", "12#enc2fr#0 Un chat."],
            "mt.json": {"11.jpg": ["Un chien.", "Le chien."], "12.png": ["Un chat."]},
            "texts/11.txt": "A dog.\n",
        },
    )
    for source in ("mt.caption.txt", "mt.json"):
        run = CliRunner().invoke(
            shards_app, ["convert", "replay", str(tmp_path / source), "--out", str(tmp_path / f"{source}.jsonl")]
        )
        assert run.exit_code == 0, run.output
    assert (tmp_path / "mt.json.jsonl").read_bytes() == (tmp_path / "mt.caption.txt.jsonl").read_bytes()
    arguments = ["replay", str(dataset / "train"), str(tmp_path / "mt.json.jsonl"), "--column", "caption.fr.uc2"]
    run = CliRunner().invoke(jobs_app, arguments, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert values(dataset / "train", "caption.fr.uc2") == {"11": ["Un chien.", "Le chien."], "12": ["Un chat."]}
    to_replay(tmp_path / "texts", tmp_path / "d.jsonl")
    assert json.loads((tmp_path / "d.jsonl").read_text()) == {"key": "11", "value": {"views": {"detail": "A dog."}}}


def test_replay_files_with_holes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": ["11#enc2fr#0 a", "11#enc2fr#2 c"], "b.csv": ["x"]})
    with pytest.raises(DataError, match=r"the captions of '11' are numbered 0, 2; expected 0, 1, 2"):
        to_replay(tmp_path / "a.txt", tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"b\.csv: expected NRCCR's \.txt"):
        to_replay(tmp_path / "b.csv", tmp_path / "b.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
    assert (
        CliRunner().invoke(shards_app, ["convert", "xml", str(tmp_path), "--out", str(tmp_path / "x")]).exit_code != 0
    )


def test_a_file_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="contains no text"):
        to_replay(tmp_path / "a.json", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()

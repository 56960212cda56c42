"""Texts without pictures: cldr, gcompris, wordnet, texts; what is kept apart from held-out captions; what overlaps."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.data.corpora.build import BuildSummary, build
from ccr_dist.data.corpora.formats import rcc
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.data.table.dataset import create_column, create_dataset, open_all
from ccr_dist.data.table.overlap import overlap, words
from ccr_dist.data.table.splits import concept, split_of
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataError
from tests.published import write


def do(recipe: str, out: Path, *overrides: str) -> BuildSummary:
    return build(load_recipe(recipe, overrides), out, workers=0, progress=False)


def values(out: Path, name: str) -> dict[str, Any]:
    return {
        key: dataset.column(name).value(shard, row)
        for dataset in open_all(out)
        for shard in range(len(dataset.shards))
        for row, key in enumerate(dataset.keys(shard))
    }


def held_out(root: Path, split: str = "test", **captions: list[Any]) -> Path:
    """A dataset with captions by language, and English concepts."""
    rows = len(next(iter(captions.values())))
    dataset = create_dataset(root / split, name="pictures", split=split, keys=[[f"k{i}" for i in range(rows)]])
    columns: dict[str, tuple[str, list[Any]]] = {f"caption.{lang}": ("texts", said) for lang, said in captions.items()}
    if "en" in captions:
        columns["label.concept"] = ("label", [said and concept(said[0]) for said in captions["en"]])
    for name, (kind, said) in columns.items():
        column = create_column(dataset, name, kind=kind, extension="json", plan={}, provenance={})
        column.commit(0, [None if value is None else column.encode(value) for value in said])
    return root


# -- what is kept apart


def texts(tmp_path: Path, *lines: str) -> str:
    (tmp_path / "t.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return f"file={tmp_path / 't.txt'}"


def test_captions_of_val_and_test_are_left_out_and_counted(tmp_path):
    held_out(tmp_path / "p", "test", en=[["A red car!"], ["dog", "a hound"]])
    held_out(tmp_path / "p", "val", en=[["Blue sky"]])
    held_out(tmp_path / "p", "train", en=[["green tree"]])
    lines = ("the red car", "red cars", "a red car on a road", "HOUND.", "blue sky", "green tree")
    options = (texts(tmp_path, *lines), "keep_apart=false", f"apart_from=[{tmp_path / 'p'}]")
    summary = do("texts", tmp_path / "out", *options)
    kept = {said[0] for said in values(tmp_path / "out", "caption.en").values()}
    assert kept == {"red cars", "a red car on a road", "green tree"}
    assert "3 texts left out: they are captions of val or test (apart_from)" in summary.notes
    # Another held-out dataset decides which rows there are: it is part of the plan.
    held_out(tmp_path / "other", "test", en=[["green tree"]])
    with pytest.raises(DataError, match="apart_from"):
        do("texts", tmp_path / "out", options[0], options[1], f"apart_from=[{tmp_path / 'other'}]")


def test_nothing_to_keep_apart_from_is_refused(tmp_path):
    held_out(tmp_path / "p", "train", en=[["green tree"]])
    with pytest.raises(ConfigError, match=r"apart_from: .* has no val or test captions"):
        do("texts", tmp_path / "out", texts(tmp_path, "a"), f"apart_from=[{tmp_path / 'p'}]")


def test_texts_of_several_packed_files(tmp_path):
    """Texts taken once over all files; what a single file gives is what it gave before."""
    for name, lines in {"train.en.1.gz": "A dog.\nA cat.\n", "train.en.2.gz": "A cat.\nA boat.\n"}.items():
        (tmp_path / name).write_bytes(gzip.compress(lines.encode()))
    options = (f"file={tmp_path}/train.en.?.gz", "lines=true", "keep_apart=false")
    assert sorted(load_recipe("texts", options).reads()) == [tmp_path / f"train.en.{n}.gz" for n in (1, 2)]
    summary = do("texts", tmp_path / "out", *options)
    said = values(tmp_path / "out", "caption.en").values()
    assert list(said) == [["A dog."], ["A cat."], ["A boat."]] and "1 repeated texts taken once" in summary.notes
    with pytest.raises(ConfigError, match=r"train\.en\.1\.gz: expected a file \.jsonl"):
        do("texts", tmp_path / "one", f"file={tmp_path}/train.en.1.gz")
    with pytest.raises(ConfigError, match="matches no file"):
        do("texts", tmp_path / "one", f"file={tmp_path}/nothing.*")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"A dog.\n" * 9000)[:30])
    with pytest.raises(DataError, match=r"cut\.txt\.gz: a damaged \.gz"):
        do("texts", tmp_path / "one", f"file={tmp_path}/cut.txt.gz")
    plan = open_all(Path(do("texts", tmp_path / "two", texts(tmp_path, "x"), "keep_apart=false").out))[0]
    assert set(plan.column("caption.en").plan) == {"file", "field", "split", "keep_apart", "language"}


# -- cldr

TRAIN, HELD = "toucan", "frog"  # by the rule of all picture corpora


def cldr_packages(root: Path, names: dict[str, dict[str, str]]) -> str:
    files: dict[str, Any] = {}
    for lang, said in names.items():
        plain = {char: {"default": ["key"], "tts": [name]} for char, name in said.items() if "\u200d" not in char}
        joined = {char: {"tts": [name]} for char, name in said.items() if "\u200d" in char}
        files[f"cldr-annotations-full/annotations/{lang}/annotations.json"] = {"annotations": {"annotations": plain}}
        files[f"cldr-annotations-derived-full/annotationsDerived/{lang}/annotations.json"] = {
            "annotationsDerived": {"annotations": joined}
        }
    return f"source={write(root, files)}"


def test_names_of_held_out_emoji_are_left_out_by_default(tmp_path):
    assert split_of(concept(TRAIN)) == "train" and split_of(concept(HELD)) == "test"
    english = {
        "1": TRAIN,
        "2": HELD,
        "3\u200d": f"{HELD}: large",
        "4\u200d": f"{TRAIN}: large",
        "5🏽": TRAIN,
        "6\ufe0f": "duck",
    }
    assert all(
        split_of(x) == "train" for x in ("duck", f"{TRAIN} large", f"{TRAIN}: large", f"{HELD} large", f"{HELD}: large")
    )
    source = cldr_packages(tmp_path / "n", {"en": english, "es": {"1": "tucán", "2": "rana"}})
    summary = do("cldr", tmp_path / "out", source, "languages=[es]")
    assert verify(tmp_path / "out", progress=False) == []
    assert values(tmp_path / "out", "caption.en") == {
        "0031": [TRAIN],
        "0034-200d": [f"{TRAIN}: large"],  # and not the large frog, whose name is that of a held-out one with a mark
        "0036": ["duck"],
    }
    assert values(tmp_path / "out", "caption.es") == {"0031": ["tucán"], "0034-200d": None, "0036": None}
    assert "2 texts left out: their concepts belong to other splits (keep_apart)" in summary.notes
    assert "texts for fewer than the 3 rows: es 1" in summary.notes
    assert (
        len(values(do("cldr", tmp_path / "all", source, "languages=[es]", "keep_apart=false").out, "caption.en")) == 5
    )


def test_a_name_that_is_a_caption_in_another_language_is_left_out(tmp_path):
    """Names change between versions of CLDR: a new English name may belong to an old Spanish one."""
    source = cldr_packages(tmp_path / "n", {"en": {"1": TRAIN, "6": "duck"}, "es": {"1": "Tucán", "6": "pato"}})
    held_out(tmp_path / "p", "test", en=[["a big bird"], None], es=[["tucán"], None])
    summary = do("cldr", tmp_path / "out", source, "languages=[es]", f"apart_from=[{tmp_path / 'p'}]")
    assert values(tmp_path / "out", "caption.es") == {"0036": ["pato"]}
    assert "1 texts left out: they are captions of val or test (apart_from)" in summary.notes
    # the Spanish of a country is Spanish
    mexican = cldr_packages(tmp_path / "mx", {"en": {"1": TRAIN, "6": "duck"}, "es-MX": {"1": "Tucán", "6": "pato"}})
    do("cldr", tmp_path / "regional", mexican, "languages=[es-MX]", f"apart_from=[{tmp_path / 'p'}]")
    assert values(tmp_path / "regional", "caption.es-MX") == {"0036": ["pato"]}
    with pytest.raises(ConfigError, match="no names in 'tlh'; it has en, es"):
        do("cldr", tmp_path / "no", source, "languages=[tlh]")


# -- gcompris


def resource(path: Path, content: dict[str, bytes]) -> Path:
    """A Qt resource, version 3, of files in one folder; every second one is compressed."""
    names = list(content)
    places, blob = [], b""
    for name in ["folder", *names]:
        places.append(len(blob))
        blob += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    tree = struct.pack(">IHII8x", 0, 2, 1, 1) + struct.pack(">IHII8x", places[0], 2, len(names), 2)
    data = b""
    for number, name in enumerate(names):
        packed = number % 2
        value = content[name]
        value = struct.pack(">I", len(value)) + zlib.compress(value) if packed else value
        tree += struct.pack(">IHHHI8x", places[1 + number], packed, 0, 0, len(data))
        data += struct.pack(">I", len(value)) + value
    head = struct.pack(">4sIIII", b"qres", 3, 20, 20 + len(tree), 20 + len(tree) + len(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + tree + data + blob)
    return path


def test_words_of_gcompris(tmp_path):
    said = {
        "en": {"bone.ogg": "bone", "U0030.ogg": "zero", "none.ogg": " "},
        "pt_BR": {"bone.ogg": "osso", "U0030.ogg": "zero", "none.ogg": "x"},
        "ru": {"bone.ogg": "", "U0030.ogg": "ноль"},
    }
    files = {f"content-{lang}.json": json.dumps(x, ensure_ascii=False).encode() for lang, x in said.items()}
    path = resource(tmp_path / "in/lang.rcc", {**files, "lang.js": b"code"})
    assert dict(rcc.files(path))["folder/content-ru.json"] == files["content-ru.json"]
    summary = do("gcompris", tmp_path / "out", f"source={tmp_path / 'in'}", "languages=[pt-BR,ru]")
    assert values(tmp_path / "out", "caption.en") == {"bone": ["bone"], "U0030": ["zero"]}
    assert values(tmp_path / "out", "caption.pt-BR") == {"bone": ["osso"], "U0030": ["zero"]}
    assert values(tmp_path / "out", "caption.ru") == {"bone": None, "U0030": ["ноль"]}
    assert "texts for fewer than the 2 rows: ru 1" in summary.notes
    with pytest.raises(ConfigError, match="has no words in de; it has en, pt-BR, ru"):
        do("gcompris", tmp_path / "no", f"source={tmp_path / 'in'}", "languages=[de]")


@pytest.mark.parametrize("cut", [0, 10, 19, 30, 60, 100, 200])
def test_a_damaged_resource_is_named(tmp_path, cut):
    path = resource(tmp_path / "lang.rcc", {"content-en.json": b'{"a.ogg": "a"}', "b": b"b" * 99})
    data = path.read_bytes()
    assert len(data) > 200
    path.write_bytes(data[:cut])
    with pytest.raises(DataError, match=r"lang\.rcc: (not|a damaged) "):
        list(rcc.files(path))


def test_a_resource_that_holds_itself_is_refused(tmp_path):
    path = tmp_path / "lang.rcc"
    path.write_bytes(struct.pack(">4sIIII", b"qres", 3, 20, 42, 42) + struct.pack(">IHII8x", 0, 2, 1, 0))
    with pytest.raises(DataError, match=r"lang\.rcc: a damaged"):
        list(rcc.files(path))


# -- wordnet

NOUNS = """\
  1 This software and database is being provided
01503061 05 n 01 bird 0 002 @ 01471682 n 0000 ~ 01504179 n 0000 | warm-blooded animal; flies; "a bird sang"  
02691156 06 n 03 airplane 0 aeroplane 0 plane 0 001 @ 03510583 n 0000 | an aircraft with fixed wings; "it left"; "x"  
11123167 18 n 01 Lincoln 0 001 @i 10467395 n 0000 | 16th President  
05808557 09 n 01 hot_idea 0 000 | "only an example"  
"""


def test_nouns_of_wordnet(tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS)
    options = (f"source={tmp_path}", "categories=null")
    summary = do("wordnet", tmp_path / "out", *options)
    assert values(tmp_path / "out", "caption.en") == {
        "n01503061": ["bird", "warm-blooded animal; flies"],
        "n02691156": ["airplane", "an aircraft with fixed wings"],
        "n05808557": ["hot idea"],
    }
    assert "1 names of single persons, places and events are left out" in summary.notes
    do("wordnet", tmp_path / "few", *options[:1], "categories=[artifact]", "texts=[gloss]")
    assert values(tmp_path / "few", "caption.en") == {"n02691156": ["an aircraft with fixed wings"]}
    held_out(tmp_path / "p", "test", en=[["plane"]])
    do("wordnet", tmp_path / "apart", *options, f"apart_from=[{tmp_path / 'p'}]")
    assert "n02691156" in values(tmp_path / "apart", "caption.en"), "only another name of it is a caption"
    with pytest.raises(ConfigError, match=r"categories: expected some of Tops, act, .*; found animals"):
        do("wordnet", tmp_path / "no", options[0], "categories=[animals]")
    (tmp_path / "data.noun").write_text(NOUNS + "02691156 06 n 09 airplane 0 000 | cut\n")
    with pytest.raises(DataError, match=r"data\.noun:6: not a line of WordNet"):
        do("wordnet", tmp_path / "no", *options)


# -- what overlaps


def test_words_are_what_is_compared():
    assert words("The  Man: RED-hair!") == ("man", "red", "hair") and words("?!") == () and words("a") == ("a",)
    assert words("Straße") == ("strasse",) and words("cafe\u0301") == words("café")
    assert words("“1st_place”") == ("1st", "place")


def test_concepts_in_texts_are_counted(tmp_path):
    held_out(
        tmp_path / "p", "test", en=[["A cat."], ["red hair"], ["fire engine"], ["The dog"], ["a cat"], None, ["?!"]]
    )
    held_out(tmp_path / "p", "val", en=[["sun"]])
    do(
        "texts",
        tmp_path / "t",
        texts(tmp_path, "Cat!", "concatenate", "her red, hair", "a fire", "dogs"),
        "keep_apart=false",
    )
    figures = overlap(tmp_path / "t", tmp_path / "p", column="label.concept", among="caption.en")
    assert figures["rows"] == 5
    val, test = figures["datasets"]
    assert test == {
        "name": "pictures",
        "split": "test",
        "concepts": 5,  # cat, red hair, fire engine, dog, and one without words
        "whole": 1,
        "within": 2,
        "examples": ["cat", "red hair"],
    }
    assert val["within"] == 0
    shown = CliRunner().invoke(app, ["shards", "overlap", str(tmp_path / "t"), str(tmp_path / "p")])
    assert shown.exit_code == 0
    assert "test: of 5 concepts (label.concept) 1 are a whole text, 2 (40 %) occur as words" in shown.output
    given = ["--json", "--column", "caption.en", "--among", "caption.en"]
    found = CliRunner().invoke(app, ["shards", "overlap", str(tmp_path / "t"), str(tmp_path / "p"), *given])
    assert json.loads(found.output)["datasets"][1]["within"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "needs", "rows"), [("cldr", "npm", 1400), ("gcompris", "apt-get", 1090), ("wordnet", "apt-get", 40_237)]
)
def test_real_packages(tmp_path, recipe, needs, rows):
    """Fetches them unless they are in the cache (11, 44 and 6 MB)."""
    if shutil.which(needs) is None:
        pytest.skip(f"needs {needs}")
    summary = do(recipe, tmp_path / "out")
    assert summary.rows == {"train": pytest.approx(rows, rel=0.1)}
    assert verify(tmp_path / "out", progress=False) == []
    english = [texts[0] for texts in values(tmp_path / "out", "caption.en").values()]
    if recipe == "cldr":
        assert all(split_of(concept(text)) == "train" for text in english)
    else:
        assert {"bone", "anchor", "bed"} <= set(english)

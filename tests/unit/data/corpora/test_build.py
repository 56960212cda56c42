"""Recipes become datasets: complete, repeatable byte for byte, and clear about what is wrong with their sources."""

import functools
import io
import json
from pathlib import Path
from typing import Literal

import pytest

from ccr_dist.data.corpora.build import build
from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow, load_recipe, recipes, shipped
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataBudgetError, DataError
from tests.corpus import folder_recipe, picture, tree

GOLDEN = Path(__file__).resolve().parents[4] / "shards" / "golden"


def do(recipe, out, *overrides, **options):
    return build(load_recipe(recipe, overrides), out, progress=False, **options)


def rows_of(out, column):
    """{key: value} over all splits."""
    found = {}
    for root in out.glob("*/dataset.json"):
        dataset = Dataset(root.parent)
        for shard in range(len(dataset.shards)):
            for row, key in enumerate(dataset.keys(shard)):
                found[key] = dataset.column(column).value(shard, row)
    return found


def test_the_golden_dataset_is_built_again_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.chdir(GOLDEN)
    build(load_recipe("golden.yaml"), tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == tree(GOLDEN / "dataset")
    assert verify(GOLDEN / "dataset") == []
    captions = rows_of(GOLDEN / "dataset", "caption.en")
    assert captions["red-circle"] == ["A red circle.", "A round red shape."]
    assert rows_of(GOLDEN / "dataset", "image")["black-cross"] == (GOLDEN / "pictures/black-cross.jpg").read_bytes()


def test_folder(tmp_path):
    recipe, out = folder_recipe(tmp_path / "in"), tmp_path / "out"
    summary = do(recipe, out)
    assert sum(summary.rows.values()) == 10 and summary.rows.keys() <= {"train", "val", "test"}
    assert verify(out) == []
    images = rows_of(out, "image")
    assert images == {f"{i:03d}": picture(i) for i in range(10)}  # byte for byte, never encoded again
    assert rows_of(out, "caption.de")["004"] == ["Ding 4"] and rows_of(out, "caption.de")["005"] is None
    again = do(recipe, out)
    assert (again.built, again.there) == (0, summary.built)


def test_a_limit_takes_rows_from_the_whole_split(tmp_path):
    recipe = folder_recipe(tmp_path / "in")
    summary = do(recipe, tmp_path / "out", "limit=2", "split_by=none")
    assert summary.rows == {"train": 2} and set(rows_of(tmp_path / "out", "image")) == {"000", "005"}
    with pytest.raises(DataError, match="limit: there 2, asked 3"):
        do(recipe, tmp_path / "out", "limit=3", "split_by=none")


def test_another_plan_is_refused_with_the_difference(tmp_path):
    recipe = folder_recipe(tmp_path / "in")
    do(recipe, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(DataError, match=r"(?s)another build.*shard_rows: there 2, asked 3"):
        do(recipe, tmp_path / "out", "shard_rows=3")
    (tmp_path / "in/pictures/000.png").write_bytes(picture(0, 99))
    with pytest.raises(DataError, match=r"rows\.pictures: there"):
        do(recipe, tmp_path / "out")
    assert tree(tmp_path / "out") == before


def captions_file(tmp_path, text, name="captions.jsonl"):
    recipe = folder_recipe(tmp_path / "in", n=2)
    path = tmp_path / "in" / name
    path.write_text(text)
    return recipe, f"captions={path}"


@pytest.mark.parametrize(
    "text, message",
    [
        (
            '{"file": "000.png", "caption": "x"}\n{"file": "nope.png", "caption": "y"}',
            r"(?s)1 pictures.*nope\.png.*:2.*missing=skip",
        ),
        (
            '{"file": "000.png", "caption": "x", "id": "k"}\n{"file": "001.png", "caption": "y", "id": "k"}',
            r":2: the id 'k' of 001\.png already belongs to 000",
        ),
        (
            (
                '{"file": "000.png", "caption": "x", "split": "train"}\n{"file": "000.png", "caption": "y", "split":'
                ' "val"}'
            ),
            r":2: split 'val'",
        ),
        ('{"file": "000.png", "caption": "x", "split": "dev"}', "expected one of train, val, test"),
        ('{"file": "000.png"}', r":1: expected `caption` or `captions`"),
        ('{"caption": "x"}', r":1: expected the key `file`"),
        ('{"file": "000.png", "caption": [1]}', r":1: expected a caption"),
        (
            '{"file": "000.png", "caption": " "}',
            r"no pictures with captions; 1 blank captions are left out; 2 pictures have no caption",
        ),
        ('{"file": "000.png", "caption": "a \\ud800"}', r":1: expected a caption"),
        ('{"file": "000.png", "caption": "x", "lang": "../x"}', r":1: '\.\./x' is not a language tag"),
        ('{"file": "../secret.png", "caption": "x"}', r":1: '\.\./secret\.png' is not below images="),
        ('{"file": "/etc/secret.png", "caption": "x"}', r":1: '/etc/secret\.png' is not below images="),
        ("[]", "expected a JSON object"),
        ('{"file": ', r":1: not valid JSON"),
        ("", "no records"),
    ],
)
def test_folder_names_what_is_wrong(tmp_path, text, message):
    recipe, captions = captions_file(tmp_path, text)
    with pytest.raises(DataError, match=message):
        do(recipe, tmp_path / "out", captions)


def test_folder_reads_csv_and_counts_what_it_leaves_out(tmp_path):
    text = 'file,caption,lang,split\n000.png,"A, b",,test\n000.png,c,de,\ngone.png,d,,\n'
    recipe, captions = captions_file(tmp_path, text, "c.csv")
    summary = do(recipe, tmp_path / "out", captions, "missing=skip")
    assert summary.rows == {"test": 1}
    assert rows_of(tmp_path / "out", "caption.en") == {"000": ["A, b"]}
    assert rows_of(tmp_path / "out", "caption.de") == {"000": ["c"]}
    notes = "\n".join(summary.notes)
    assert "gone.png" in notes and "1 pictures have no caption and are left out: 001.png" in notes


def test_files_that_are_no_pictures_are_counted_against_the_budget(tmp_path):
    recipe = folder_recipe(tmp_path / "in", n=4)
    (tmp_path / "in/pictures/002.png").write_bytes(b"<html>")
    with pytest.raises(DataBudgetError, match=r"(?s)1 unusable.*002: .*not a JPEG"):
        do(recipe, tmp_path / "out")
    summary = do(recipe, tmp_path / "out", "bad_pictures=1")
    assert list(summary.bad) == ["002"]
    assert rows_of(tmp_path / "out", "image")["002"] is None
    assert rows_of(tmp_path / "out", "caption.en")["002"] == ["A thing 2."]
    assert verify(tmp_path / "out") == []


def test_texts(tmp_path):
    (tmp_path / "t.txt").write_text("a lemon\nA toucan.\na lemon\n\nA race car.\n")
    (tmp_path / "r.yaml").write_text(f"kind: texts\nname: t\nfile: {tmp_path / 't.txt'}\n")
    summary = do(tmp_path / "r.yaml", tmp_path / "out")
    kept = [texts[0] for texts in rows_of(tmp_path / "out", "caption.en").values()]
    assert "A toucan." in kept and "A race car." not in kept  # its concept is a test concept of the picture corpora
    assert any("1 repeated" in note for note in summary.notes) and any("other splits" in note for note in summary.notes)
    do(tmp_path / "r.yaml", tmp_path / "all", "keep_apart=false")
    assert len(rows_of(tmp_path / "all", "caption.en")) == 3


def test_a_drawing_that_is_too_narrow_is_refused_and_not_drawn_in_full(tmp_path, monkeypatch):
    resvg = pytest.importorskip("resvg_py")
    from PIL import Image

    from ccr_dist.data.corpora.recipes.pictures import Picture, render

    draw, sizes = resvg.svg_to_bytes, []

    def seen(**options):
        data = bytes(draw(**options))
        sizes.append(Image.open(io.BytesIO(data)).size)
        return data

    monkeypatch.setattr(resvg, "svg_to_bytes", seen)
    path = tmp_path / "a.svg"
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}"><rect width="3000" height="3000"/></svg>'
    path.write_text(svg.format(1, 3000))
    with pytest.raises(DataError, match=r"a\.svg: .* pixels; expected one side at most 200 times the other"):
        render(str(path), Picture(size=30))
    assert len(sizes) == 1 and max(sizes[0]) <= 30 * 201
    path.write_text(svg.format(10, 1500))
    assert Image.open(io.BytesIO(render(str(path), Picture(size=30)))).size == (30, 30)
    assert sizes[1] == (30, 4500), "in full, as before"


def test_stamps(tmp_path):
    pytest.importorskip("resvg_py")
    from PIL import Image

    folder = tmp_path / "in/animals/birds"
    folder.mkdir(parents=True)
    (tmp_path / "in/symbols/alphabets").mkdir(parents=True)
    for name in ("tucan", "tucan_mirror", "mute", "../../symbols/alphabets/a"):
        image = Image.new("RGBA", (40, 20))
        image.paste((255, 0, 0, 255), (10, 5, 30, 15))
        image.save(folder / f"{name}.png")
        if name != "mute":
            (folder / f"{name}.txt").write_text(
                "A toucan.\nde.utf8=Ein Tukan.\npt_BR.utf8=Um tucano.\nfr.utf8=\nsr@latin.utf8=Tukan\n",
                encoding="utf-8",
            )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="10pt" height="10pt"><rect width="9" height="9"'
        ' fill="blue"/></svg>'
    )
    (folder / "box.svg").write_text(svg)  # sizes in pt: refused by resvg without a resolution
    (folder / "box.txt").write_text("A box.\nde.utf8=Eine Kiste.\n")
    (folder / "tucan.svg").write_text(svg)  # the same stamp again: the PNG is taken
    options = (f"source={tmp_path / 'in'}", "languages=[de,pt-BR,sr-latin]", "picture.format=png")
    summary = do("stamps56", tmp_path / "out", *options, workers=0)
    assert sum(summary.rows.values()) == 2
    assert any("mute" in note for note in summary.notes)
    assert rows_of(tmp_path / "out", "caption.pt-BR") == {
        "animals-birds-box": None,
        "animals-birds-tucan": ["Um tucano."],
    }
    assert rows_of(tmp_path / "out", "label.concept")["animals-birds-tucan"] == "toucan"
    assert rows_of(tmp_path / "out", "description.folders")["animals-birds-tucan"] == ["birds, animals"]
    from ccr_dist.data.media.decode import decode_image

    image = decode_image(rows_of(tmp_path / "out", "image")["animals-birds-tucan"])
    assert image.size == (224, 224)
    assert image.getpixel((112, 112)) == (255, 0, 0) and image.getpixel((5, 112)) == (255, 255, 255)
    box = decode_image(rows_of(tmp_path / "out", "image")["animals-birds-box"])
    assert box.getpixel((112, 112)) == (0, 0, 255)
    with pytest.raises(ConfigError, match="no captions in xx"):
        do("stamps56", tmp_path / "out2", options[0], "languages=[xx]")


def test_pictures_are_made_shard_by_shard(tmp_path):
    """A row's picture is not made before its shard is written, nor kept after."""
    made = []

    class Lazy(Recipe):
        kind: Literal["lazy"] = "lazy"

        def material(self):
            rows = [RecipeRow("train", str(i), {"image": functools.partial(render, i)}) for i in range(6)]
            return Material({}, [ColumnSpec("image", "image", "png", {}, {})], rows)

    def render(i):
        made.append((i, len(list((tmp_path / "out/train/image").glob("00000?.json")))))
        return picture(i)

    build(Lazy(name="lazy", shard_rows=2), tmp_path / "out", workers=0, progress=False)
    assert made == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]


def test_a_process_pool_gives_the_same_bytes(tmp_path):
    class Pooled(Recipe):
        kind: Literal["pooled"] = "pooled"

        def material(self):
            rows = [RecipeRow("train", str(i), {"image": functools.partial(picture, i)}) for i in range(20)]
            return Material({}, [ColumnSpec("image", "image", "png", {}, {})], rows)

    build(Pooled(name="p", shard_rows=7), tmp_path / "pool", workers=2, progress=False)
    build(Pooled(name="p", shard_rows=7), tmp_path / "one", workers=0, progress=False)
    assert tree(tmp_path / "pool") == tree(tmp_path / "one")


def test_exports_are_what_replay_reads(tmp_path):
    class Exporting(Recipe):
        kind: Literal["exporting"] = "exporting"

        def material(self):
            rows = [RecipeRow("val", "a", {}, {"keywords": {"views": {"keywords": "x, y"}}}), RecipeRow("val", "b", {})]
            return Material({}, [ColumnSpec("caption.en", "texts", "json", {}, {})], rows)

    summary = build(Exporting(name="e"), tmp_path, progress=False)
    assert summary.exports == [tmp_path / "val/keywords.jsonl"]
    assert [json.loads(line) for line in summary.exports[0].read_text().splitlines()] == [
        {"key": "a", "value": {"views": {"keywords": "x, y"}}}
    ]


def test_every_shipped_recipe_is_valid():
    assert {"emoji14", "stamps56", "folder", "texts"} <= shipped().keys() & recipes().keys()
    for name in shipped():
        assert load_recipe(name).kind in recipes()


def test_recipe_mistakes_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'emoji14'"):
        load_recipe("emoji")
    with pytest.raises(
        ConfigError, match=r"emoji14\.yaml.*|.*override.*unknown key 'shard_row'; did you mean 'shard_rows'"
    ):
        load_recipe("emoji14", ["shard_row=3"])
    (tmp_path / "r.yaml").write_text("name: x\nkind: emojy\n")
    with pytest.raises(ConfigError, match=r"r\.yaml:2: kind: expected one of"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "na', b"\x00\xff", b"[]", b'{"format": 1}'])
def test_a_damaged_dataset_json_has_a_way_out_that_works(tmp_path, content):
    recipe, out = folder_recipe(tmp_path / "in"), tmp_path / "out"
    do(recipe, out, "split_by=none")
    before, damaged = tree(out), out / "train/dataset.json"
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"train/dataset\.json: .*Remove the file and run the command that made"):
        Dataset(out / "train")
    damaged.unlink()
    assert do(recipe, out, "split_by=none").built == 0  # what is finished is kept
    assert tree(out) == before


@pytest.mark.parametrize(("there", "what"), [(True, "a file, and a folder is expected"), (False, "no such folder")])
def test_a_folder_of_pictures_that_is_none(tmp_path, there, what):
    if there:
        (tmp_path / "x").write_text("")
    recipe = load_recipe("folder", [f"images={tmp_path}/x", "captions=c.csv", "name=n"])
    with pytest.raises(ConfigError, match=f"images: {tmp_path}/x: {what}; name the folder of your pictures"):
        build(recipe, tmp_path / "out", progress=False)


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b'{"kind": "fol'])
def test_a_damaged_recipe_json_has_a_way_out_that_works(tmp_path, content):
    recipe, out = folder_recipe(tmp_path / "in", n=4), tmp_path / "out"
    do(recipe, out, "split_by=none")
    before = tree(out)
    (out / "recipe.json").write_bytes(content)
    with pytest.raises(DataError, match=r"recipe\.json: .*remove the file and build again: what is finished is kept"):
        do(recipe, out, "split_by=none")
    (out / "recipe.json").unlink()
    assert do(recipe, out, "split_by=none").built == 0 and tree(out) == before

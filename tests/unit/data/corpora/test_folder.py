"""Folders of pictures as people have them: names of every script, files of captions of every spreadsheet, pictures that
come later.
"""

import json
import os
import unicodedata
from pathlib import Path

import pytest

from ccr_dist.data.corpora.build import build
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.data.corpora.recipes.captions import records, safe_key
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataBudgetError, DataError
from tests.corpus import picture

NAMES = {
    "Hindi": ("की", "का", "क्षत्रिय", "हिन्दी"),
    "Thai": ("ปี", "ปู", "น้ำ"),
    "Tamil": ("கி", "கு", "தமிழ்"),
    "Bengali": ("কি", "কু"),
    "Arabic": ("مَلِك", "مُلك", "كتاب"),
    "Hebrew": ("שָׁלוֹם", "שלום"),
    "Vietnamese": ("bảng", "bàng", "băng"),
    "Korean": ("사과", "사람"),
    "Khmer": ("ស្រី", "ស្រា"),
    "Burmese": ("မြန်မာ", "မြန်မား"),
}


def put(root: Path, *names: str) -> Path:
    """Pictures of these names, each another one; those that end in .heic and so on are some bytes."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(len(list(root.rglob("*")))))
    return root


def do(tmp_path, captions=None, *options, out="out", name="c.jsonl", **how):
    """Builds tmp_path/pictures; captions: a list of records, the bytes of the file `name`, or None."""
    value = "captions=null"
    if captions is not None:
        lines = (
            captions
            if isinstance(captions, bytes)
            else "".join(json.dumps(record) + "\n" for record in captions).encode()
        )
        (tmp_path / name).write_bytes(lines)
        value = f"captions={tmp_path / name}"
    recipe = load_recipe("folder", [f"images={tmp_path / 'pictures'}", value, "split_by=none", *options])
    return build(recipe, tmp_path / out, progress=False, **how)


def values(out, column="image"):
    dataset = Dataset(out / "train")
    return {
        key: dataset.column(column).value(s, r)
        for s in range(len(dataset.shards))
        for r, key in enumerate(dataset.keys(s))
    }


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("script", NAMES)
def test_names_of_every_script_are_keys(tmp_path, script, form):
    words = [unicodedata.normalize(form, word) for word in NAMES[script]]
    put(tmp_path / "pictures", *(f"{word}.png" for word in words))
    do(tmp_path, [{"file": unicodedata.normalize("NFC", f"{word}.png"), "caption": word} for word in words])
    captions = values(tmp_path / "out", "caption.en")
    assert captions == {unicodedata.normalize("NFC", word): [word] for word in words}
    pictures = tmp_path / "pictures"
    assert values(tmp_path / "out") == {
        unicodedata.normalize("NFC", w): (pictures / f"{w}.png").read_bytes() for w in words
    }
    assert verify(tmp_path / "out") == []


def test_keys_of_before_stay():
    assert [safe_key(text) for text in ("a/b c.d-e_1", "ü", "名前", "IMG (2)")] == [
        "a_b_c_d-e_1",
        "ü",
        "名前",
        "IMG__2_",
    ]


def test_names_that_would_be_one_key_are_all_there(tmp_path):
    names = ["IMG 1.png", "IMG_1.png", "IMG-1.png", "IMG_1.jpg", "IMG/1.png", "😀.png", "😃.png", "a.b.png", "a_b.png"]
    root = put(tmp_path / "pictures", *names)
    done = do(tmp_path, [{"file": name, "caption": f"of {name}"} for name in names])
    captions, pictures = values(tmp_path / "out", "caption.en"), values(tmp_path / "out")
    assert {text: pictures[key] for key, (text,) in captions.items()} == {
        f"of {name}": (root / name).read_bytes() for name in names
    }
    # who needs no change keeps its name
    assert captions["IMG_1"] == ["of IMG_1.jpg"] and captions["a_b"] == ["of a_b.png"]
    assert any("5 names do not make a unique key" in note and "IMG 1.png is IMG_1-" in note for note in done.notes)
    with pytest.raises(DataError, match=r"the id 'x' of IMG_1\.png already belongs to IMG 1\.png"):
        do(tmp_path, [{"file": name, "caption": "x", "id": "x"} for name in names[:2]], out="ids")


def test_a_name_that_may_be_either_of_two_is_asked_about(tmp_path):
    one, other = unicodedata.normalize("NFC", "é à.png"), unicodedata.normalize("NFD", "é à.png")
    half = "e\u0301 \u00e0.png"
    put(tmp_path / "pictures", one, other)
    with pytest.raises(DataError, match=r"c\.jsonl:1: .*may be any of '.*', '.*': rename one"):
        do(tmp_path, [{"file": half, "caption": "x"}])
    do(tmp_path, [{"file": one, "caption": "x"}, {"file": other, "caption": "y"}])
    assert sorted(texts[0] for texts in values(tmp_path / "out", "caption.en").values()) == ["x", "y"]


def test_names_that_are_no_unicode(tmp_path, capsys):
    put(tmp_path / "pictures")
    (tmp_path / "pictures").mkdir()
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        (tmp_path / "pictures" / os.fsdecode(name)).write_bytes(picture(3))
    done = do(tmp_path)
    assert len(values(tmp_path / "out")) == 2
    "\n".join(done.notes).encode()  # can be printed


def test_what_is_left_out_is_counted_and_named(tmp_path):
    put(
        tmp_path / "pictures",
        "a.png",
        "b.jfif",
        "sub/c.JPEG",
        "sub/d.png",
        "e.heic",
        "f.heic",
        "movie.mp4",
        "README",
        "._a.png",
        ".cache/g.png",
    )
    (tmp_path / "pictures/captions.csv").write_text("file,caption\na.png,A.\nb.jfif,B.\nsub/c.JPEG,C.\n")
    recipe = load_recipe(
        "folder", [f"images={tmp_path / 'pictures'}", f"captions={tmp_path / 'pictures/captions.csv'}", "split_by=none"]
    )
    notes = build(recipe, tmp_path / "out", progress=False).notes
    assert sorted(values(tmp_path / "out")) == ["a", "b", "sub_c"]
    assert "1 pictures have no caption and are left out: sub/d.png" in notes
    assert "2 files *.heic are no pictures that are read: e.heic, f.heic; convert them to JPEG to have them in" in notes
    assert "1 files without an extension are no pictures that are read: README" in notes
    assert "1 files *.mp4 are no pictures that are read: movie.mp4" in notes
    assert not any("captions.csv" in note or "._a" in note for note in notes)


def test_a_heic_that_has_a_caption_is_named(tmp_path):
    put(tmp_path / "pictures", "a.png")
    (tmp_path / "pictures/b.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(DataBudgetError, match=r"b\.heic: .*it is HEIC: convert it to JPEG"):
        do(tmp_path, [{"file": "a.png", "caption": "A."}, {"file": "b.heic", "caption": "B."}])


def test_pictures_without_captions_can_be_kept(tmp_path):
    put(tmp_path / "pictures", "a.png", "b.png", "c.png")
    said = [{"file": "b.png", "caption": "B."}, {"file": "c.png", "caption": ""}]
    done = do(tmp_path, said, "uncaptioned=keep")
    assert values(tmp_path / "out", "caption.en") == {"b": ["B."], "c": None, "a": None}
    assert (
        "2 pictures have no caption and are kept: a.png, c.png" in done.notes
        and "1 blank captions are left out" in done.notes
    )
    do(tmp_path, None, out="none")
    assert set(values(tmp_path / "none")) == {"a", "b", "c"} and Dataset(tmp_path / "none/train").columns() == ["image"]
    # by the key
    load_recipe("folder", [f"images={tmp_path / 'pictures'}", "captions=null", "split_by=concept"]).material()


TABLES = {
    "commas.csv": 'file,caption\na.png,"Äpfel, rot"\nb.png,B\n',
    "excel.csv": "\ufefffile;caption\r\na.png;Äpfel, rot\r\nb.png;B\r\n",
    "separator.csv": "sep=;\nfile;caption\na.png;Äpfel, rot\nb.png;B\n",
    "tabs.csv": "file\tcaption\na.png\tÄpfel, rot\nb.png\tB\n",
    "tabs.tsv": "file\tcaption\na.png\tÄpfel, rot\n\nb.png\tB\n",
    "upper.CSV": "file,caption,\na.png,\"Äpfel, rot\",\n,,\nb.png,B,\n",
    "lines.jsonl": '\ufeff{"file": "a.png", "caption": "\\ufeffÄpfel, rot"}\n{"file": "b.png", "caption": ["", "B"]}\n',
    "list.json": '[{"file": "a.png", "caption": "Äpfel, rot"}, {"file": "b.png", "captions": {"en": "B"}}]',
    "mapping.json": '{"a.png": "Äpfel, rot", "b.png": ["B"]}',
    "coco.json": json.dumps({
        "info": {}, "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
        "annotations": [{"image_id": 3, "id": 1, "caption": "B"}, {"image_id": 7, "id": 2,
        "caption": "Äpfel, rot\n"}]}),
    "windows.csv": "file,caption\n.\\a.png,\"Äpfel, rot\"\nb.png,B\n",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_files_of_captions(tmp_path, name):
    put(tmp_path / "pictures", "a.png", "b.png")
    do(tmp_path, TABLES[name].encode(), name=name)
    assert values(tmp_path / "out", "caption.en") == {"a": ["Äpfel, rot"], "b": ["B"]}


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("c.csv", "file,caption\na.png,B\na.png,Äpfel\n".encode("cp1252"),
        r"c\.csv:3: byte 0xc4 .*it is 'Ä': `iconv -f WINDOWS-1252"),
        ("c.jsonl", '{"file": "a.png", "caption": "é"}'.encode("latin-1"), r"c\.jsonl:1: byte 0xe9 .*'é'"),
        ("c.csv", "file\tcaption\na.png\tÄ\n".encode("utf-16"), r"c\.csv: it is UTF-16.*iconv -f UTF-16"),
        ("c.json", b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}',
        r"'caption' is missing.*boxes"),
        ("c.json", b'{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}',
        r"image_id 1 is not among the images"),
        ("c.json", b'{"version": {}}', r"expected a list of records.*found an object with version"),
        ("c.json", b'[{"file": "a.png", "caption": "x"}, 3]', r"c\.json:1: expected a JSON object, found 3"),
        ("c.json", b'[\n{"file"', r"c\.json:2: not valid JSON"),
        ("c.csv", b"image,text\na.png,x\n", r"c\.csv:2: expected the key `file`.*found image, text"),
        ("c.csv", b"file;caption\na.png;x;y\n", r"more fields than names.*quote fields that hold ';'"),
        ("c.jsonl", b"[" * 100_000, r"not valid JSON"),
    ],
)  # fmt: skip
def test_files_of_captions_that_are_wrong(tmp_path, name, data, said):
    put(tmp_path / "pictures", "a.png")
    with pytest.raises(DataError, match=said):
        do(tmp_path, data, name=name)
    with pytest.raises(ConfigError, match=r"c\.xlsx: expected a file \.jsonl"):
        list(records(tmp_path / "c.xlsx"))


def test_links_are_followed_and_loops_are_not(tmp_path):
    put(tmp_path / "elsewhere", "x.png")
    put(tmp_path / "pictures", "a.png", "sub/b.png")
    (tmp_path / "pictures/there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pictures/sub/up").symlink_to(tmp_path / "pictures")
    (tmp_path / "pictures/c.png").symlink_to(tmp_path / "elsewhere/x.png")
    (tmp_path / "pictures/gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pictures/pipe.png")
    done = do(tmp_path)
    assert set(values(tmp_path / "out")) == {"a", "sub_b", "there_x", "c"}
    assert done.notes == ("2 files are left out: broken links, or not plain files: gone.png, pipe.png",)


def test_new_pictures_go_into_a_dataset_beside(tmp_path):
    root = put(tmp_path / "pictures", "IMG 1.png", "b.png", "c.png")
    said = [{"file": name, "caption": name} for name in ("IMG 1.png", "b.png", "c.png")]
    do(tmp_path, said)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert do(tmp_path, said).built == 0
    put(root, "IMG_1.png", "d.png")
    said += [{"file": "IMG_1.png", "caption": "new"}, {"file": "d.png", "caption": "D"}]
    with pytest.raises(
        DataError,
        match=rf"(?s)holds another build.*2 of these 5 pictures are not in it.*--out {tmp_path}/out-2 beside=\[",
    ):
        do(tmp_path, said)
    done = do(tmp_path, said, f"beside=[{tmp_path / 'out'}]", out="out-2")
    found = values(tmp_path / "out-2", "caption.en")
    assert sorted(found.values()) == [["D"], ["new"]] and found["d"] == ["D"]
    assert not found.keys() & values(tmp_path / "out").keys()  # IMG_1 is the key of `IMG 1.png` there
    assert any("3 pictures are already in" in note for note in done.notes)
    assert do(tmp_path, said, f"beside=[{tmp_path / 'out'}]", out="out-2").built == 0  # the same again: complete
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    put(root, "e.png")
    said += [{"file": "e.png", "caption": "E"}]
    do(tmp_path, said, f"beside=[{tmp_path / 'out'},{tmp_path / 'out-2'}]", out="out-3")
    assert values(tmp_path / "out-3", "caption.en") == {"e": ["E"]}
    (root / "b.png").write_bytes(picture(77))
    with pytest.raises(DataError, match=r"b\.png: .*other bytes under its key 'b'"):
        do(tmp_path, said, f"beside=[{tmp_path / 'out'}]", out="out-4")

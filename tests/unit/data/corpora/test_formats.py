"""Readers of others' caption files: what they yield, and that they refuse what does not fit, by file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccr_dist.data.corpora.formats.files import Files
from ccr_dist.data.corpora.formats.readers import Entry, Keyed, Lines, Mapping, Names, Records, TextFolder
from ccr_dist.errors import ConfigError, DataError
from tests.published import write


def said(entries: Any) -> list[tuple[str, str, str | None]]:
    return [(entry.item, entry.text, entry.label) for entry in entries]


def test_lines_go_with_their_ids(tmp_path: Path) -> None:
    write(tmp_path, {"ids.txt": ["b.jpg", "a.jpg"], "t.de.gz": "eins\r\nzwei\u2028drei\rvier\n"})
    reader = Lines(format="lines", file="t.de", ids="ids.txt")  # found as t.de.gz
    assert said(reader.entries(Files(tmp_path))) == [("b.jpg", "eins", None), ("a.jpg", "zwei\u2028drei\rvier", None)]
    assert reader.needs() == ["t.de", "ids.txt"]
    (tmp_path / "t.de.gz").rename(tmp_path / "u.gz")
    with pytest.raises(ConfigError, match=r"t\.de: no such file"):
        list(reader.entries(Files(tmp_path)))


def test_keyed_lines_end_the_key_at_the_first_blank_or_tab(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"a.txt": "\ufeffx#enc#1 two  words \n\nx#enc#0 #1 of it\n", "b.txt": "COCO_val2014_1#0\t两 只猫\nx#0\n"},
    )
    files = Files(tmp_path)
    assert said(Keyed(format="keyed", file="a.txt", tag="enc").entries(files)) == [
        ("x", "two  words", "1"),
        ("x", "#1 of it", "0"),
    ]
    assert said(Keyed(format="keyed", file="b.txt").entries(files)) == [
        ("COCO_val2014_1", "两 只猫", "0"),
        ("x", "", "0"),
    ]
    assert list(Keyed(format="keyed", file="b.txt").entries(files))[1].place.endswith("b.txt:2")


def test_names_in_text_arrays_and_json(tmp_path: Path) -> None:
    write(tmp_path, {"n.txt": "a.jpg\n\n b.jpg\n", "n.npy": ["a.jpg", "b.jpg"], "n.json": ["a.jpg", "b.jpg"]})
    np.save(tmp_path / "bytes.npy", np.array([b"a.jpg", b"b.jpg"]))
    for name in ("n.txt", "n.npy", "n.json", "bytes.npy"):
        assert [item for _, item in Names(file=name).items(Files(tmp_path))] == ["a.jpg", "b.jpg"]


def test_records_go_through_lists_and_filters(tmp_path: Path) -> None:
    images = [
        {"f": "1.jpg", "split": s, "n": i, "sentences": [{"raw": f"{i}a"}, {"raw": f"{i}b"}]}
        for i, s in enumerate(("train", "val"))
    ]
    write(
        tmp_path, {"d.json": {"x": {"images": images}}, "l.jsonl": [{"k": 7, "en": {"caption": ["a", "b"]}}, {"k": 8}]}
    )
    reader = Records(
        format="records", file="d.json", at="x.images", item="f", text="sentences.raw", where={"split": ("val",)}
    )
    assert said(reader.entries(Files(tmp_path))) == [("1.jpg", "1a", None), ("1.jpg", "1b", None)]
    lines = Records(format="records", file="l.jsonl", item="k", text="en.caption")
    assert said(lines.entries(Files(tmp_path))) == [("7", "a", None), ("7", "b", None)]
    assert [item for _, item in lines.items(Files(tmp_path))] == ["7", "8"]


def test_a_folder_of_texts_and_a_mapping(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"d/b.txt": " B.\nMore. \n", "d/a.txt": "A.", "d/c.md": "no", "m.json": {"b.jpg": ["x", "y"], "a.jpg": "z"}},
    )
    files = Files(tmp_path)
    assert said(TextFolder(format="texts", file="d").entries(files)) == [("a", "A.", None), ("b", "B.\nMore.", None)]
    assert said(Mapping(format="mapping", file="m.json").entries(files)) == [
        ("b.jpg", "x", None),
        ("b.jpg", "y", None),
        ("a.jpg", "z", None),
    ]
    assert isinstance(next(Mapping(format="mapping", file="m.json").entries(files)), Entry)


@pytest.mark.parametrize(
    ("reader", "files", "message"),
    [
        (
            Lines(format="lines", file="t", ids="i"),
            {"t": ["a", "b"], "i": ["x"]},
            r"t: 2 lines for the 1 items of .*i$",
        ),
        (Keyed(format="keyed", file="t"), {"t": ["x#0 a", "no key"]}, r"t:2: expected `ITEM#N caption`"),
        (Keyed(format="keyed", file="t"), {"t": ["#enc#0 a"]}, r"t:1: expected"),
        (Keyed(format="keyed", file="t"), {"t": ["a#b#c#0 a"]}, r"t:1: expected"),
        (
            Keyed(format="keyed", file="t", tag="enc2de"),
            {"t": ["x#enc2fr#0 a"]},
            r"t:1: expected the tag 'enc2de', found the key 'x#enc2fr#0'",
        ),
        (Keyed(format="keyed", file="t", tag="enc"), {"t": ["x#0 a"]}, r"t:1: expected the tag 'enc'"),
        (Mapping(format="mapping", file="m.json"), {"m.json": ["a"]}, r"m\.json: expected a JSON object"),
        (
            Mapping(format="mapping", file="m.json"),
            {"m.json": {"a": [1]}},
            r"m\.json: 'a': expected a caption or a list",
        ),
        (
            Records(format="records", file="r.json", at="images", item="f", text="t"),
            {"r.json": {"imgs": []}},
            r"list at 'images'; there are: imgs",
        ),
        (
            Records(format="records", file="r.json", item="f", text="t"),
            {"r.json": [{"g": 1}]},
            r"record 0: expected one value at 'f'.*are: g",
        ),
        (
            Records(format="records", file="r.json", item="f", text="t"),
            {"r.json": [{"f": "a", "t": [1]}]},
            r"record 0: expected a caption",
        ),
        (Records(format="records", file="r.json", item="f"), {"r.json": [{"f": "a"}]}, r"set `text` to the field"),
        (Records(format="records", file="r.jsonl", item="f", text="t"), {"r.jsonl": []}, None),
        (TextFolder(format="texts", file="t"), {"t": "a"}, r"t: expected a folder of text files"),
        (Names(file="n.json"), {"n.json": {"a": 1}}, r"n\.json: expected a list of names"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, reader: Any, files: dict[str, Any], message: str | None) -> None:
    write(tmp_path, files)
    read = reader.items if isinstance(reader, Names) else reader.entries
    if message is None:
        assert list(read(Files(tmp_path))) == []
        return
    with pytest.raises(DataError, match=message):
        list(read(Files(tmp_path)))


def test_broken_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"a.json": [], "b.gz": "x"})
    (tmp_path / "a.json").write_text('{"a": ')
    (tmp_path / "t.txt").write_bytes(b"ok\n\xff\xfe\n")
    (tmp_path / "b.gz").write_bytes((tmp_path / "b.gz").read_bytes()[:-6])
    np.save(tmp_path / "o.npy", np.array(["a", None], dtype=object), allow_pickle=True)
    np.save(tmp_path / "f.npy", np.zeros((2, 2)))
    for reader, message in [
        (Mapping(format="mapping", file="a.json").entries, r"a\.json: not valid JSON"),
        (Names(file="t.txt").items, r"t\.txt:2: byte 0xff is not UTF-8.*iconv -f WINDOWS-1252"),
        (Names(file="b.gz").items, r"b\.gz: a damaged \.gz"),
        (Names(file="o.npy").items, r"o\.npy: expected an array of strings.*names\.astype\(str\)"),
        (Names(file="f.npy").items, r"f\.npy: expected one dimension of strings, found \(2, 2\) of float64"),
    ]:
        with pytest.raises(DataError, match=message):
            list(reader(Files(tmp_path)))

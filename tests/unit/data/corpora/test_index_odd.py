"""Tars as they are in the wild: changed since, other member names, bad captions, keys with dots, compressed, folders,
one tar more.
"""

import gzip
import io
import json
import os
import tarfile
import tracemalloc

import pytest
from typer.testing import CliRunner

from ccr_dist.data.cli import shards_app
from ccr_dist.data.corpora.build import build
from ccr_dist.data.corpora.index import index
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.data.storage.tar import ShardIndex, TarWriter
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.sealing import seal_columns
from ccr_dist.data.table.stores.push import push
from ccr_dist.data.table.verify import unusable, verify
from ccr_dist.errors import ConfigError, DataBudgetError, DataError
from tests.corpus import picture

JPG = picture(1, format="JPEG")


def write(path, members):
    path.parent.mkdir(exist_ok=True)
    with TarWriter(path) as tar:
        for name, data in dict(members).items():
            tar.add(name, data)
    return path


def pairs(**captions):
    return {
        f"{key}.{ext}": data for key, text in captions.items() for ext, data in (("jpg", JPG), ("txt", text.encode()))
    }


def do(*tars, out, **options):
    return index([str(tar) for tar in tars], out, progress=False, **options)


def values(out, column="caption.en"):
    column = Dataset(out).column(column)
    return [column.value(s, r) for s, n in enumerate(column.dataset.shard_rows) for r in range(n)]


# -- a tar that is another one now


@pytest.fixture
def indexed(tmp_path):
    tar = write(tmp_path / "a.tar", pairs(x="a dog", y="a cat"))
    do(tar, out=tmp_path / "d")
    return tar, tmp_path / "d"


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("text", ["a cow", "a long caption " * 60])
def test_a_changed_tar_gives_no_rows_and_is_indexed_anew(indexed, text, sealed):
    """Also one of the same size, where nothing but the time tells at first."""
    tar, out = indexed
    if sealed:
        seal_columns(Dataset(out))
    before = tar.stat()
    write(tar, pairs(x=text, y="a cat"))
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    for column in ("caption.en", "image"):
        with pytest.raises(DataError, match=r"a\.tar: .*(changed|bytes).*"):
            Dataset(out).column(column).value(0, 1)
    assert verify(out) != []
    done = do(tar, out=out)
    assert (done.again, done.recorded, done.there) == (2, 2, 0)
    assert done.changed == {"caption.en": ["x"]}
    assert values(out) == [[text.strip()], ["a cat"]] and verify(out) == []
    assert do(tar, out=out).there == 2


def test_a_tar_that_was_only_touched_is_read_and_indexed_anew_without_a_change(indexed):
    tar, out = indexed
    os.utime(tar)
    assert values(out) == [["a dog"], ["a cat"]] and verify(out) == []
    done = do(tar, out=out)
    assert (done.again, done.changed) == (2, {}) and values(out) == [["a dog"], ["a cat"]]


def test_a_tar_with_other_rows_is_refused_with_their_keys(indexed):
    tar, out = indexed
    write(tar, pairs(x="a dog", z="a cat"))
    with pytest.raises(DataError, match=r"1 are gone \(y\); 1 are new \(z\).*restore the former tar"):
        do(tar, out=out)


def test_columns_that_were_indexed_apart_are_told_of_the_change(tmp_path):
    tar = write(tmp_path / "a.tar", {"x.jpg": JPG, "x.txt": b"a", "x.json": b'{"de": "b"}'})
    do(tar, out=tmp_path / "d")
    do(tar, out=tmp_path / "d", captions={"de": "json:de"})
    write(tar, {"x.jpg": JPG, "x.txt": b"a", "x.json": b'{"de": "longer"}'})
    assert any(
        note.startswith("caption.de: was made from the former tars") for note in do(tar, out=tmp_path / "d").notes
    )
    with pytest.raises(DataError, match="changed after it was indexed"):
        values(tmp_path / "d", "caption.de")


def test_one_tar_more_is_refused_with_what_to_do(indexed, tmp_path):
    tar, out = indexed
    more = write(tmp_path / "b.tar", pairs(z="a cow"))
    with pytest.raises(
        DataError,
        match=r"a dataset of 1 tars, and 2 are given\. A dataset does not grow.*name both datasets",
    ):
        do(tar, more, out=out)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_an_index_or_record_that_is_damaged_is_made_anew(indexed, damage):
    tar, out = indexed
    for name in ("image/000000.index.json", "caption.en/000000.json"):
        path = out / name
        path.write_bytes(path.read_bytes()[:-9]) if damage == "cut" else path.unlink()
    do(tar, out=out)
    assert verify(out) == []


# -- captions


def test_lines_are_captions_without_marks_and_carriage_returns(tmp_path):
    text = "\ufeffa cat\r\n a tom \r\n\r\nein Kater\rdrei\n".encode()
    tar = write(tmp_path / "a.tar", {"x.jpg": JPG, "x.txt": text})
    do(tar, out=tmp_path / "d")
    do(tar, out=tmp_path / "e", captions={"en": "txt:whole"})
    assert values(tmp_path / "d") == [["a cat", "a tom", "ein Kater", "drei"]] and verify(tmp_path / "d") == []
    assert values(tmp_path / "e") == [["a cat\r\n a tom \r\n\r\nein Kater\rdrei"]]


def test_columns_indexed_before_lines_were_captions_stay_as_they_are(tmp_path):
    tar = write(tmp_path / "a.tar", {"x.txt": b"a\nb"})
    do(tar, out=tmp_path / "d", captions={"en": "txt:whole"})
    done = do(tar, out=tmp_path / "d")
    assert any("stays so" in note for note in done.notes) and values(tmp_path / "d") == [["a\nb"]]


@pytest.mark.parametrize(
    "field, hint",
    [("captoin", "did you mean 'caption'"), ("meta.titel", "did you mean 'meta.title'"), ("q", "There are: ")],
)
def test_a_misspelt_field_is_refused_with_those_that_are_there(tmp_path, field, hint):
    tar = write(tmp_path / "a.tar", {"x.jpg": JPG, "x.json": b'{"caption": "a", "meta": {"title": "b"}}', "y.jpg": JPG})
    with pytest.raises(DataError, match=f"no row has a text in the field '{field}'.*{hint}"):
        do(tar, out=tmp_path / "d", captions={"en": f"json:{field}"})
    assert not (tmp_path / "d").exists()
    do(tar, out=tmp_path / "d", captions={"en": "json:meta.title"})
    assert values(tmp_path / "d") == [["b"], None] and verify(tmp_path / "d") == []


BAD = [
    b'{"caption": NaN}',
    b'{"caption": 7}',
    b'{"caption": "a c',
    '{"caption": "caf\u00e9"}'.encode("latin-1"),
    b'{"caption": ["a", 1]}',
]
BAD += [b'{"caption": "\\ud83d"}', b"[" * 9000, b"[]", b"null"]


@pytest.mark.parametrize("sealed", [False, True])
def test_bad_captions_within_the_budget_are_null_and_named(tmp_path, sealed):
    tar = write(
        tmp_path / "a.tar", {"good.json": b'{"caption": "a"}', **{f"bad{i}.json": data for i, data in enumerate(BAD)}}
    )
    with pytest.raises(
        DataBudgetError, match=r"9 captions or names cannot be read, 8 are tolerated.*\n.*item 'bad0': expected"
    ):
        do(tar, out=tmp_path / "d", captions={"en": "json:caption"}, bad_items=8)
    assert not (tmp_path / "d").exists()
    done = do(tar, out=tmp_path / "d", captions={"en": "json:caption"})
    assert list(done.bad["caption.en"]) == [f"bad{i}" for i in range(9)] and "NaN" in str(BAD[0])
    if sealed:
        seal_columns(Dataset(tmp_path / "d"))
    assert values(tmp_path / "d") == [["a"]] + [None] * 9 and verify(tmp_path / "d") == []
    assert Dataset(tmp_path / "d").column("caption.en").nulls().tolist() == [9]
    assert [line.partition("item ")[2].partition(":")[0] for line in unusable(tmp_path / "d")] == [
        f"'bad{i}'" for i in range(9)
    ]


def test_a_column_without_one_readable_caption_is_refused(tmp_path):
    tar = write(tmp_path / "a.tar", {"x.json": b'{"caption": 7}'})
    with pytest.raises(DataError, match=r"not one caption can be read; the first: .*item 'x'"):
        do(tar, out=tmp_path / "d", captions={"en": "json:caption"})
    write(tar, {"x.jpg": JPG, "x.txt": b" \xef\xbb\xbf\n"})
    with pytest.raises(DataError, match=r"the members \.txt of all rows are blank"):
        do(tar, out=tmp_path / "d")


# -- members


def test_members_under_other_names(tmp_path):
    tar = write(tmp_path / "a.tar", {"s.input.jpg": JPG, "s.output.txt": b"a"})
    done = do(tar, out=tmp_path / "d", captions={"en": "output.txt"})
    assert (
        done.notes == ["image: the members .input.jpg"]
        and values(tmp_path / "d") == [["a"]]
        and values(tmp_path / "d", "image") == [JPG]
    )
    write(tar, {"s.left.jpg": JPG, "s.right.jpg": JPG})
    with pytest.raises(ConfigError, match=r"left\.jpg, right\.jpg\. Choose one, e\.g\. --image left\.jpg"):
        do(tar, out=tmp_path / "e")
    do(tar, out=tmp_path / "e", image="right.jpg")
    assert verify(tmp_path / "e") == []


def test_pictures_alone_texts_alone_and_jfif(tmp_path):
    done = do(write(tmp_path / "a.tar", {"a.JFIF": JPG, "a.json": b'{"t": "x"}'}), out=tmp_path / "d")
    assert (
        done.dataset.columns() == ["image"]
        and "--caption LANG=json:FIELD" in done.notes[0]
        and values(tmp_path / "d", "image") == [JPG]
    )
    done = do(write(tmp_path / "b.tar", {"a.txt": b"x"}), out=tmp_path / "e")
    assert done.dataset.columns() == ["caption.en"] and "a dataset of texts" in done.notes[0]
    with pytest.raises(DataError, match=r"nothing to index.*there are: cls"):
        do(write(tmp_path / "c.tar", {"a.cls": b"1"}), out=tmp_path / "f")


def test_videos_become_the_column_video(tmp_path):
    clip = b"\0\0\0\x18ftypmp42" + bytes(50)
    done = do(write(tmp_path / "a.tar", {"a.mp4": clip, "a.txt": b"x"}), out=tmp_path / "d")
    assert done.dataset.columns() == ["caption.en", "video"] and values(tmp_path / "d", "video") == [clip]
    assert done.dataset.column("caption.en").view_of == "video"
    done = do(write(tmp_path / "b.tar", {"a.mp4": clip, "a.jpg": JPG}), out=tmp_path / "e")
    assert done.dataset.columns() == ["image"] and "--video 'mp4'" in "".join(done.notes)


def test_pictures_indexed_by_an_earlier_version_are_indexed_again(tmp_path):
    """Whose list of extensions was shorter."""
    tar = write(tmp_path / "a.tar", pairs(x="a"))
    do(tar, out=tmp_path / "d", image="jpg;jpeg;png;webp;gif;bmp;tif;tiff")
    assert do(tar, out=tmp_path / "d").there == 2


def test_keys_with_dots_take_no_more_memory_than_rows(tmp_path):
    tar = write(tmp_path / "a.tar", {f"cam_{i}.169{i}.{ext}": b"x" for i in range(3000) for ext in ("jpg", "txt")})
    tracemalloc.start()
    scan = ShardIndex.scan(tar)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(scan.members) == 6000 and peak < 30e6  # dense: 6,000 extensions x 3,000 rows x 16 bytes
    with pytest.raises(DataError, match=r"1690\.jpg.* more; a key ends at the first dot") as e:
        do(tar, out=tmp_path / "d")
    assert len(str(e.value)) < 1000


# -- files


@pytest.mark.parametrize(
    "start, kind",
    [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh9", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"PK\3\4", "ZIP"),
        (b"PAR1", "Parquet"),
    ],
)
def test_what_is_no_tar_is_called_what_it_is(tmp_path, start, kind):
    (tmp_path / "a.tar").write_bytes(start + bytes(2000))
    with pytest.raises(DataError, match=rf"a\.tar: .*{kind}.*not a plain tar"):
        do(tmp_path / "a.tar", out=tmp_path / "d")


def test_two_archives_in_one_file_are_refused(tmp_path):
    one, two = (write(tmp_path / f"{name}.tar", pairs(**{name: "x"})).read_bytes() for name in "ab")
    (tmp_path / "both.tar").write_bytes(one + two)
    with pytest.raises(
        DataError, match=rf"both\.tar: another archive follows.*`cat a\.tar b\.tar`.*begins at byte {len(one)}"
    ):
        do(tmp_path / "both.tar", out=tmp_path / "d")
    (tmp_path / "both.tar").write_bytes(one + bytes(3 << 20) + b"x")
    with pytest.raises(
        DataError, match=rf"bytes that are not a tar follow its end mark \(the first at byte {len(one) + (3 << 20)} "
    ):
        do(tmp_path / "both.tar", out=tmp_path / "d")
    (tmp_path / "both.tar").write_bytes(one + bytes(5000))
    do(tmp_path / "both.tar", out=tmp_path / "d")
    assert values(tmp_path / "d") == [["x"]]


def test_members_of_a_key_need_not_be_neighbours(tmp_path):
    do(write(tmp_path / "a.tar", {"a.jpg": JPG, "b.jpg": JPG, "b.txt": b"2", "a.txt": b"1"}), out=tmp_path / "d")
    assert values(tmp_path / "d") == [["1"], ["2"]] and verify(tmp_path / "d") == []


def test_folders_are_their_tars_or_told_what_they_hold(tmp_path):
    write(tmp_path / "s" / "b.tar", pairs(b="2"))
    write(tmp_path / "s" / "a.tar", pairs(a="1"))
    do(tmp_path / "s", out=tmp_path / "d")
    assert values(tmp_path / "d") == [["1"], ["2"]]
    folder = tmp_path / "p"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"a folder without a \.tar in it; it holds nothing"):
        do(folder, out=tmp_path / "e")
    (folder / "x.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(ConfigError, match=r"but \.gz files: unpack them first"):
        do(folder, out=tmp_path / "e")
    (folder / "x.jpg").write_bytes(JPG)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "x.jpg", "text": "a"}))
    with pytest.raises(
        ConfigError, match=r"1 pictures: `ccr-dist shards build folder images=.* captions=.*metadata\.jsonl"
    ):
        do(folder, out=tmp_path / "e")
    (folder / "metadata.csv").write_text("file_name,text\nx.jpg,a\n")
    for table in ("metadata.jsonl", "metadata.csv"):
        options = [f"images={folder}", f"captions={folder / table}", "split_by=none"]
        build(load_recipe("folder", options), tmp_path / table, workers=0, progress=False)
        assert values(tmp_path / table / "train") == [["a"]]


def test_members_whose_names_make_no_key_are_passed_over_and_named(tmp_path):
    names = ["/etc/x.jpg", "../x.jpg", "a\nb.jpg", os.fsdecode(b"caf\xe9.jpg"), "./ok.jpg"]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(JPG)
            tar.addfile(info, io.BytesIO(JPG))
    with pytest.raises(DataBudgetError, match="4 captions or names cannot be read, 3 are tolerated"):
        do(tmp_path / "a.tar", out=tmp_path / "d", bad_items=3)
    done = do(tmp_path / "a.tar", out=tmp_path / "d")
    assert done.dataset.keys(0) == ("./ok",) and verify(tmp_path / "d") == []
    assert (
        r"4 members are ignored, since no key can be made of their names: '/etc/x.jpg' in a.tar" in done.notes[-1]
        and r"caf\udce9" in done.notes[-1]
    )


def test_a_language_that_names_no_column_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"column name 'caption\.\.\./x'"):
        do(write(tmp_path / "a.tar", pairs(x="1")), out=tmp_path / "d", captions={"../x": "txt"})
    assert not (tmp_path / "d").exists()


def test_a_tar_without_members_is_a_shard_without_rows(tmp_path):
    done = do(write(tmp_path / "a.tar", {}), write(tmp_path / "b.tar", pairs(x="1")), out=tmp_path / "d")
    assert done.dataset.shard_rows == (0, 1) and values(tmp_path / "d") == [["1"]] and verify(tmp_path / "d") == []


def test_names_with_braces_and_stars_in_them(tmp_path):
    tar = write(tmp_path / "odd [1] {x}.tar", pairs(a="1"))
    do(tar, out=tmp_path / "d")
    assert values(tmp_path / "d") == [["1"]]


def test_the_command(tmp_path):
    tar = write(tmp_path / "a.tar", {"a.jpg": JPG, "a.json": b'{"t": "x"}', "b.jpg": JPG, "b.json": b'{"t": 7}'})

    def run(*more):
        arguments = ["index", str(tar), "--out", str(tmp_path / "d"), "--caption", "en=json:t", "-q", *more]
        return CliRunner().invoke(shards_app, arguments)

    said = run().output
    assert "caption.en: 1 values cannot be read and are null" in said and "item 'b'" in said
    write(tar, {"a.jpg": JPG, "a.json": b'{"t": "other"}', "b.jpg": JPG, "b.json": b'{"t": 7}'})
    assert "caption.en: 1 rows changed: a;" in run().output.replace("\n", " ")
    assert "twice" in str(run("--caption", "en=txt").exception)
    assert isinstance(run("--keys", "both").exception, ConfigError)


def test_keys_of_the_tar_survive_a_store(tmp_path, monkeypatch):
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        write(tmp_path / f"{name}.tar", pairs(x=name))
    do(tmp_path / "a.tar", tmp_path / "b.tar", out=tmp_path / "d")
    push(tmp_path / "d", "memory://index/keys")
    assert values("memory://index/keys") == [["a"], ["b"]] and verify("memory://index/keys", decode=False) == []

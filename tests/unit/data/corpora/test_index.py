"""Tars that others wrote become datasets without a copy."""

import json

import pytest

from ccr_dist.data.corpora.index import expand, index
from ccr_dist.data.storage.tar import TarWriter
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataError
from tests.corpus import picture


@pytest.fixture
def tars(tmp_path):
    """Three tars in the layout of img2dataset: .jpg .txt .json."""
    for shard in range(3):
        with TarWriter(tmp_path / f"{shard:05d}.tar") as tar:
            for i in range(2):
                key = f"{shard:05d}{i:04d}"
                tar.add(f"{key}.jpg", picture(i, format="JPEG"))
                tar.add(f"{key}.txt", f" ein Bild {key}\n".encode())
                tar.add(
                    f"{key}.json",
                    json.dumps({"caption": f"picture {key}", "url": "http://x", "alt": ["a", "b"]}).encode(),
                )
    return tmp_path


def write(path, members):
    with TarWriter(path) as tar:
        for name, data in members.items():
            tar.add(name, data)
    return path


def do(tars, out, pattern="{00000..00002}.tar", **options):
    return index([str(tars / pattern)], out, progress=False, **options)


def test_img2dataset_layout(tars, tmp_path):
    out = tmp_path / "out"
    done = do(tars, out, captions={"de": "txt", "en": "json:caption", "fr": "json:alt"})
    dataset = Dataset(out)
    assert (dataset.rows, len(dataset.shards), done.recorded, done.missing) == (6, 3, 12, {})
    assert dataset.column("image").read(1, 1) == picture(1, format="JPEG")
    assert dataset.column("caption.de").value(2, 0) == ["ein Bild 000020000"]
    assert dataset.column("caption.en").value(2, 0) == ["picture 000020000"]
    assert dataset.column("caption.fr").value(2, 0) == ["a", "b"]
    assert dataset.column("caption.en").view_of == "image"
    assert list(out.rglob("*.tar")) == []  # no copy
    assert verify(out) == []
    again = do(tars, out, captions={"de": "txt", "en": "json:caption", "fr": "json:alt"})
    assert (again.recorded, again.there) == (0, 12)


def test_tars_of_webdatasets_shard_writer(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "w-%06d.tar"), maxcount=3, verbose=0) as writer:
        for i in range(7):
            writer.write({"__key__": f"k{i}", "png": picture(i), "txt": f"thing {i}"})
    dataset = index([str(tmp_path / "w-*.tar")], tmp_path / "out", progress=False).dataset
    assert dataset.shard_rows == (3, 3, 1)
    assert dataset.column("caption.en").value(2, 0) == ["thing 6"]
    assert dataset.column("image").value(1, 0) == picture(3)
    assert verify(tmp_path / "out") == []


def test_missing_members_are_named_and_null(tars, tmp_path):
    with TarWriter(tars / "00001.tar") as tar:
        tar.add("x.jpg", picture(0, format="JPEG"))
        tar.add("y.txt", b"no picture")
    done = do(tars, tmp_path / "out")
    assert done.missing == {"image": ["y"], "caption.en": ["x"]}
    assert done.dataset.column("image").present(1).tolist() == [True, False]
    assert done.dataset.column("caption.en").value(1, 0) is None
    assert verify(tmp_path / "out") == []


def test_repeated_keys_begin_with_their_tar(tars, tmp_path):
    (tars / "00001.tar").write_bytes((tars / "00000.tar").read_bytes())
    with pytest.raises(DataError, match=r"'000000000' is in .*00000\.tar and in .*00001\.tar.*--keys tar"):
        do(tars, tmp_path / "out", keys="own")
    done = do(tars, tmp_path / "out")
    assert done.dataset.keys(1) == ("00001/000000000", "00001/000000001") and "00000/000000000" in done.notes[0]
    assert done.dataset.column("caption.en").value(1, 0) == ["ein Bild 000000000"] and verify(tmp_path / "out") == []
    (tars / "00001.tar").write_bytes((tars / "00002.tar").read_bytes())  # the rule stays as it was begun
    with pytest.raises(DataError, match=r"00001\.tar: its rows differ .*2 are gone \(00001/000000000, .* 2 are new"):
        do(tars, tmp_path / "out")
    with pytest.raises(ConfigError, match="--keys tar"):
        do(tars, tmp_path / "out", keys="own")


def test_tars_of_one_name_take_their_folders_in(tmp_path):
    for name in ("a/0.tar", "b/0.tar"):
        (tmp_path / name).parent.mkdir()
        write(tmp_path / name, {"k.txt": b"x"})
    dataset = index([str(tmp_path / "[ab]/0.tar")], tmp_path / "out", progress=False).dataset
    assert [dataset.keys(shard) for shard in (0, 1)] == [("a/0/k",), ("b/0/k",)]


def test_a_truncated_tar_is_named(tars, tmp_path):
    whole = (tars / "00001.tar").read_bytes()
    (tars / "00001.tar").write_bytes(whole[:3000])
    with pytest.raises(DataError, match=r"00001\.tar.*truncated"):
        do(tars, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_members_are_explained(tars, tmp_path):
    with pytest.raises(DataError, match=r"no member \.cap for caption\.en; there are: jpg, json, txt"):
        do(tars, tmp_path / "out", captions={"en": "cap"})
    with pytest.raises(ConfigError, match="name the field"):
        do(tars, tmp_path / "out3", captions={"en": "json"})


def test_other_tars_with_the_same_keys_are_refused(tars, tmp_path):
    do(tars, tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    for path in tars.glob("*.tar"):
        (other / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"plan\.indexed\.first: there"):
        do(other, tmp_path / "out")


def test_a_tar_that_changed_later_is_found_by_verify(tars, tmp_path):
    do(tars, tmp_path / "out")
    whole = bytearray((tars / "00001.tar").read_bytes())
    whole[600] ^= 1
    (tars / "00001.tar").write_bytes(whole)
    assert {problem.where for problem in verify(tmp_path / "out")} == {str(tars / "00001.tar")}


def test_expand(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar"):
        (tmp_path / name).touch()
    assert [p.name for p in expand([str(tmp_path / "a-{08..10}.tar")])] == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [p.name for p in expand([str(tmp_path / "{b,a-1*}.tar")])] == ["b.tar", "a-10.tar"]
    for bad in ("a-{07..08}.tar", "c*.tar"):
        with pytest.raises(ConfigError, match="no such tar"):
            expand([str(tmp_path / bad)])
    with pytest.raises(ConfigError, match="given twice"):
        expand([str(tmp_path / "b.tar"), str(tmp_path / "*.tar")])
    with pytest.raises(ConfigError, match="local"):
        expand(["s3://bucket/x.tar"])

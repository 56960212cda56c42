"""Tar shards: equal bytes for equal content, readable by others, and every kind of damage named."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr_dist.data.storage.file_ranges import forget_files, read_at
from ccr_dist.data.storage.tar import ShardIndex, TarWriter, split_name
from ccr_dist.errors import DataError


def write(path, members):
    with TarWriter(path) as tar:
        for name, data in members:
            tar.add(name, data)
    return path


MEMBERS = [("a.jpg", b"1" * 700), ("a.json", b"{}"), ("b.jpg", b""), ("ü/c.seg.PNG", b"3")]


def test_index_finds_every_member(tmp_path):
    path = write(tmp_path / "x.tar", MEMBERS)
    index = ShardIndex.scan(path)
    assert index.keys == ("a", "b", "ü/c")
    assert set(index.members) == {"jpg", "json", "seg.png"}
    offsets, sizes = index.members["jpg"]
    assert sizes.tolist() == [700, 0, -1]
    assert read_at(path, int(offsets[0]), 700) == b"1" * 700
    again = ShardIndex.from_json(index.to_json())
    assert again.keys == index.keys
    assert all(
        np.array_equal(a, b) for e in index.members for a, b in zip(index.members[e], again.members[e], strict=True)
    )


def test_equal_content_gives_equal_bytes(tmp_path):
    assert write(tmp_path / "1.tar", MEMBERS).read_bytes() == write(tmp_path / "2.tar", MEMBERS).read_bytes()


def test_long_names_survive(tmp_path):
    name = "k" * 300
    assert ShardIndex.scan(write(tmp_path / "x.tar", [(f"{name}.txt", b"x")])).keys == (name,)


def test_every_truncation_is_noticed(tmp_path):
    whole = write(tmp_path / "x.tar", MEMBERS).read_bytes()
    end = 512 * 8  # behind the last member's data: the end mark begins here
    cut = tmp_path / "cut.tar"
    for length in [*range(0, end, 256), end - 1, end, end + 100]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar"):
            ShardIndex.scan(cut)
    cut.write_bytes(whole[: end + 512])
    assert len(ShardIndex.scan(cut).keys) == 3


def test_garbage_between_members_is_noticed(tmp_path):
    whole = bytearray(write(tmp_path / "x.tar", MEMBERS).read_bytes())
    whole[1536:1600] = b"garbage!" * 8  # the second member's header: tarfile alone would silently stop there
    (tmp_path / "x.tar").write_bytes(whole)
    with pytest.raises(DataError, match=r"damaged.*byte 1536"):
        ShardIndex.scan(tmp_path / "x.tar")


def test_duplicate_members_are_named(tmp_path):
    path = write(tmp_path / "x.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3")])
    with pytest.raises(DataError, match=r"two members a\.jpg.*byte 2048"):
        ShardIndex.scan(path)


def test_links_are_refused_and_directories_and_hidden_files_passed_over(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("d/a.txt", "d/._a.txt", "d/README", "__meta__/x.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    index = ShardIndex.scan(path)
    assert index.keys == ("d/a",)
    assert index.ignored == 3
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("d/evil.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"evil\.txt.*link"):
        ShardIndex.scan(path)


def test_a_failed_writer_leaves_no_complete_tar(tmp_path):
    with pytest.raises(RuntimeError), TarWriter(tmp_path / "x.tar") as tar:
        tar.add("a.txt", b"1")
        raise RuntimeError
    with pytest.raises(DataError):
        ShardIndex.scan(tmp_path / "x.tar")


def test_read_at_says_truncated(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_at(path, 1, 3) == b"234"
    with pytest.raises(DataError, match="truncated"):
        read_at(path, 3, 3)


def test_read_at_opens_again_after_an_io_error(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(FileNotFoundError):
        read_at(path, 0, 1)
    path.write_bytes(b"1")
    assert read_at(path, 0, 1) == b"1"
    path.unlink()
    assert read_at(path, 0, 1) == b"1"  # through the open descriptor
    forget_files()
    with pytest.raises(FileNotFoundError):
        read_at(path, 0, 1)


@pytest.mark.parametrize(
    "name, parts",
    [
        ("a.jpg", ("a", "jpg")),
        ("a/b.c.JPG", ("a/b", "c.jpg")),
        ("a.d/b.x", ("a.d/b", "x")),
        ("a", None),
        (".x.y", None),
        ("__k__/a.x", None),
        ("d/._a.x", None),
    ],
)
def test_names_are_cut_as_webdataset_cuts_them(name, parts):
    assert split_name(name) == parts


@given(st.text("abc/é_.", min_size=1), st.sampled_from(["x", "y.z", "JPG"]))
def test_keys_agree_with_webdataset(stem, extension):
    tariterators = pytest.importorskip("webdataset.tariterators")
    name = f"{stem}.{extension}"
    key, theirs = tariterators.base_plus_ext(name)
    passed_over = key is None or key.endswith("/")
    assert split_name(name) == (None if passed_over else (key, theirs.lower()))

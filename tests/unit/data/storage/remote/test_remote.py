"""Datasets opened by URL: read like folders, fetched as far as they are read, worked on in lazy copies."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ccr_dist.data.corpora.build import build
from ccr_dist.data.corpora.index import index
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.data.storage import remote
from ccr_dist.data.storage.object_store import as_url
from ccr_dist.data.table.dataset import Dataset, create_dataset, open_all
from ccr_dist.data.table.stores.pull import pull
from ccr_dist.data.table.stores.push import push
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataError, StorageError
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.runner import run
from tests.jobs import Shout, captions
from tests.stores import ROWS, URL, payloads, values


def test_a_url_reads_like_the_folder(dataset, tmp_path):
    push(dataset.root, URL)
    there = Dataset(URL)
    assert values(there) == values(dataset)
    assert (there.digest, there.shards, there.rows) == (dataset.digest, dataset.shards, dataset.rows)
    assert [there.keys(shard) for shard in range(3)] == [dataset.keys(shard) for shard in range(3)]
    assert [there.column(name).digest for name in there.columns()] == [
        dataset.column(name).digest for name in dataset.columns()
    ]
    assert np.array_equal(there.column("caption.en").present(0), [True, False, True])
    again = pickle.loads(pickle.dumps(there.column("caption.en")))
    assert again.value(2, 3) == ["2-3 one", "2-3 two"]
    assert URL in repr(there) and URL in str(again.where(0, 0))


def test_only_what_is_read_is_fetched(dataset, tmp_path):
    push(dataset.root, URL)
    column = Dataset(URL).column("caption.en")
    assert not (tmp_path / "cache/remote/payloads").exists()
    column.value(1, 0)
    assert payloads(tmp_path) == {f"{column.record(1)['sha256']}.tar": column.record(1)["bytes"]}
    assert verify(URL, fast=True) == []
    assert len(payloads(tmp_path)) == 1


def test_what_is_no_dataset_says_so(tmp_path):
    with pytest.raises(DataError, match=r"memory://nothing: not a dataset \(no dataset.json\); `ccr-dist shards push`"):
        Dataset("memory://nothing/")
    with pytest.raises(DataError, match="memory://nothing: neither a dataset"):
        open_all("memory://nothing")
    with pytest.raises(ConfigError, match="fsspec cannot open this"):
        Dataset("nosuchstore://x")


@pytest.mark.parametrize(
    "path, url",
    [
        ("s3://b/x/", "s3://b/x"),
        (Path("s3://b/x"), "s3://b/x"),
        (Path("file:///a/b"), "file:///a/b"),
        ("memory://x", "memory://x"),
        ("data/train", None),
        ("/data", None),
        (Path("c:/x"), None),
        ("s3:", None),
    ],
)
def test_urls_are_told_from_paths(path, url):
    assert as_url(path) == url


def test_nothing_is_made_at_a_url(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    push(dataset.root, URL)
    recipe = load_recipe("texts", [f"file={tmp_path / 'none.jsonl'}"])
    for make in (
        lambda: build(recipe, Path(URL)),
        lambda: index([str(tmp_path / "x.tar")], Path(URL)),
        lambda: create_dataset(URL, name="x", split="train", keys=[["a"]]),
        lambda: pull(URL, "memory://other"),
    ):
        with pytest.raises(
            ConfigError, match=r"on a POSIX folder only; use a folder, then `ccr-dist shards push FOLDER"
        ):
            make()
    assert not Path("memory:").exists()


def test_a_job_works_in_a_lazily_pulled_folder_and_its_column_is_pushed(dataset, tmp_path):
    push(dataset.root, URL)
    pull(URL, tmp_path / "work", lazy=True)
    work = Dataset(tmp_path / "work")
    assert not list(work.root.glob("*/*.tar"))
    run(work, Translate(Shout(), "caption.en"), "caption.xx.shout", progress=False)
    assert work.column("caption.xx.shout").value(1, 0) == ["1-0 ONE", "1-0 TWO"]
    assert {path.parent.name for path in work.root.glob("*/*.tar")} == {"caption.xx.shout"}
    (done,) = push(work.root, URL)
    assert (done.shards, done.there) == (3, 6)
    assert Dataset(URL).column("caption.xx.shout").value(2, 3) == ["2-3 ONE", "2-3 TWO"]
    pull(URL, work.root)  # what was only in the store comes too
    assert values(Dataset(work.root)) == values(Dataset(URL))
    assert verify(work.root) == []


def test_a_url_shows_what_the_store_has_now(dataset):
    push(dataset.root, URL)
    column = Dataset(URL).column("caption.en")
    assert column.value(1, 1) == ["1-1 one", "1-1 two"]
    for name in [name for name in MemoryFileSystem.store if "/caption.en/" in name]:  # against the rules, but people do
        del MemoryFileSystem.store[name]
    shutil.rmtree(dataset.root)
    other = captions(dataset.root, ROWS, {(1, 1): ["longer than it was before"]})
    push(other.root, URL)
    assert values(Dataset(URL))["caption.en", 1, 1] == ["longer than it was before"]
    MemoryFileSystem.store.clear()
    push(captions(dataset.root.with_name("n"), (1,)).root, URL)
    assert (Dataset(URL).rows, Dataset(URL).columns()) == (1, ["caption.en"])


def test_a_metadata_file_that_a_crash_spoiled_is_fetched_again(dataset):
    push(dataset.root, URL)
    record = Dataset(URL).column("caption.en").path(0, "record")
    record.write_bytes(b"")
    remote.look_again()
    assert Dataset(URL).column("caption.en").record(0)["rows"] == 3


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (FileNotFoundError("The specified bucket does not exist"), ConfigError, "bucket does not exist; make the buck"),
        (PermissionError("Access Denied"), StorageError, "Access Denied. Everything committed before is intact; see"),
        (OSError(20, "raw"), StorageError, "Not a directory. Everything"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate"), ConfigError, "Unable to locate; set what"),
    ],
)
@pytest.mark.parametrize("act", ["push", "pull", "open"])
def test_a_store_that_refuses_is_asked_once(dataset, tmp_path, monkeypatch, error, kind, said, act):
    """The errors as s3fs raises them."""
    asked = []

    def refused(*arguments, **options):
        asked.append(arguments)
        raise error

    for name in ("find", "info", "ls", "cat_ranges", "pipe_file", "put_file"):
        monkeypatch.setattr(MemoryFileSystem, name, refused)
    do = {
        "push": lambda: push(dataset.root, URL),
        "pull": lambda: pull(URL, tmp_path / "p"),
        "open": lambda: Dataset(URL),
    }
    with pytest.raises(kind, match=rf"^{URL}.*: .*{said}"):
        do[act]()
    assert len(asked) == 1
    assert not (tmp_path / "p").exists()


def test_a_file_where_the_store_is_to_be(dataset, tmp_path):
    (tmp_path / "FILE").write_text("")
    for url in (f"file://{tmp_path}/FILE", f"file://{tmp_path}/FILE/below"):
        with pytest.raises(ConfigError, match="FILE: a file is there, and a folder is expected"):
            push(dataset.root, url)

"""Datasets in an object store (memory://): pushed, pulled, opened by URL, trained on; a bounded cache; every damage and
mixture found.
"""

import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.data.corpora.build import build
from ccr_dist.data.corpora.index import index
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.data.storage import payload_cache, remote, store
from ccr_dist.data.storage.payload_cache import locked
from ccr_dist.data.storage.tar import TarWriter
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset, open_all
from ccr_dist.data.table.transfer import pull, push
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataError, StorageError
from ccr_dist.generate.runner import run
from ccr_dist.generate.translate import Translate
from tests.corpus import picture
from tests.jobs import Shout, captions

URL = "memory://bucket/toy"
ROWS = (3, 2, 4)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An empty store and an empty cache for every test, and no waiting between attempts."""
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    remote.look_again()
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def dataset(tmp_path):
    made = captions(tmp_path / "d", ROWS, {(0, 1): None})
    matrix = create_column(made, "feature.x", kind="matrix", extension="npy", plan={}, provenance={"who": "test"})
    for shard, rows in enumerate(ROWS):
        matrix.commit_matrix(shard, np.arange(rows * 2).reshape(rows, 2) + shard)
        matrix.write_stats(shard, {"seconds": 1})
    return made


def names() -> set[str]:
    """What is in the store below the URL."""
    return {name.removeprefix("/bucket/toy/") for name in MemoryFileSystem.store}


def values(dataset: Dataset) -> dict:
    return {
        (name, shard, row): np.asarray(value).tolist() if (value := column.value(shard, row)) is not None else None
        for name in dataset.columns()
        for column in [dataset.column(name)]
        for shard in range(len(dataset.shards))
        for row in range(dataset.shard_rows[shard])
    }


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def payloads(tmp_path) -> dict[str, int]:
    return {
        path.name: path.stat().st_size for path in (tmp_path / "cache/remote/payloads").iterdir() if path.name[0] != "."
    }


def refuse_writes(monkeypatch, name: str, after: int = 0) -> None:
    """From the `after`-th call on, a method of the store's client fails."""
    calls, real = [], getattr(MemoryFileSystem, name)

    def failing(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) > after:
            raise OSError("the connection is gone")
        return real(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, name, failing)


# -- copying


def test_pushed_and_pulled_is_the_same_bytes(dataset, tmp_path):
    (done,) = push(dataset.root, URL)
    assert (done.columns, done.shards, done.there) == (2, 6, 0)
    assert done.bytes == sum(
        path.stat().st_size for pattern in ("*/*.tar", "*/*.npy") for path in dataset.root.glob(pattern)
    )
    (done,) = push(dataset.root, URL)
    assert (done.shards, done.there, done.bytes) == (0, 6, 0)
    (got,) = pull(URL, tmp_path / "e")
    assert (got.shards, got.there) == (6, 0)
    assert tree(tmp_path / "e") == tree(dataset.root)
    (got,) = pull(URL, tmp_path / "e")
    assert (got.shards, got.there, got.bytes) == (0, 6, 0)


def test_a_folder_of_datasets_goes_and_comes_as_one(tmp_path):
    for split in ("val", "train"):
        captions(tmp_path / "all" / split, (2,))
    assert [done.place for done in push(tmp_path / "all", URL)] == [f"{URL}/train", f"{URL}/val"]
    assert [d.place for d in open_all(URL)] == [f"{URL}/train", f"{URL}/val"]
    pull(URL, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "all")
    with pytest.raises(DataError, match=r"it holds the datasets train, val: name one of them"):
        Dataset(URL)


def test_columns_can_be_chosen(dataset, tmp_path):
    push(dataset.root, URL, columns=["caption.en"])
    assert not any(name.startswith("feature.x") for name in names())
    push(dataset.root, URL)
    pull(URL, tmp_path / "e", columns=["feature.x"])
    assert Dataset(tmp_path / "e").columns() == ["feature.x"]
    with pytest.raises(DataError, match=r"no column 'feature\.y'\. There are: caption\.en, feature\.x"):
        pull(URL, tmp_path / "f", columns=["feature.y"])


def test_unfinished_columns_are_pushed_as_far_as_they_are(dataset):
    column = create_column(dataset, "label.x", kind="label", extension="json", plan={}, provenance={})
    column.commit(1, [column.encode("a"), column.encode("b")])
    push(dataset.root, URL)
    assert Dataset(URL).column("label.x").finished() == {1}
    with pytest.raises(DataError, match=rf"{URL}/label.x: 2 of 3 shards are missing"):
        Dataset(URL).column("label.x").require_complete()


@pytest.mark.parametrize("what", ["dataset", "plan", "record"])
@pytest.mark.parametrize("way", ["push", "pull"])
def test_what_is_there_and_different_is_refused_before_anything_is_copied(dataset, tmp_path, what, way):
    push(dataset.root, URL)
    rows = (3, 2) if what == "dataset" else ROWS
    other = captions(tmp_path / "o", rows, {(1, 1): ["something else"]} if what == "record" else None)
    label = create_column(other, "label.x", kind="label", extension="json", plan={}, provenance={})
    label.commit(0, [label.encode("l")] * rows[0])
    if what == "plan":
        shutil.rmtree(other.root / "caption.en")
        create_column(other, "caption.en", kind="texts", extension="json", plan={"recipe": "other"}, provenance={})
    here, there = tree(other.root), names()
    plan = r"plan\.recipe: there '\w+', asked '\w+'"
    messages = {"dataset": r"dataset\.json: shards", "plan": plan, "record": r"000001\.json: sha256: there"}
    with pytest.raises(DataError, match=messages[what]):
        push(other.root, URL) if way == "push" else pull(URL, other.root)
    assert (tree(other.root), names()) == (here, there)


def complete(there: set[str]) -> None:
    """A record is in the store only with its payload and index, a dataset only with its keys."""
    for name in there:
        if re.search(r"/\d{6}\.json$", name):
            stem = name.removesuffix(".json")
            assert f"{stem}.index.json" in there and there & {f"{stem}.tar", f"{stem}.npy"}, name
    assert "dataset.json" not in there or {f"keys/{i:06d}.txt" for i in range(len(ROWS))} <= there


@pytest.mark.parametrize("method, writes", [("put_file", 6), ("pipe_file", 21)])
def test_an_interrupted_push_is_continued(dataset, tmp_path, monkeypatch, method, writes):
    """Every write fails once, with all that come after it."""
    for after in range(writes):
        MemoryFileSystem.store.clear()
        with monkeypatch.context() as patch:
            refuse_writes(patch, method, after)
            with pytest.raises(StorageError, match=r"memory://bucket/toy/.*the connection is gone \(4 attempts\)"):
                push(dataset.root, URL)
        complete(names())
        records = sum(f"{c}/{i:06d}.json" in names() for c in ("caption.en", "feature.x") for i in range(3))
        (done,) = push(dataset.root, URL)
        assert (done.there, done.shards) == (records, 6 - records)
    remote.look_again()
    assert values(Dataset(URL)) == values(dataset)


@pytest.mark.parametrize("reads", [0, 1, 5, 9])
def test_an_interrupted_pull_is_continued(dataset, tmp_path, monkeypatch, reads):
    push(dataset.root, URL)
    with monkeypatch.context() as patch:
        refuse_writes(patch, "cat_file", reads)
        with pytest.raises(StorageError):
            pull(URL, tmp_path / "e")
    here = set(tree(tmp_path / "e"))
    assert not any(store.TEMPORARY in name for name in here)
    complete(here)
    pull(URL, tmp_path / "e")
    assert tree(tmp_path / "e") == tree(dataset.root)


def test_a_payload_that_something_else_left_is_not_adopted(dataset, tmp_path):
    push(dataset.root, URL)
    pull(URL, tmp_path / "e")
    payload, record = (tmp_path / "e/caption.en" / name for name in ("000000.tar", "000000.json"))
    record.unlink()
    payload.write_bytes(bytes(payload.stat().st_size))
    with pytest.raises(DataError, match=r"000000\.tar: not the payload of .*left by something else"):
        pull(URL, tmp_path / "e")


def test_a_payload_lost_in_the_store_or_in_a_copy_is_missing_and_copied_again(dataset, tmp_path):
    push(dataset.root, URL)
    pull(URL, tmp_path / "e")
    whole = tree(tmp_path / "e")
    del MemoryFileSystem.store["/bucket/toy/caption.en/000001.tar"]
    MemoryFileSystem().pipe_file("/bucket/toy/feature.x/000000.npy", b"cut")
    remote.look_again()
    there = Dataset(URL)
    assert there.column("caption.en").finished() == {0, 2} and there.column("feature.x").missing() == [0]
    with pytest.raises(DataError, match=rf"1 of 3 shards are missing \(000001\).*`ccr-dist shards push FOLDER {URL}`"):
        there.column("caption.en").require_complete()
    assert (push(dataset.root, URL)[0].shards, push(dataset.root, URL)[0].shards) == (2, 0)
    assert verify(URL) == []
    (tmp_path / "e/caption.en/000002.tar").write_bytes(b"cut")
    (tmp_path / "e/feature.x/000001.npy").unlink()
    assert pull(URL, tmp_path / "e")[0].shards == 2 and tree(tmp_path / "e") == whole


def test_an_indexed_tar_goes_along_once(tmp_path, monkeypatch):
    """Its columns share it in the store, in the cache and in a pulled copy; nobody needs the original any more."""
    tar = tmp_path / "made-elsewhere.tar"
    with TarWriter(tar) as writer:
        for i in range(3):
            writer.add(f"k{i}.png", picture(i))
            writer.add(f"k{i}.txt", f"thing {i}".encode())
    local = index([str(tar)], tmp_path / "d", progress=False).dataset
    before = values(local)
    with monkeypatch.context() as patch:
        refuse_writes(patch, "put_file", after=1)
        (done,) = push(local.root, URL)
    assert done.bytes == tar.stat().st_size
    assert {name for name in names() if name.endswith(".tar")} == {"image/000000.tar"}
    assert push(local.root, URL)[0].there == 2
    (got,) = pull(URL, tmp_path / "e")
    assert got.bytes == tar.stat().st_size
    tar.unlink()
    assert values(Dataset(tmp_path / "e")) == values(Dataset(URL)) == before
    assert len(payloads(tmp_path)) == 1
    assert verify(tmp_path / "e", decode=False) == verify(URL, decode=False) == []
    assert push(tmp_path / "e", URL)[0].there == 2


# -- opening by URL


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
    assert remote.as_url(path) == url


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
    with pytest.raises(
        ConfigError, match=r"pull --lazy memory://bucket/toy FOLDER` makes one that fetches what is read"
    ):
        run(Dataset(URL), Translate(Shout(), "caption.en"), "caption.xx.shout", progress=False)
    assert not Path("memory:").exists()
    assert not (Dataset(URL).root / "caption.xx.shout").exists()


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


# -- the cache


def test_the_cache_keeps_its_limit_and_what_was_used_last(dataset, tmp_path, monkeypatch):
    push(dataset.root, URL)
    column = Dataset(URL).column("caption.en")
    sizes = [column.record(shard)["bytes"] for shard in range(3)]
    shas = [column.record(shard)["sha256"] for shard in range(3)]
    monkeypatch.setenv("CCR_DIST_CACHE_GB", str((sum(sizes) - 1) / 1e9))
    monkeypatch.setattr(payload_cache, "_TOUCH_S", 0)
    for shard, kept in [
        (0, {0}),
        (1, {0, 1}),
        (0, {0, 1}),
        (2, {0, 2}),
        (1, {1, 2}),
        (1, {1, 2}),
        (2, {1, 2}),
        (0, {0, 2}),
    ]:
        assert column.value(shard, 0) == [f"{shard}-0 one", f"{shard}-0 two"]
        assert set(payloads(tmp_path)) == {f"{shas[i]}.tar" for i in kept}
    monkeypatch.setenv("CCR_DIST_CACHE_GB", str((max(sizes) - 1) / 1e9))
    with pytest.raises(
        ConfigError, match=r"000001\.tar: .* GB, but the cache in .* may hold .* GB; raise CCR_DIST_CACHE_GB"
    ):
        column.value(1, 0)
    for bad in ("0", "many", "-1", "inf", "nan"):
        monkeypatch.setenv("CCR_DIST_CACHE_GB", bad)
        with pytest.raises(ConfigError, match="CCR_DIST_CACHE_GB="):
            payload_cache.limit()


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "removed"])
@pytest.mark.parametrize("name", ["caption.en", "feature.x"])
def test_a_damaged_cached_file_is_fetched_again(dataset, tmp_path, damage, name):
    push(dataset.root, URL)
    column = Dataset(URL).column(name)
    before = np.asarray(column.value(0, 0))
    path = column.path(0)
    if damage == "truncated":
        os.truncate(path, 100)
    elif damage == "overwritten":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        path.unlink()
    assert np.array_equal(column.value(0, 0), before)
    assert store.sha256_file(column.path(0)) == column.record(0)["sha256"]


def test_a_payload_that_is_damaged_in_the_store_is_no_value(dataset, tmp_path):
    push(dataset.root, URL)
    column = Dataset(URL).column("caption.en")
    stored = MemoryFileSystem.store["/bucket/toy/caption.en/000001.tar"]
    stored.seek(600)
    stored.write(b"?")
    with pytest.raises(
        StorageError, match=r"memory://bucket/toy/caption.en/000001.tar: its sha256 is \w+, the commit record says"
    ):
        column.value(1, 0)
    del MemoryFileSystem.store["/bucket/toy/caption.en/000002.tar"]
    with pytest.raises(StorageError, match=r"memory://bucket/toy/caption.en/000002.tar: not there"):
        column.value(2, 0)
    assert payloads(tmp_path) == {}
    assert len(verify(URL)) == 2
    with pytest.raises(StorageError, match="its sha256 is"):
        pull(URL, tmp_path / "e", columns=["caption.en"])
    assert not (tmp_path / "e/caption.en/000001.tar").exists()


def test_a_passing_failure_of_the_store_is_not_noticed(dataset, monkeypatch):
    push(dataset.root, URL)
    real, calls = MemoryFileSystem.cat_file, []

    def moody(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) % 3:
            raise RuntimeError("an error that only this client knows")
        return real(self, *arguments, **options)

    monkeypatch.setattr(remote, "_TOGETHER", 1)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", moody)
    assert values(Dataset(URL)) == values(dataset)


def test_large_payloads_come_in_parts(dataset, monkeypatch):
    push(dataset.root, URL)
    monkeypatch.setattr(remote, "_PART", 1000)
    assert values(Dataset(URL)) == values(dataset)


@pytest.mark.parametrize("url", ["../../../outside.tar", "/etc/passwd"])
def test_a_store_cannot_name_files_outside_of_the_dataset(dataset, tmp_path, url):
    push(dataset.root, URL)
    record = store.read_json(dataset.root / "caption.en/000000.json")
    del record["digest"]
    MemoryFileSystem().pipe_file(
        "/bucket/toy/caption.en/000000.json", json.dumps(store.with_digest({**record, "url": url})).encode()
    )
    why = f"{url}.*(expected the absolute path of|this is no indexed column)"
    with pytest.raises(DataError, match=why):
        Dataset(URL).column("caption.en").value(0, 0)
    with pytest.raises(DataError, match="outside of the dataset"):
        pull(URL, tmp_path / "e")
    meta = {"format": 1, "name": "x", "split": "train", "shards": [{"id": "../../x", "rows": 1, "keys": "?"}]}
    MemoryFileSystem().pipe_file("/evil/dataset.json", json.dumps({**meta, "digest": store.digest_json(meta)}).encode())
    MemoryFileSystem().pipe_file("/x.txt", b"gotcha")
    with pytest.raises(DataError, match=r"shard 0 has the id .*expected 000000"):
        Dataset("memory://evil").keys(0)
    with pytest.raises(DataError, match=r"shard 0 has the id .*expected 000000"):
        pull("memory://evil", tmp_path / "f")


def test_what_a_dead_process_reserved_is_free_again(dataset, tmp_path, monkeypatch):
    push(dataset.root, URL)
    column = Dataset(URL).column("caption.en")
    folder = tmp_path / "cache/remote/payloads"
    folder.mkdir(parents=True)
    left = folder / f"{store.TEMPORARY}dead.tar"
    with left.open("wb") as file:
        file.truncate(10**9)
    monkeypatch.setenv("CCR_DIST_CACHE_GB", "0.1")
    assert column.value(0, 0) == ["0-0 one", "0-0 two"]
    assert not left.exists()


def test_locks_end_with_their_holder_even_if_a_fork_has_the_descriptor(tmp_path):
    with locked(tmp_path / "lock"):
        pid = os.fork()
        if pid == 0:
            signal.pause()
    try:
        with locked(tmp_path / "lock"):
            pass
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


# -- the commands


def test_the_commands_take_urls(dataset, tmp_path):
    def ccr_dist(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["shards", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    assert f"{URL}: 2 columns; copied 6 column shards" in ccr_dist("push", str(dataset.root), URL, "-q")
    assert "6 were there" in ccr_dist("push", str(dataset.root), URL, "-q")
    assert json.loads(ccr_dist("inspect", URL, "--json"))["datasets"][0]["root"] == URL
    assert f"{URL}: sound" in ccr_dist("verify", URL, "-q")
    ccr_dist("pull", URL, str(tmp_path / "e"), "-q")
    assert tree(tmp_path / "e") == tree(dataset.root)

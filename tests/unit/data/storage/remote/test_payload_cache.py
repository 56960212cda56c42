"""The cache of payloads: its limit, damage, stores that fail, locks."""

import hashlib
import json
import os
import signal
import threading

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ccr_dist.data.storage import object_store, payload_cache, store
from ccr_dist.data.storage.payload_cache import locked
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.stores.pull import pull
from ccr_dist.data.table.stores.push import push
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataError, StorageError
from tests.stores import URL, payloads, values


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
    with pytest.raises(StorageError, match=r"memory://bucket/toy/caption.en/000002.tar: missing"):
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

    monkeypatch.setattr(object_store, "_TOGETHER", 1)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", moody)
    assert values(Dataset(URL)) == values(dataset)


def test_large_payloads_come_in_parts(dataset, monkeypatch):
    push(dataset.root, URL)
    monkeypatch.setattr(object_store, "_PART", 1000)
    assert values(Dataset(URL)) == values(dataset)


@pytest.mark.parametrize("url", ["../../../outside.tar", "/etc/passwd"])
def test_a_store_cannot_name_files_outside_of_the_dataset(dataset, tmp_path, url):
    push(dataset.root, URL)
    record = store.read_json(dataset.root / "caption.en/000000.json")
    del record["digest"]
    MemoryFileSystem().pipe_file(
        "/bucket/toy/caption.en/000000.json", json.dumps(store.with_digest({**record, "url": url})).encode()
    )
    why = f"{url}.*(expected the absolute path of|this is not an indexed column)"
    with pytest.raises(DataError, match=why):
        Dataset(URL).column("caption.en").value(0, 0)
    with pytest.raises(DataError, match=r"outside of the dataset|expected the absolute path of"):
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


def test_a_payload_gets_its_name_under_the_lock(tmp_path, monkeypatch):
    """Who counts under the lock must find it under one of its two names."""
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path))
    monkeypatch.setenv("CCR_DIST_CACHE_GB", "1")
    sha, counting, counted = hashlib.sha256(b"abc").hexdigest(), threading.Event(), threading.Event()
    seen: list[bool] = []

    def count() -> None:
        folder = payload_cache._folder(str(tmp_path))
        with locked(folder / ".lock"):
            counting.set()
            counted.wait(0.3)  # a payload that does not wait has its name by then
            seen.append((folder / f"{sha}.tar").exists())

    counter = threading.Thread(target=count)

    def fetch(fd: int) -> None:
        os.write(fd, b"abc")
        counter.start()
        counting.wait()

    path = payload_cache.payload("a.tar", 3, sha, fetch, "a")
    counted.set()
    counter.join()
    assert path.read_bytes() == b"abc" and seen == [False]

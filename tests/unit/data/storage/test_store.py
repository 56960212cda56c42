"""Files come into being atomically and once."""

import errno
import json
import os
import threading

import pytest

from ccr_dist.data.storage import store
from ccr_dist.errors import DataError, StorageError


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(store.TEMPORARY)]


def test_digest_is_that_of_the_canonical_spelling():
    assert store.digest_json({"b": 1, "a": "é"}) == store.digest_json(json.loads('{"a": "\\u00e9", "b": 1}'))
    assert store.digest_json([1, 2]) != store.digest_json([2, 1])
    with pytest.raises(ValueError):
        store.digest_json(float("nan"))


def test_create_once_keeps_the_first(tmp_path):
    path = tmp_path / "x.json"
    assert store.create_once(path, b"first")
    assert not store.create_once(path, b"second")
    assert path.read_bytes() == b"first"
    assert leftovers(tmp_path) == []


def test_of_many_racing_creators_one_wins_and_its_content_stays(tmp_path):
    path, wins, barrier = tmp_path / "x", [], threading.Barrier(8)

    def create(i):
        with store.staged(path) as tmp:
            tmp.write_bytes(b"%d" % i * 1000)
            barrier.wait()
            if store.publish_once(tmp, path):
                wins.append(i)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert path.read_bytes() == b"%d" % wins[0] * 1000
    assert leftovers(tmp_path) == []


def test_replace_atomic_replaces(tmp_path):
    path = tmp_path / "x"
    store.replace_atomic(path, b"1")
    store.replace_atomic(path, b"22")
    assert path.read_bytes() == b"22"
    assert leftovers(tmp_path) == []


def test_staged_removes_its_file_when_the_block_fails(tmp_path):
    with pytest.raises(RuntimeError), store.staged(tmp_path / "x") as tmp:
        tmp.write_bytes(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path, code):
    with pytest.raises(StorageError, match=r"000001\.tar.*intact.*again"), store.staged(tmp_path / "000001.tar"):
        raise OSError(code, os.strerror(code))


def test_read_json_names_the_file(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json.*not valid JSON"):
        store.read_json(tmp_path / "bad.json")
    with pytest.raises(DataError, match=r"none\.json.*no such file"):
        store.read_json(tmp_path / "none.json")


def test_differences_name_the_path_and_both_values():
    assert store.differences({"a": {"b": 1, "c": [1, 2]}, "d": 0}, {"a": {"b": 2, "c": [1, 3]}, "e": 0}) == [
        "a.b: there 1, asked 2",
        "a.c[1]: there 2, asked 3",
        "d: there 0, asked (absent)",
        "e: there (absent), asked 0",
    ]
    assert store.differences({"a": [1]}, {"a": [1]}) == []


def test_retry_io_survives_two_failures_and_gives_up_on_the_third():
    def failing(times):
        calls = []

        def read():
            calls.append(1)
            if len(calls) <= times:
                raise OSError(errno.EIO, "flaky")
            return len(calls)

        return read

    assert store.retry_io(failing(2), what="x", delay_s=0) == 3
    with pytest.raises(StorageError, match=r"x\.tar.*3 attempts"):
        store.retry_io(failing(3), what="x.tar", delay_s=0)


def test_retry_io_does_not_repeat_what_cannot_heal():
    calls = []

    def full():
        calls.append(1)
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(StorageError):
        store.retry_io(full, what="x", delay_s=0)
    assert len(calls) == 1
    with pytest.raises(DataError):
        store.retry_io(lambda: (_ for _ in ()).throw(DataError("x")), what="x")


def test_a_temporary_file_that_the_winner_tidied_away_is_a_lost_race(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(FileNotFoundError):
        store.publish_once(tmp_path / ".tmp-a", path)
    path.write_bytes(b"theirs")
    assert store.publish_once(tmp_path / ".tmp-a", path) is False
    assert path.read_bytes() == b"theirs"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOTDIR, "raw", "/a"), "x: Not a directory. "),
        (OSError(errno.EROFS, "raw", "/a"), "x: Read-only file system. "),
        (OSError(errno.EACCES, "raw", "/a"), "x: Permission denied. "),
        (PermissionError("Access Denied"), "x: Access Denied. "),  # as clients of stores say it: without a number
    ],
)
def test_what_no_second_try_mends_is_tried_once(error: OSError, said: str) -> None:
    calls = []

    def refused() -> None:
        calls.append(1)
        raise error

    with pytest.raises(StorageError) as found:
        store.retry_io(refused, what="x", delay_s=0)
    assert len(calls) == 1
    assert str(found.value).startswith(f"{said}Everything committed before is intact; ")


def test_what_failed_each_time_is_said_without_numbers_of_the_system() -> None:
    def flaky() -> None:
        raise OSError(errno.EIO, "raw", "/tmp/.tmp-x")

    with pytest.raises(StorageError, match=r"^x: raw \(3 attempts\)\. Everything committed"):
        store.retry_io(flaky, what="x", delay_s=0)

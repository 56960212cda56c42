"""Jobs of real processes on a dataset that is on an S3 server only (moto's, which answers one request at a time).

The full disturbance (50 kills of four workers, 3 minutes): `pytest -m slow tests/procs/test_store_jobs.py`; with
STORE_CHAOS_KILLS and STORE_CHAOS_SEED more of it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.data.storage import remote
from ccr_dist.data.storage.object_store import Store
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.stores.push import push
from ccr_dist.errors import ConfigError, StorageError
from tests.jobs import captions, content, end, state, until, worker
from tests.running import XX, shout
from tests.s3_server import misbehave, serving, settings

pytestmark = pytest.mark.procs
ROWS = (6, 5)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with serving() as address:
        yield address


@pytest.fixture
def url(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a dataset of captions in a bucket of its own; in the folder `d`, what an undisturbed run makes of it."""
    import s3fs

    for name, value in settings(server, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    misbehave(server)
    remote.look_again()
    bucket = re.sub(r"[^a-z0-9]+", "-", tmp_path.name.lower())[-40:].strip("-")
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(bucket)
    dataset = captions(tmp_path / "d", ROWS)
    push(dataset.root, f"s3://{bucket}/data")
    shout(dataset)
    return f"s3://{bucket}/data"


def there(url: str) -> dict[str, bytes]:
    column = Store(f"{url}/{XX}")
    names = [name for name in column.listing() if not name.endswith(".stats.json") and name != "column.json"]
    return dict(zip(names, column.read(names), strict=True))


def start(url: str, tmp_path: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    """A worker with a cache of its own, as on a machine of its own."""
    return worker(url, "--batch", "2", "--lease-s", "1", *arguments, CCR_DIST_CACHE=str(tmp_path / name))


def test_stopped_past_its_lease_and_woken_it_commits_nothing(url: str, tmp_path: Path) -> None:
    stale = start(url, tmp_path, "a", "--set", "at=0-4 one", "--set", "what=STOP")
    until(lambda: state(stale.pid) == "T", stale)
    log = tmp_path / "log"
    said = end(start(url, tmp_path, "b", "--set", f"log={log}"))
    assert "4 rows resumed from journals" in said and "2 of 2 shards done" in said
    before = Store(url).listing()
    stale.send_signal(signal.SIGCONT)
    said = end(stale)
    assert "shards lost to another process" in said and "0 of 2 shards done" in said
    assert Store(url).listing() == before
    assert there(url) == content(tmp_path / "d" / XX)
    assert not {"0-0", "0-1", "0-2", "0-3"} & {line.split()[0] for line in log.read_text().splitlines()}
    status = subprocess.run(
        [sys.executable, "-m", "ccr_dist", "jobs", "status", url, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(status.stdout)["columns"][0]["shards"]["done"] == 2


def test_overload_and_lost_answers_change_nothing(url: str, server: str, tmp_path: Path) -> None:
    faults: list[tuple[str, str, str, int]] = [("PUT", "column.json", "lost", 1), ("GET", "work", "slow", 3)]
    faults += [("PUT", name, "lost", 1) for name in ("lease.1", "journal.1", "commit.1", ".tar", ".index.json")]
    misbehave(server, *faults, ("PUT", "000001.json", "lost", 1), ("DELETE", "work", "lost", 2))
    summary = shout(Dataset(url))
    assert summary.complete and there(url) == content(tmp_path / "d" / XX)


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (
            ("PUT", "dataset.json", "careless", 9),
            ConfigError,
            "dataset.json: could be created a second time: this",
        ),
        (
            ("PUT", "jobs/000000.lease.1", "denied", 9),
            StorageError,
            "jobs/000000.lease.1: Access Denied. .*see that you",
        ),
        (
            ("PUT", "000000.journal.1", "denied", 9),
            StorageError,
            "jobs/000000.journal.1.[0-9a-f]{16}.000000: Access De",
        ),
    ],
)
def test_what_cannot_work_is_said_with_bucket_and_key(
    url: str, server: str, fault: tuple[str, str, str, int], error: type[Exception], said: str
) -> None:
    misbehave(server, fault)
    with pytest.raises(error, match=f"{url}/.*{said}"):
        shout(Dataset(url))
    misbehave(server)
    assert not [name for name in there(url) if "lease" in name]


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("late", StorageError, r"too large\. .*; this machine's clock is 86\d\d\d s behind the store's: set it, and"),
        ("stale", StorageError, r"token has expired\. .*; give credentials that are valid, and run"),
        ("unknown", ConfigError, r"not implemented: this store does not know the condition If-None-Match: \*"),
    ],
)
def test_what_a_store_says_is_passed_on(url: str, server: str, what: str, error: type[Exception], said: str) -> None:
    misbehave(server, ("PUT", "dataset.json", what, 9))
    with pytest.raises(error, match=f"{url}/dataset.json: .*{said}"):
        Store(url).require_create_once("dataset.json")


def test_a_bucket_with_versions_is_like_any_other(url: str) -> None:
    import s3fs

    bucket, fs = url.split("/")[2], s3fs.S3FileSystem(use_listings_cache=False)
    fs.call_s3("put_bucket_versioning", Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for _ in range(2):  # what was removed can be created again
        assert Store(url).create("x", b"a", unique=False) and not Store(url).create("x", b"a", unique=False)
        Store(url).remove(["x"])
        assert Store(url).get("x") is None and "x" not in Store(url).listing("x")
    summary = shout(Dataset(url))
    assert summary.complete and not [name for name in there(url) if name.startswith("jobs/")]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only this package sends a request again, and at once."""
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("impatient")
def test_a_store_that_stays_overloaded_is_said_to_be(url: str, server: str) -> None:
    misbehave(server, ("PUT", "/x", "slow", 99))
    with pytest.raises(StorageError, match=f"{url}/x: Please reduce your request rate \\(4 attempts\\)"):
        Store(url).create("x", b"")


@pytest.mark.usefixtures("impatient")
def test_a_payload_in_parts_whose_last_answer_goes_wrong(
    url: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent again, the upload is unknown to the server, since it has become the object."""
    path, part = tmp_path / "big", 5 << 20
    path.write_bytes(os.urandom(2 * part))
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: part)
    misbehave(server, ("POST", "a.tar", "well", 1), ("POST", "a.tar", "lost", 1))
    assert not Store(url).create_file("a.tar", path)
    misbehave(server, ("POST", "b.tar", "well", 1), ("POST", "b.tar", "conflict", 1))
    assert Store(url).create_file("b.tar", path)
    assert Store(url).read(["a.tar", "b.tar"]) == [path.read_bytes()] * 2
    assert not Store(url).create_file("b.tar", path)


def chaos(folder: Path, kills: str) -> dict[str, Any]:
    pytest.importorskip("moto")
    script, seed = Path(__file__).with_name("store_chaos_worker.py"), os.environ.get("STORE_CHAOS_SEED", "1")
    done = subprocess.run([sys.executable, str(script), str(folder), kills, seed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    print(seen)
    assert seen["kills"] == int(kills)
    return seen


def test_workers_that_are_killed_and_stopped(tmp_path: Path) -> None:
    chaos(tmp_path, "3")


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_fifty_kills_of_four_workers(tmp_path: Path) -> None:
    assert chaos(tmp_path, os.environ.get("STORE_CHAOS_KILLS", "50"))["stops"]

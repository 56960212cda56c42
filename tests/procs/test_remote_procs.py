"""A real S3 server (moto), real processes: pushes and pulls that are killed, readers that share a small cache, loader
processes.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ccr_dist.data.storage import payload_cache, remote
from ccr_dist.data.stream.loader import Fields, make_loader, sources
from ccr_dist.data.stream.order import Order
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.stores.push import push
from ccr_dist.data.table.verify import verify
from tests import toy
from tests.jobs import captions
from tests.s3_server import serving, settings

pytestmark = pytest.mark.procs
ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("remote_worker.py")
ROWS = (40,) * 8


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server that lives as long as the tests of this file."""
    pytest.importorskip("moto")
    with serving() as address:
        yield address


@pytest.fixture
def s3(server, tmp_path, monkeypatch):
    """URL of an empty bucket, and s3fs for looking into it; settings come from the environment, as they do for a
    user.
    """
    s3fs = pytest.importorskip("s3fs")
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    for name, value in (settings(server, tmp_path / "cache") | {"PYTHONPATH": path}).items():
        monkeypatch.setenv(name, value)
    remote.look_again()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    bucket = re.sub(r"[^a-z0-9]+", "-", tmp_path.name.lower())[-40:].strip("-")
    files.mkdir(bucket)
    return f"s3://{bucket}/data", files


def start(*arguments):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, arguments)], text=True, **pipes)


def ccr_dist(*arguments):
    return start("-m", "ccr_dist", *arguments)


def workers(*commands):
    """They begin together, once all of them have opened the dataset."""
    processes = [start(WORKER, *command) for command in commands]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def done(process, code=0):
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, err[-3000:]
    return out


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def records(files, url):
    return {name for name in files.find(url) if re.search(r"/\d{6}\.json$", name)}


def test_a_killed_push_and_a_killed_pull_are_continued(s3, tmp_path):
    url, files = s3
    dataset = captions(tmp_path / "d", ROWS)
    process = ccr_dist("shards", "push", dataset.root, url, "-q")
    while not records(files, url):  # in the middle of it
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = {name: files.info(name)["LastModified"] for name in records(files, url)}
    for name in before:
        assert files.exists(name.replace(".json", ".tar")) and files.exists(name.replace(".json", ".index.json"))
    again = done(ccr_dist("shards", "push", dataset.root, url, "-q"))
    copied, there = map(int, re.search(r"copied (\d+) column shards .*, (\d+) already existed", again).groups())
    # The server may carry out what it was sent before the kill after we have looked: there may be more than we saw.
    assert copied + there == len(ROWS) and there >= len(before)
    assert {name: files.info(name)["LastModified"] for name in before} == before
    assert len(records(files, url)) == len(ROWS)

    process = ccr_dist("shards", "pull", url, tmp_path / "e", "-q")
    while not list(tmp_path.glob("e/caption.en/*.tar")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.kill()
    process.wait()
    done(ccr_dist("shards", "pull", url, tmp_path / "e", "-q"))
    assert tree(tmp_path / "e") == tree(dataset.root)
    assert "sound" in done(ccr_dist("shards", "verify", url, "-q"))
    assert json.loads(done(ccr_dist("shards", "inspect", url, "--json")))["datasets"][0]["rows"] == sum(ROWS)
    process = ccr_dist("shards", "inspect", f"{url}/nothing")
    assert "neither a dataset" in process.communicate(timeout=60)[1] and process.returncode == 3


def test_readers_share_a_cache(s3, tmp_path):
    """With room for all, each payload is fetched once, whoever wants it."""
    url, _ = s3
    dataset = captions(tmp_path / "d", ROWS)
    push(dataset.root, url)
    answers = [json.loads(done(process)) for process in workers(*[(url, "caption.en", seed) for seed in (0, 0, 1)])]
    assert all(
        answer["values"]["7/39"] == ["7-39 one", "7-39 two"] and len(answer["values"]) == sum(ROWS)
        for answer in answers
    )
    assert sorted(name for answer in answers for name in answer["fetched"]) == [
        f"caption.en/{i:06d}.tar" for i in range(len(ROWS))
    ]


def test_readers_share_a_cache_that_is_too_small_for_all_of_them(s3, tmp_path, monkeypatch):
    """Files come and go under three readers, one of which is killed while it fetches; the limit holds at any time,
    every value is right.
    """
    url, _ = s3
    dataset = captions(tmp_path / "d", ROWS)
    push(dataset.root, url)
    limit = int(2.5 * max(dataset.column("caption.en").record(shard)["bytes"] for shard in range(len(ROWS))))
    monkeypatch.setenv("CCR_DIST_CACHE_GB", str(limit / 1e9))
    (victim,) = workers((url, "caption.en", 9, "kill"))
    assert victim.wait(60) == -signal.SIGKILL
    payloads = tmp_path / "cache/remote/payloads"
    assert [path.name[:5] for path in payloads.iterdir() if path.name != ".lock"] == [".tmp-"]  # its reservation
    readers, most = workers(*[(url, "caption.en", seed) for seed in range(3)]), 0
    while any(reader.poll() is None for reader in readers):
        sizes = []
        with payload_cache.locked(payloads / ".lock"):  # files grow under it only: else the sum mixes two moments
            for entry in payloads.iterdir():
                with contextlib.suppress(FileNotFoundError):  # published meanwhile
                    sizes.append(entry.stat().st_size)
        most = max(most, sum(sizes))
        time.sleep(0.005)
    values = [json.loads(done(reader))["values"] for reader in readers]
    assert values[0] == values[1] == values[2]
    assert all(
        values[0][f"{s}/{r}"] == [f"{s}-{r} one", f"{s}-{r} two"] for s, rows in enumerate(ROWS) for r in range(rows)
    )
    assert 0 < most <= limit
    assert not list(payloads.glob(".tmp-*"))


def test_loader_processes_fetch(s3, tmp_path):
    """Forked after their parent has used the store's client: the batches of the folder."""
    url, _ = s3
    local = toy.build(tmp_path, "train")
    push(local.root, url)
    fields = Fields(source="caption.en", targets={"es": "caption.es.toy"})

    def batches(dataset, workers):
        order = Order(sources([dataset], [1.0], fields, ["es"]), batch=6, seed=3, languages={"es": 1.0})
        loader = make_loader(order, [dataset], fields, world=1, rank=0, first=0, last=10, workers=workers)
        return [(batch.items, batch.source_text, batch.target_text) for batch in loader]

    there = Dataset(url)
    there.column("caption.en").value(0, 0)
    assert batches(there, 2) == batches(local, 0)


def test_verify_and_values_over_s3(s3, tmp_path):
    url, files = s3
    dataset = toy.build(tmp_path, "train")
    push(dataset.root, url)
    assert verify(url) == [] and verify(url, fast=True) == []
    name = f"{url}/image/000003.tar"
    files.pipe_file(name, files.cat_file(name)[:-1] + b"?")
    remote.look_again()
    for path in (tmp_path / "cache/remote/payloads").glob("*.tar"):
        path.unlink()
    (problem,) = verify(url)
    assert "its sha256 is" in str(problem) and "image/000003.tar" in str(problem)
    assert Dataset(url).column("image").value(2, 1) == dataset.column("image").value(2, 1)

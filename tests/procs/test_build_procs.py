"""Writers that race, die or find the disk full, as real processes: what is committed stays, and the end result is
always the same bytes.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ccr_dist.data.corpora.build import build
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.data.storage import store
from ccr_dist.data.storage.file_ranges import forget_files
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import StorageError
from tests.corpus import folder_recipe, tree

pytestmark = pytest.mark.procs
ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def start(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


BUILD = "import sys; from ccr_dist.cli import main; sys.argv[1:1] = ['shards', 'build', '-q']; main()"

COMMIT = """
import sys
from pathlib import Path
from ccr_dist.data.table.dataset import Dataset
column = Dataset(sys.argv[1]).column("caption.en")
def values():
    for _ in range(3):
        yield column.encode([sys.argv[2] * 1000])
    print("ready", flush=True)      # everything is written; what is left is to publish it
    sys.stdin.readline()
print(column.commit(0, values()), flush=True)
"""


def test_of_racing_committers_one_records_and_all_agree(tmp_path):
    dataset = create_dataset(tmp_path / "d", name="d", split="train", keys=[["a", "b", "c"]])
    column = create_column(dataset, "caption.en", kind="texts", extension="json", plan={}, provenance={})
    processes = [start(COMMIT, dataset.root, i, stdin=subprocess.PIPE) for i in range(4)]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:  # all of them have their payload staged: now they race
        process.stdin.write(b"\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sorted(answers) == [b"False", b"False", b"False", b"True"]
    assert {text * 1000 for text in "0123"} >= {column.value(0, row)[0] for row in range(3)}
    assert len({column.value(0, row)[0] for row in range(3)}) == 1  # one committer's payload, not a mixture
    assert verify(dataset.root) == []
    assert not list(column.folder.glob(f"{store.TEMPORARY}*"))


def records(out):
    return (
        len(list(out.glob("*/*/0*.json")))
        - len(list(out.glob("*/*/0*.index.json")))
        - len(list(out.glob("*/*/0*.stats.json")))
    )


def test_a_build_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(tmp_path):
    recipe, out = folder_recipe(tmp_path / "in", n=80, shard_rows=2), tmp_path / "out"
    build(load_recipe(recipe), tmp_path / "undisturbed", progress=False)
    total = records(tmp_path / "undisturbed")
    for goal in (3, 30, 60):
        process = start(BUILD, recipe, "--out", out)
        while records(out) < goal:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = {path: data for path, data in tree(out).items() if path.endswith((".tar", ".json"))}
        assert goal <= records(out) < total
    summary = build(load_recipe(recipe), out, progress=False)
    assert summary.there >= 60 and summary.built == total - summary.there
    after = tree(out)
    assert all(after[path] == data for path, data in before.items())  # what was committed was not touched
    assert after == tree(tmp_path / "undisturbed")
    assert verify(out) == []


POOL = """
import functools, os, sys, time
from typing import Literal
from ccr_dist.data.corpora.build import build
from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow

def render(i):
    print(os.getpid(), flush=True)
    time.sleep(0.2)
    return b"x"

class Slow(Recipe):
    kind: Literal["slow"] = "slow"
    def material(self):
        rows = [RecipeRow("train", str(i), {"image": functools.partial(render, i)}) for i in range(1000)]
        return Material({}, [ColumnSpec("image", "image", "png", {}, {})], rows)

if __name__ == "__main__":
    build(Slow(name="slow"), sys.argv[1], workers=2, progress=False)
"""


def test_rendering_processes_do_not_outlive_a_killed_build(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(POOL)
    process = subprocess.Popen([sys.executable, script, tmp_path / "out"], env=ENV, stdout=subprocess.PIPE)
    workers = set()
    while len(workers) < 2:
        line = process.stdout.readline()
        assert line, "the build ended"
        workers.add(int(line))
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "worker processes live on"
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_file_size_limit_stops_the_build_and_loses_nothing(tmp_path):
    recipe, out = folder_recipe(tmp_path / "in", n=12, shard_rows=2), tmp_path / "out"
    big = tmp_path / "in/pictures/009.png"
    big.write_bytes(big.read_bytes() + os.urandom(60_000))  # one shard that is larger than the limit
    limit = 40_000
    process = start(
        BUILD, recipe, "--out", out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == StorageError.exit_code, stderr
    assert b"intact" in stderr and b".tar" in stderr
    committed = tree(out)
    assert not list(out.rglob(f"{store.TEMPORARY}*"))
    build(load_recipe(recipe), out, progress=False)
    build(load_recipe(recipe), tmp_path / "undisturbed", progress=False)
    after = tree(out)
    assert after == tree(tmp_path / "undisturbed")
    assert all(after[path] == data for path, data in committed.items())
    assert verify(out) == []


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield folder
    forget_files()
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_stops_the_build_and_it_goes_on_when_there_is_room(tmp_path, small_disk):
    recipe, out = folder_recipe(tmp_path / "in", n=40, shard_rows=2), small_disk / "out"
    with pytest.raises(StorageError, match=r"No space left.*intact.*again"):
        build(load_recipe(recipe), out, progress=False)
    committed = tree(out)
    assert records(out) > 0
    for root in out.glob("*/dataset.json"):
        dataset = Dataset(root.parent)
        for column in map(dataset.column, dataset.columns()):
            for shard in column.finished():
                assert store.sha256_file(column.path(shard)) == column.record(shard)["sha256"]
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    build(load_recipe(recipe), out, progress=False)
    build(load_recipe(recipe), tmp_path / "undisturbed", progress=False)
    after = tree(out)
    assert after == tree(tmp_path / "undisturbed")
    assert all(after[path] == data for path, data in committed.items())

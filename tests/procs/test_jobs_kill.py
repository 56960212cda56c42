"""Jobs that die, race, and run out of disk, as real processes: every row is made, once, and equal to an undisturbed
run.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import STOPPED, DataError, StorageError
from tests.jobs import WORKER, captions, column_files, content, end, worker

pytestmark = pytest.mark.procs

XX = "caption.xx.shout"
ROWS = (30, 25, 35)


def start(
    dataset: Dataset, log: Path, *, dawdle_s: float = 0.0, batch: int = 4, **environment: str
) -> subprocess.Popen[str]:
    options = ["--batch", str(batch), "--set", f"log={log}", "--set", f"dawdle_s={dawdle_s}"]
    return worker(dataset.root, *options, **environment)


def made(log: Path) -> list[str]:
    """Keys of the rows that were given to the engine (each has two captions)."""
    return [line.split()[0] for line in log.read_text().splitlines() if line.endswith("one")] if log.exists() else []


def kept(dataset: Dataset) -> set[str]:
    """Keys of the rows that are safe: in a finished shard or in full in a journal."""
    folder, keys = dataset.root / XX, set()
    for shard, name in enumerate(dataset.shards):
        if (folder / f"{name}.json").exists():
            keys |= set(dataset.keys(shard))
        for journal in folder.glob(f"{name}.journal.*"):
            entries = [json.loads(line) for line in journal.read_text().split("\n")[:-1]]
            keys |= {dataset.keys(shard)[entry["row"]] for entry in entries[1:]}
    return keys


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("undisturbed")
    dataset = captions(root / "d", ROWS)
    end(start(dataset, root / "log"))
    assert Counter(made(root / "log")) == Counter(key for shard in range(3) for key in dataset.keys(shard))
    return content(dataset.root / XX)


def test_killed_at_random_points_it_goes_on_inside_the_shard(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    dataset, dice = captions(tmp_path / "d", ROWS), random.Random(5)
    inside = 0
    for attempt in range(5):
        log = tmp_path / f"log{attempt}"
        before = kept(dataset)
        process = start(dataset, log, dawdle_s=0.05)
        goal = dice.randrange(1, 14)
        while len(made(log)) < goal and process.poll() is None:
            time.sleep(0.005)
        time.sleep(dice.random() * 0.03)
        process.kill()
        process.communicate()
        assert not before & set(made(log)), "a row that was kept was made again"
        assert before <= kept(dataset)
        inside += bool(list((dataset.root / XX).glob("*.journal.*")))
    assert inside >= 3, "the kills did not hit the inside of a shard"
    before = kept(dataset)
    assert 0 < len(before) < sum(ROWS)
    said = end(start(dataset, tmp_path / "last"))
    assert set(made(tmp_path / "last")) == {key for shard in range(3) for key in dataset.keys(shard)} - before
    assert re.search(r"\d+ rows resumed from journals", said)
    assert content(dataset.root / XX) == undisturbed


def test_killed_at_every_touch_of_the_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(WORKER), "crashes", str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60  # two points a call: before and after


def test_processes_share_the_work_and_commit_each_shard_once(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    dataset = captions(tmp_path / "d", ROWS)
    logs = [tmp_path / f"log{i}" for i in range(3)]
    said = [end(process) for process in [start(dataset, log, dawdle_s=0.15) for log in logs]]
    rows = Counter(key for log in logs for key in made(log))
    assert rows == Counter(key for shard in range(3) for key in dataset.keys(shard)), (
        "a row was made twice or not at all"
    )
    assert sum(int(re.search(r"(\d+) of 3 shards done", text)[1]) for text in said) == 3
    assert content(dataset.root / XX) == undisturbed  # each of them stayed until all was done


def test_asked_to_stop_it_keeps_the_batch_in_flight(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    dataset, log = captions(tmp_path / "d", ROWS), tmp_path / "log"
    process = start(dataset, log, dawdle_s=0.1)
    while len(made(log)) < 10:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = end(process, STOPPED)
    assert "stopped on request" in said
    assert set(made(log)) == kept(dataset), "what the engine was given has to be kept"
    end(start(dataset, log))
    assert max(Counter(made(log)).values()) == 1
    assert content(dataset.root / XX) == undisturbed


@pytest.mark.parametrize("limit", [1500, 2500, 6000])
def test_full_disk_keeps_the_journal(tmp_path: Path, undisturbed: dict[str, bytes], limit: int) -> None:
    """1500, 2500: in a journal, perhaps in the middle of a line; 6000: in a shard that is being committed."""
    dataset, log = captions(tmp_path / "d", ROWS), tmp_path / "log"
    said = end(start(dataset, log, FILE_LIMIT=str(limit)), StorageError.exit_code)
    assert re.search(r"File too large. Everything committed before is intact; make room", said)
    assert not [name for name in column_files(dataset.root / XX) if name.startswith(".tmp-")]
    rows = len(list((dataset.root / XX).glob("*.journal.*")))
    assert rows and kept_or_torn(dataset)
    said = end(start(dataset, log))
    assert re.search(r"\d+ rows resumed from journals", said)
    assert content(dataset.root / XX) == undisturbed


def kept_or_torn(dataset: Dataset) -> int:
    """Complete lines, after the header, of all journals."""
    return sum(path.read_text().count("\n") - 1 for path in (dataset.root / XX).glob("*.journal.*"))


def test_another_plan_is_refused_with_its_exit_code(tmp_path: Path) -> None:
    dataset, log = captions(tmp_path / "d"), tmp_path / "log"
    end(start(dataset, log))
    said = end(worker(dataset.root, "--set", "version=two"), DataError.exit_code)
    assert "plan.engine.version: there '1', asked 'two'" in said

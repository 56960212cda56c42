"""An index that is made by several processes, some of which are killed: nothing is lost, and nothing is made twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccr_dist.search.index import Index
from tests.searching import Colours, encoded, put

pytestmark = pytest.mark.procs
WORKER = Path(__file__).parent / "index_worker.py"
PICTURES = 100  # shards of 16


def fill(folder: Path) -> None:
    dice = np.random.default_rng(0)
    for number in range(PICTURES):
        put(
            folder / f"{number % 7}" / f"{number}.png",
            encoded(Image.fromarray(dice.integers(0, 255, (8, 8, 3), np.uint8))),
        )


def start(folder: Path, log: Path, pause_s: float) -> subprocess.Popen[str]:
    words = [sys.executable, str(WORKER), str(folder / "i"), str(folder / "p"), str(log), str(pause_s)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> list[int]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [int(word) for word in out.split()]


def lines(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def found(folder: Path) -> dict[str, bytes]:
    index = Index.open(folder / "i")
    return {index.named(int(number)).name: index.rows([int(number)]).tobytes() for number in index.numbers()}


def test_killed_and_shared_it_is_the_same_index(tmp_path: Path) -> None:
    fill(tmp_path / "p")
    dice = random.Random(3)
    for attempt in range(3):  # killed somewhere, twice while it encodes
        log = tmp_path / f"killed{attempt}"
        process = start(tmp_path, log, 0.05)
        goal = attempt * dice.randrange(9, 25)
        while len(lines(log)) < goal and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None
        process.kill()
        process.communicate()
    logs = [tmp_path / "one", tmp_path / "two"]
    together = [start(tmp_path, log, 0.1) for log in logs]
    assert [end(process)[0] for process in together] == [PICTURES, PICTURES]
    assert all(map(lines, logs)), "one did all the work"

    rows = found(tmp_path)
    assert len(rows) == PICTURES
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "p").symlink_to(tmp_path / "p")
    Index.build(tmp_path / "whole" / "i", Colours(), tmp_path / "whole" / "p", progress=False)
    assert rows == found(tmp_path / "whole")
    made = Counter(line for log in tmp_path.glob("*") if log.is_file() for line in lines(log))
    twice = sum(count > 1 for count in made.values())
    assert len(made) == PICTURES and twice <= 3 * 4, "more was encoded again than the batches in flight at each kill"
    assert max(Counter(line for log in logs for line in lines(log)).values()) == 1, "two encoded the same picture"
    assert not list((tmp_path / "i" / "plans").glob("[0-9]*")) and len(list((tmp_path / "i" / "states").iterdir())) == 1


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_touches_of_the_disk(tmp_path: Path, step: int) -> None:
    words = [sys.executable, str(WORKER), "crashes", str(tmp_path), str(step)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60

"""Gradient checkpointing of a whole CLIP under every kind of strategy: the same losses, and blocks computed again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import toy
from tests.procs import recompute_worker

pytestmark = [pytest.mark.procs, pytest.mark.timeout(600)]
STEPS, BLOCKS = 4, 4  # blocks of the tiny CLIP's two sides


def test_every_strategy_computes_the_blocks_of_a_whole_clip_again(tmp_path: Path) -> None:
    stage = {"steps": STEPS, "batch": 10, "lr": 1e-4, "warmup": 0}
    path = toy.config(tmp_path, {"name": "english", "train": "all"}, {"english": stage}, runtime={"log_every": 1})
    path.rename(tmp_path / "run.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "tests.procs.recompute_worker", str(tmp_path)], cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == recompute_worker.STRATEGIES.keys()
    alone = found["alone"]["plain"]["losses"]
    assert len(set(alone)) == STEPS
    for key, ways in found.items():
        assert ways["again"]["losses"] == pytest.approx(ways["plain"]["losses"], rel=1e-6), key
        assert ways["again"]["losses"] == pytest.approx(alone, rel=1e-4), key
        assert (ways["plain"]["calls"], ways["again"]["calls"]) == (0, BLOCKS * STEPS), key

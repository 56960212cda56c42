"""A scaling study as it really runs: a point that fails, a study that is killed in the middle of a training, and what
the same command makes of that.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ccr_dist.errors import DONE, ConfigError
from ccr_dist.scaling import record
from ccr_dist.scaling.plan import load_plan
from ccr_dist.scaling.runner import run
from ccr_dist.scaling.summary import summarise
from tests import scaling_runs, toy

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.procs


def test_a_failure_is_a_result_and_a_kill_costs_one_training(tmp_path: Path) -> None:
    config = toy.dasd(tmp_path)
    points = [{"world": 1, "batch": 10, "precision": "fp16"}, {"world": 1, "batch": 10}]
    plan = scaling_runs.study(config, tmp_path, grid=None, points=points, repeats=1, warmup=1, steps=2)
    wrong, well = plan.trials
    words = [sys.executable, "-m", "ccr_dist", "scale", "run", str(plan.file)]
    with subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 240
        while not (well.folder / "lock").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        process.kill()
    failed = wrong.record.read_bytes()
    assert not well.record.exists()

    said: list[str] = []
    assert run(load_plan(plan.file), say=said.append) == DONE, said
    assert "2 trainings, 1 have ended, 1 to do" in said[0] and "measured" in said[1]
    assert wrong.record.read_bytes() == failed
    kept = record.read(wrong.record)
    assert kept.exit == ConfigError.exit_code and "fp16 needs a GPU" in kept.error
    measured = record.read(well.record)
    assert measured.command[:3] == ("python", "-m", "ccr_dist.launcher") and measured.found["starts"] == 1
    assert measured.found["stages"]["cma"]["first_step"] == 5 and measured.found["environment"]["world"] == 1
    assert not (well.folder / "checkpoints").exists() and (well.folder / "log.jsonl").exists()
    summary = summarise(Path(plan.study.out))
    assert [row.stage for row in summary.rows] == ["cla", "cma"] and len(summary.failed) == 1
    assert summary.rows[0].memory_bytes[0] > 2**27
    assert run(load_plan(plan.file), say=said.append) == DONE and "2 have ended, 0 to do" in said[-1]

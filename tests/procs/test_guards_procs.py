"""Something goes wrong on one of two processes: all of them leave together, and say why."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import toy

pytestmark = pytest.mark.procs

WORKER = Path(__file__).with_name("guards_worker.py")


def run(wrong: str, config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(WORKER),
        wrong,
    ]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "ACCELERATE_USE_CPU": "true",
    }
    return subprocess.run(
        [*command, "train", str(config), *overrides], env=env, capture_output=True, text=True, timeout=240
    )


def codes(done: subprocess.CompletedProcess[str]) -> dict[int, int]:
    """Exit codes of the ranks that torchrun reports."""
    found = re.findall(r"rank\s*: (\d+) .*\n\s*exitcode\s*: (-?\d+)", done.stderr)
    return {int(rank): int(code) for rank, code in found}


def test_a_rank_that_hangs_is_found_and_all_end(tmp_path: Path) -> None:
    config = toy.dasd(tmp_path, runtime={"hang": 5.0})
    done = run("hang", config)  # which would take an hour
    assert done.returncode != 0
    assert 9 in codes(done).values(), done.stderr[-3000:]
    said = {rank: (tmp_path / "runs" / "dasd-s0" / "hang" / f"rank-{rank}.txt").read_text() for rank in (0, 1)}
    assert (
        "rank 1 " in said[1]
        and "step 3, forward, for " in said[1]
        and "guards_worker.py" in said[1]
        and " in slow" in said[1]
    )
    assert "rank 0 " in said[0] and re.search("step 3, (losses|agree|backward), for ", said[0]), said[0]
    assert " in slow" not in said[0]
    assert all(f"HangError: rank {rank} " in done.stderr for rank in (0, 1))


def test_a_gradient_that_is_not_finite_on_one_rank_is_everybodys(tmp_path: Path) -> None:
    config = toy.dasd(tmp_path, runtime={"skipped_steps": 1, "trace": "samples"})
    done = run("nan", config)
    assert set(codes(done).values()) == {7}, done.stderr[-3000:]
    assert "runtime.skipped_steps allows 1" in done.stderr
    folder = tmp_path / "runs" / "dasd-s0"
    assert {path.name for path in (folder / "nonfinite").iterdir()} == {"step-00000002.json", "step-00000003.json"}
    record = json.loads((folder / "nonfinite" / "step-00000002.json").read_text())
    seen = [json.loads((folder / "trace" / f"rank{rank}.jsonl").read_text().splitlines()[2]) for rank in (0, 1)]
    assert record["ranks"] == [{"slots": part["slots"], "items": part["items"]} for part in seen]
    assert record["k"] == 2 and "nan" in record["gradient_norms"].values() and record["values"]["loss"] == "nan"


def test_a_stop_on_one_rank_during_a_validation_is_everybodys(tmp_path: Path) -> None:
    config = toy.dasd(tmp_path, runtime={"checkpoint_every": 100})
    done = run("stop", config, "stages.cla.validate_every=3")
    assert (
        set(codes(done).values()) == {75} and "stopped by a request to another process at step 3, saved" in done.stderr
    )
    saved = tmp_path / "runs" / "dasd-s0" / "checkpoints"
    assert [path.name for path in saved.iterdir()] == ["step-00000003"]
    progress = json.loads((saved / "step-00000003" / "state.json").read_text())["progress"]
    assert progress["unvalidated"] and progress["best"] is None


@pytest.mark.slow
def test_the_doctor_measures_what_is_between_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = ["-m", "ccr_dist", "doctor", "--json", "--out", str(tmp_path)]
    done = subprocess.run([*command, *arguments], env=env, capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    between = report["facts"]["processes"]
    assert (between["world"], between["backend"]) == (2, "gloo") and between["all-reduce GB/s"] > 0
    assert between["slowest rank"].startswith("rank ") and between["slowest link"].startswith("rank ")
    assert set(codes(done).values()) == ({2} if report["problems"] else set())

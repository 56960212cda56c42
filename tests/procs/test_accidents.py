"""Several processes when something goes wrong: a damaged checkpoint, a full disk, a gradient that is not finite. And
LECCR, whose learned temperature and trained backbone ask more of strategies than DASD does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.procs, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("accidents")
    command = [sys.executable, "-m", "tests.procs.accidents_worker", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-4000:]
    return {**json.loads((folder / "alone.json").read_text()), **json.loads((folder / "together.json").read_text())}


@pytest.mark.parametrize("damage", ["truncated", "missing", "other bytes", "half deleted", "two damaged"])
def test_all_ranks_go_on_from_the_newest_healthy_checkpoint_and_say_so(found: dict[str, Any], damage: str) -> None:
    scene = found[damage]
    at, passed = (2, (7, 4)) if damage == "two damaged" else (4, (7,))
    assert scene["resumed"] == [at, at]
    assert (
        all(f"step-{step:08d}: passed over: " in scene["said"] for step in passed)
        and f"resuming at step {at} of 7" in scene["said"]
    )
    assert scene["healed"] and scene["far"] < 1e-4, "the damaged one is written again, and the run is the same"


def test_a_full_disk_ends_all_ranks_and_leaves_the_checkpoint_before(found: dict[str, Any]) -> None:
    scene = found["full disk"]
    for code, message in scene["raised"]:
        assert code == 5 and "step-00000007" in message and "make room" in message
    assert scene["left"] == ["step-00000002", "step-00000004"], "no rubbish"
    assert scene["resumed"] == [4, 4] and scene["step"] == 7


def test_what_one_rank_cannot_write_or_read_ends_all_ranks_alike(found: dict[str, Any]) -> None:
    assert [code for code, _ in found["alone Telemetry"]] == [5, 5] and all(
        "no room" in said for _, said in found["alone Telemetry"]
    )
    assert [code for code, _ in found["alone StageRun"]] == [3, 3] and all(
        "cannot be read" in said for _, said in found["alone StageRun"]
    )


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "fsdp2"])
def test_too_many_gradients_that_are_not_finite_end_all_ranks_alike(found: dict[str, Any], strategy: str) -> None:
    scene = found[f"nan {strategy}"]
    assert [code for code, _ in scene["raised"]] == [7, 7]
    assert all("runtime.skipped_steps allows 1" in message for _, message in scene["raised"])
    assert scene["problems"] == [None] and scene["steps"] == [1, 2, 3], (
        "the checkpoint is intact; the first step of the two was skipped"
    )


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_a_trained_backbone_and_a_learned_temperature_in_shards(found: dict[str, Any], strategy: str) -> None:
    alone, many = found["leccr ddp"], found[f"leccr {strategy}"]
    assert alone["losses"].keys() == many["losses"].keys() and len(alone["losses"]) == 4
    for step, numbers in alone["losses"].items():
        assert many["losses"][step] == pytest.approx(numbers, rel=1e-4), step
    assert many["test"] == pytest.approx(alone["test"], abs=3)

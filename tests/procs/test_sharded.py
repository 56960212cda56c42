"""Checkpoints in shards: the same run, written by all ranks, and resumed by whoever comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ccr_dist.train.state import checkpoint, checkpoint_contents
from tests.procs.resume_worker import CUT, TOTAL, losses

pytestmark = pytest.mark.procs
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    worker = Path(__file__).with_name("sharded_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(folder)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def found(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shards_are_read_whole_and_in_parts(folder: Path, world: int) -> None:
    names = ["half", "matrix", "one", "scalar"]
    for rank in found(folder / str(world) / "found.json"):
        assert rank["whole"] and rank["parts"]
        assert rank["names"] == [names, [f"{name}/exp_avg" for name in names], ["x"]]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_disk_that_is_full_on_one_rank_is_an_error_on_all_and_leaves_what_was_there(folder: Path, world: int) -> None:
    ranks = found(folder / str(world) / "found.json")
    assert all("step-00000009" in rank["full"] and "make room" in rank["full"] for rank in ranks), ranks
    assert ranks[0]["left"] == ["step-00000005"]
    assert checkpoint.newest(folder / str(world)) == (folder / str(world) / "step-00000005", [])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_that_begin_differently_are_told_apart(folder: Path, world: int) -> None:
    """By the last bit of one number of one rank: FSDP2 would train on a piece of each."""
    told = "all alike" if world == 1 else "w is not the same on rank 1 as on rank 0"
    assert all(rank["same"].startswith(told) for rank in found(folder / str(world) / "found.json"))


def test_a_run_is_the_same_in_shards(folder: Path) -> None:
    """Every rank's part is a file, nothing is whole but what rank 0 alone has, and the published weights are the same
    bytes.
    """
    whole, sharded = folder / "runs" / "whole-s0", folder / "runs" / "sharded-s0"
    last = checkpoint.folder_of(sharded / "checkpoints", TOTAL)
    assert not list(last.glob("*.safetensors")) and all(
        len(list((last / part).iterdir())) == 2 for part in checkpoint.PARTS
    )
    states = [checkpoint.load(checkpoint.folder_of(run / "checkpoints", TOTAL)) for run in (whole, sharded)]
    for part in checkpoint.PARTS:
        first, second = (getattr(state, part) for state in states)
        assert first and first.keys() == second.keys()
        assert all(
            torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first
        ), part
        assert checkpoint_contents.tensors(last, part) == checkpoint_contents.tensors(
            checkpoint.folder_of(whole / "checkpoints", TOTAL), part
        )
    assert any(name.startswith("ema/") for name in states[1].auxiliary)
    assert (whole / "model.safetensors").read_bytes() == (sharded / "model.safetensors").read_bytes()
    assert losses(whole) == losses(sharded)


@pytest.mark.parametrize("place", ["ddp1", "ddp2", "fsdp22"])
def test_shards_are_resumed_by_any_strategy_and_world(folder: Path, place: str) -> None:
    (case,) = found(folder / f"{place}.json").values()
    assert case["resumed_at"] == CUT and case["batches"] and case["carried"] > 50
    assert case["lost"] == [], "weights, moments and averages were taken over bit for bit"
    assert case["losses"] < 1e-3 and (case["bits"] or place != "fsdp22")


def test_a_damaged_shard_is_passed_over(folder: Path) -> None:
    root = folder / "runs" / "sharded-s0" / "checkpoints"
    victim = next((checkpoint.folder_of(root, TOTAL) / "optimizer").glob("shard-00002*"))
    content = victim.read_bytes()
    try:
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert checkpoint.newest(root)[0] != checkpoint.folder_of(root, TOTAL)
        victim.unlink()
        best, messages = checkpoint.newest(root)
        assert best is not None and messages == [
            f"{victim.parents[1]}: passed over: optimizer/{victim.name} is missing"
        ]
    finally:
        victim.write_bytes(content)

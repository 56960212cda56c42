"""`ccr-dist checkpoint`: what it tells, what it finds damaged, and what it makes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.errors import CcrError, CheckpointError, ConfigError
from ccr_dist.train.processes import Ranks
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.checkpoint import State
from ccr_dist.train.state.run_folder import RunFolder


def state(step: int) -> State:
    values = {
        "step": step,
        "progress": {"stage": "cma", "stage_step": step - 2, "skipped": 1, "substituted": 3, "best": None},
        "made_by": {"strategy": "zero2", "world": 4},
    }
    weights = {
        "net.a.weight": torch.full((3, 2), float(step)),
        "net.a.bias": torch.ones(3),
        "backbone.b.c": torch.ones(2, dtype=torch.bfloat16),
    }
    optimizer = {"net.a.weight/exp_avg": torch.ones(3, 2), "net.a.weight/step": torch.tensor(4.0)}
    return State(values, weights, optimizer, {"ema/net.a.weight": torch.full((3, 2), 0.25)})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps 4, 6 and 8; 4 is the best."""
    folder = RunFolder(tmp_path / "run-s0")
    for step in (4, 6, 8):
        checkpoint.save(folder.checkpoints, state(step))
    folder.keep_best({"step": 4, "stage": "cma", "metric": "mR", "value": 51.5})
    return folder.path


def ccr_dist(*arguments: Any) -> str:
    result = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])
    if isinstance(result.exception, SystemExit) and isinstance(result.exception.__context__, CcrError):
        raise result.exception.__context__  # what the command line turned into a message and an exit code
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.output


def test_a_run_says_why_it_keeps_each_checkpoint(run: Path) -> None:
    rows = json.loads(ccr_dist("inspect", run, "--json"))
    assert {row["step"]: row["kept"] for row in rows} == {
        4: ["best, mR 51.50"],
        6: ["among the newest 2"],
        8: ["newest: a resume starts here"],
    }
    text = ccr_dist("inspect", run)
    assert "zero2 x 4" in text and "best, mR" in text


@pytest.mark.parametrize("layout", ["whole", "sharded"])
def test_a_checkpoint_tells_what_it_holds(tmp_path: Path, layout: str) -> None:
    folder = checkpoint.save(tmp_path, state(6), Ranks() if layout == "sharded" else None)
    row = json.loads(ccr_dist("inspect", folder, "--json"))
    assert (row["step"], row["stage"], row["stage_step"], row["layout"], row["skipped"]) == (6, "cma", 4, layout, 1)
    assert row["bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert row["optimizer_states"] == ["exp_avg", "step"]
    assert row["tensors"]["weights"] == {
        "backbone.b.c": {"dtype": "BF16", "shape": [2], "bytes": 4},
        "net.a.bias": {"dtype": "F32", "shape": [3], "bytes": 12},
        "net.a.weight": {"dtype": "F32", "shape": [3, 2], "bytes": 24},
    }
    text = ccr_dist("inspect", folder)
    assert "net.a " in text and "36 B" in text and re.search(r"saved \d+ s ago by zero2 on 4 process\(es\)", text)
    assert "weights  net.a.weight  F32 [3, 2]  24 B" in ccr_dist("inspect", folder, "--tensors")


def test_verify_names_the_file_and_what_is_resumed_instead(run: Path) -> None:
    assert ccr_dist("verify", run).count("as it was written") == 3
    victim = run / "checkpoints" / "step-00000008" / "optimizer.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(
        CheckpointError,
        match=r"step-00000008: optimizer.safetensors is not what .*; a resume continues from step-00000006",
    ):
        ccr_dist("verify", run)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        ccr_dist("verify", victim.parent)
    assert CliRunner().invoke(app, ["checkpoint", "verify", str(victim.parent.parent / "step-00000006")]).exit_code == 0
    (victim.parent / "state.json").unlink()
    assert [row.get("problem", "")[-40:] != "" for row in json.loads(ccr_dist("inspect", run, "--json"))] == [
        False,
        False,
        True,
    ]


def test_verify_misses_the_selected_checkpoint(run: Path) -> None:
    RunFolder(run).keep_best({"step": 5, "stage": "cma", "metric": "mR", "value": 51.5})
    with pytest.raises(CheckpointError, match="selects step 5, which has no checkpoint"):
        ccr_dist("verify", run)


def test_convert_makes_weights_as_they_were_validated(run: Path, tmp_path: Path) -> None:
    ccr_dist("convert", run / "checkpoints" / "step-00000006", tmp_path / "w.safetensors")
    weights = load_file(tmp_path / "w.safetensors")
    assert set(weights) == {"net.a.weight", "net.a.bias", "backbone.b.c"}
    assert torch.equal(weights["net.a.weight"], torch.full((3, 2), 0.25)), "the average"
    ccr_dist("convert", run / "checkpoints" / "step-00000006", tmp_path / "half.safetensors", "--bf16")
    assert {value.dtype for value in load_file(tmp_path / "half.safetensors").values()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match=r"w\.safetensors already exists"):
        ccr_dist("convert", run / "checkpoints" / "step-00000006", tmp_path / "w.safetensors")


def test_convert_makes_a_sharded_checkpoint_whole(tmp_path: Path) -> None:
    sharded = checkpoint.save(tmp_path / "sharded", state(6), Ranks())
    assert (sharded / "weights").is_dir()
    ccr_dist("convert", sharded, tmp_path / "whole")
    whole = checkpoint.save(tmp_path / "expected", state(6))
    made = tmp_path / "whole" / whole.name
    assert {file.name: file.read_bytes() for file in made.iterdir()} == {
        file.name: file.read_bytes() for file in whole.iterdir()
    }


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, command: str) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint and no run folder.*expected RUN"):
        ccr_dist(command, tmp_path)

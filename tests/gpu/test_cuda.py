"""The same small run on a GPU, in every precision: `bash launch/test.sh -m gpu tests/gpu`. Skipped without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ccr_dist.config import RunConfig
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands
from tests import toy
from tests.gpu.on import DEVICE, needs_gpu

pytestmark = needs_gpu
PRECISIONS = ["fp32", "bf16", "fp16"] if DEVICE == "cuda" else ["bf16"]  # fp16's loss scaling is CUDA's


def steps(config: RunConfig) -> list[dict[str, Any]]:
    """The lines of the log that are steps."""
    lines = map(json.loads, (config.folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "event" not in line]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_trains_and_is_measured(tmp_path: Path, precision: str) -> None:
    config = load_config(toy.dasd(tmp_path, cla=40, cma=10), [f"runtime.precision={precision}", "runtime.workers=2"])
    assert commands.train([config], test=True, world=None) == 0
    start = json.loads((config.folder / "starts.jsonl").read_text())
    assert start["precision"] == precision
    assert start["device"] == (torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu")
    losses = [line["loss"] for line in steps(config) if line["stage"] == "cla"]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_parts_of_a_batch_give_the_losses_of_the_whole(tmp_path: Path, precision: str) -> None:
    found = []
    for name, size in (("whole", "null"), ("parts", "4")):
        path = toy.dasd(tmp_path, name=name, cla=2, cma=3)
        options = [f"runtime.precision={precision}", f"runtime.micro_batch={size}", "method.scale=10"]
        config = load_config(path, options)
        assert commands.train([config], test=False, world=None) == 0
        found.append([line["loss"] for line in steps(config)])
    assert found[1] == pytest.approx(found[0], rel=1e-3 if precision == "fp32" else 5e-2)

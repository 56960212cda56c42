"""The same small run on a GPU, in every precision: `bash launch/test.sh -m gpu tests/gpu`. Skipped without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands
from tests import toy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_trains_and_is_measured(tmp_path: Path, precision: str) -> None:
    config = load_config(toy.dasd(tmp_path, cla=40, cma=10), [f"runtime.precision={precision}", "runtime.workers=2"])
    assert commands.train([config], test=True, world=None) == 0
    start = json.loads((config.folder / "starts.jsonl").read_text())
    assert start["precision"] == precision and start["device"] == torch.cuda.get_device_name()
    log = map(json.loads, (config.folder / "log.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in log if line.get("stage") == "cla"]
    assert losses[-1] < 0.8 * losses[0]

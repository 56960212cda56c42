"""Compiled blocks: the same losses, for lengths that vary, in training and validation; and what cannot be compiled is
refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands
from ccr_dist.train.step.compiled import compile_blocks
from tests import toy


@pytest.mark.slow  # a minute of compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_losses_of_compiled_blocks_are_those_of_eager_ones(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    found = []
    for name, overrides in {"eager": (), "compiled": ("runtime.compile=true",)}.items():
        config = load_config(toy.dasd(tmp_path, name=name, cla=3, cma=2), ["method.frontend.pad=longest", *overrides])
        assert commands.train([config], test=False, world=None) == 0
        lines = list(map(json.loads, (config.folder / "log.jsonl").read_text().splitlines()))
        found.append([line["loss"] for line in lines if "event" not in line])
    eager, compiled = found
    assert compiled == pytest.approx(eager, rel=1e-3) and compiled != eager
    assert counters["stats"]["unique_graphs"] <= 4, "a graph for all blocks alike, not one a block or a length"


class Tower(nn.Module):
    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(2)).requires_grad_(trained)


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(ConfigError, match="no frozen transformer blocks"):
        compile_blocks(Tower(trained=True), "ddp")
    with pytest.raises(ConfigError, match="ZeRO-3 fetches parameters inside of blocks"):
        compile_blocks(Tower(trained=False), "zero3")


def test_only_frozen_blocks_are_replaced_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: calls.append(dynamic) or forward)
    tower = Tower(trained=False)
    tower.head = nn.Linear(2, 2)
    compile_blocks(tower, "ddp")
    compile_blocks(tower, "ddp")
    assert calls == [True, True] and "forward" not in vars(tower.head)

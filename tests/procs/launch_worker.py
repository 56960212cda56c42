"""A rank of test_launch.py: what a launch profile makes of a small model. Rank 0 writes it to OUT.

accelerate launch --config_file PROFILE … launch_worker.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from ccr_dist.config import RuntimeConfig, StageConfig
from ccr_dist.train.strategies.strategy import Strategy

SIZE = 300


def main(out: Path) -> None:
    strategy = Strategy(RuntimeConfig(threads=1))
    torch.manual_seed(0)
    step = nn.Module()
    step.backbone = nn.Linear(SIZE, SIZE).requires_grad_(False)
    step.net = nn.Linear(SIZE, SIZE)
    step.forward = lambda x: step.net(step.backbone(x))
    trained = {name: parameter for name, parameter in step.named_parameters() if parameter.requires_grad}
    engine = strategy.engine(step, trained, StageConfig(steps=1, batch=2, lr=0.1))
    engine.backward(engine(torch.ones(1, SIZE)).square().sum())
    engine.update(0.1)
    held = strategy.all(engine.held())
    if strategy.main:
        whole = 4 * sum(SIZE * SIZE + SIZE for _ in range(2))
        out.write_text(json.dumps({**strategy.facts, "held": held, "whole": {"parameters": whole, "optimizer": whole}}))
    strategy.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Compiles the frozen transformer blocks of the backbone, each on its own, for any number of rows and any length of
texts.

Trained parts (front ends, adapters between the blocks), losses and wrappers are not compiled, so every strategy's hooks
work as before. Results differ from those of uncompiled blocks by rounding. A block is compiled once for training and
once for validation.
"""

from __future__ import annotations

import torch
from torch import nn

from ccr_dist.errors import ConfigError


def compile_blocks(step: nn.Module, strategy: str) -> None:
    """Compile the forward of every frozen block in `step.backbone`, before the engine wraps them.

    Args:
        step: The step; blocks that are already compiled stay as they are.
        strategy: Name of the strategy.

    Raises:
        ConfigError: There are no frozen blocks, or the strategy is ZeRO-3, whose hooks fetch parameters inside of
            blocks.
    """
    from ccr_dist.train.strategies.fsdp2 import blocks

    if strategy == "zero3":
        raise ConfigError(
            "runtime.compile: ZeRO-3 fetches parameters inside of blocks, which cannot be compiled then; use zero2 or"
            " fsdp2"
        )
    found = blocks(step)
    if not found:
        raise ConfigError(
            "runtime.compile: the backbone has no frozen transformer blocks, and nothing else is compiled; leave it out"
        )
    for block in found:
        if "forward" not in vars(block):
            block.forward = torch.compile(block.forward, dynamic=True)

"""Optimiser and learning rate of a stage. The rate is a pure function of the step, so no scheduler state exists."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from ..config import StageConfig


def rate(stage: StageConfig, k: int) -> float:
    """Learning rate of step `k` (0 <= k < steps): linear warm-up, then cosine or linear to zero, or constant."""
    warm = round(stage.warmup * stage.steps)
    if k < warm:
        return stage.lr * (k + 1) / warm
    x = (k - warm) / max(1, stage.steps - warm)
    factor = {"constant": 1.0, "linear": 1 - x, "cosine": 0.5 * (1 + math.cos(math.pi * x))}[stage.schedule]
    return stage.lr * factor


def adamw(stage: StageConfig, parameters: Mapping[str, nn.Parameter], device: torch.device) -> torch.optim.AdamW:
    """AdamW over named parameters. Vectors (biases, norms, temperatures) and embedding tables are not decayed: a table's rows of unseen
    words
    would shrink towards zero with every step, as they do in the published DASD code.
    """
    decayed = [p for name, p in parameters.items() if p.ndim >= 2 and not is_table(name)]
    others = [p for name, p in parameters.items() if p.ndim < 2 or is_table(name)]
    groups = [{"params": decayed, "weight_decay": stage.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=stage.lr, betas=stage.betas, eps=stage.eps, fused=device.type == "cuda" or None
    )


def is_table(name: str) -> bool:
    return ".table." in name

"""Short training runs of the toy corpus in the process of a test."""

from __future__ import annotations

from pathlib import Path

from ccr_dist.config import RunConfig
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands

# Without an opponent, whose weights would be most of a checkpoint's bytes.
SMALL = ("runtime.checkpoint_every=5", "method.adversarial=0.0")


def train(path: Path, *overrides: str, test: bool = False) -> RunConfig:
    """Trains a run on one process; its config."""
    config = load_config(path, overrides)
    assert commands.train([config], test=test, world=None) == 0
    return config

"""What is checked and reported about a stage before its first step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ccr_dist.config import RunConfig
from ccr_dist.errors import ConfigError
from ccr_dist.train.strategies.advice import advice
from ccr_dist.train.strategies.strategy import Step, Strategy


def check_stage(config: RunConfig, name: str, method: Any, strategy: Strategy) -> None:
    """Refuse combinations of method, settings and strategy that would train something else than the config says.

    Args:
        config: The run config.
        name: Name of the stage.
        method: The method, built.
        strategy: The strategy of the run.

    Raises:
        ConfigError: The stage cannot be trained in this way.
    """
    settings = config.stages[name]
    if method.entangled and not strategy.replicated:
        raise ConfigError(
            f"{config.name}: the main optimiser has {', '.join(method.entangled)}, too, in this variant of"
            f" {config.method.name}; {strategy.name} has it over the wrapped step alone: use ddp"
        )
    if settings.ema and strategy.name.startswith("zero"):
        raise ConfigError(
            f"{config.name}: stages.{name}.ema needs the weights between steps, which {strategy.name}"
            " keeps in partitions; use ddp or fsdp2, or leave it out"
        )
    if method.keeps_statistics and strategy.shards_weights:
        raise ConfigError(
            f"{config.name}: this variant of {config.method.name} keeps running statistics (batch normalisation),"
            f" which are written in a forward, and {strategy.name} throws away a forward's parameters: use"
            " ddp, zero1 or zero2, or normalise by layer"
        )
    if method.borrows_tensors and strategy.name == "zero3":
        raise ConfigError(
            f"{config.name}: {config.method.name} computes with variants of the backbone's blocks that share its"
            " tensors, of which zero3 keeps parts only; use ddp, zero1, zero2 or fsdp2"
        )
    if config.runtime.micro_batch and settings.negatives == "local":
        raise ConfigError(
            f"{config.name}: runtime.micro_batch needs stages.{name}.negatives: global; leave one of them out"
        )
    if config.runtime.micro_batch and method.rows_interact:
        raise ConfigError(
            f"{config.name}: runtime.micro_batch cuts batches, but rows of a batch meet inside this variant of"
            f" {config.method.name} (batch normalisation); leave it out, or choose another normalisation"
        )


def stage_advice(config: RunConfig, name: str, step: Step, strategy: Strategy) -> list[str]:
    """Lines about settings that have no effect, or cost more than they save, under this strategy.

    Args:
        config: The run config.
        name: Name of the stage.
        step: Backbone and method; `requires_grad` is already set for this stage.
        strategy: The strategy of the run.
    """
    sizes = {True: 0, False: 0}
    for parameter in step.parameters():
        sizes[parameter.requires_grad] += parameter.numel() * parameter.element_size()
    return advice(
        strategy.name,
        world=strategy.world,
        trained=sizes[True],
        frozen=sizes[False],
        rows=math.ceil(config.stages[name].batch / strategy.world),
        runtime=config.runtime,
        offload=strategy.offload,
        gpu=strategy.device.type == "cuda",
        recomputes=step.method.recomputes,
    )


def beyond_limits(limits: Mapping[str, tuple[float, float]], weights: Mapping[str, Tensor]) -> list[str]:
    """A line about each parameter outside its limits in a checkpoint; earlier versions did not clamp them.

    Args:
        limits: Lowest and highest value by parameter name.
        weights: The checkpoint's weights.
    """
    values = ((name, low, high, weights[name]) for name, (low, high) in limits.items() if name in weights)
    return [
        f"{name} is {value.flatten()[0]:.4f} in the checkpoint: an earlier version let it leave its limits ({low:g} to"
        f" {high:.4f}) and did not train it there; from here on it is put back and learns, so the run's numbers are of"
        " both"
        for name, low, high, value in values
        if not torch.equal(value, value.clamp(low, high))
    ]

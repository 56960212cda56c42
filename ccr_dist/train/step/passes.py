"""The arithmetic of a step: forward, losses, backward, whole or in micro-batches.

What is done with the gradients is the stage's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ccr_dist.config import RunConfig
from ccr_dist.data.stream.batch import Batch
from ccr_dist.losses.context import Context
from ccr_dist.methods.seeding import seed_all
from ccr_dist.train.step.auxiliary import AuxiliaryNetworks
from ccr_dist.train.step.micro_batches import CachedOutputs, rounds
from ccr_dist.train.strategies.base import Engine
from ccr_dist.train.strategies.strategy import Strategy


class Passes:
    """The passes of one stage on this rank.

    Args:
        name: Name of the stage.
        config: The run config.
        method: The method, built.
        strategy: The strategy of the run.
        engine: The engine of the stage.
        auxiliary: Its auxiliary networks.
    """

    def __init__(
        self,
        name: str,
        config: RunConfig,
        method: Any,
        strategy: Strategy,
        engine: Engine,
        auxiliary: AuxiliaryNetworks,
    ) -> None:
        self.name, self.config, self.method = name, config, method
        self.strategy, self.engine, self.auxiliary = strategy, engine, auxiliary

    def cut(self, context: Context) -> int:
        """How many parts the batch of a step is cut into; 0: it is not."""
        size = self.config.runtime.micro_batch
        most = rounds(context.counts, size) if size else 1
        return most if most > 1 else 0

    def run(
        self,
        batch: Batch,
        context: Context,
        *,
        step: int,
        enter: Callable[[str], None] = lambda phase: None,
        counting: AbstractContextManager[None] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Forward, losses and backward of a step; gradients lie in the parameters behind it. Collective.

        Args:
            batch: This rank's part of the batch.
            context: Context of the losses.
            step: Number of the step in the run; with the seed it fixes all random choices.
            enter: Called at the beginning of each phase: forward, losses, backward.
            counting: Context manager around what counts as the step's arithmetic; a first forward without gradient does
                not.

        Returns:
            This rank's shares of the losses of the method, and of its auxiliary networks.
        """

        def forward(part: Batch, number: int) -> dict[str, Tensor]:
            # Dropout masks differ between ranks and parts, and a resumed run draws the same ones.
            seed_all(self.config.seed, "step", step, self.strategy.rank, *([number] if number else []))
            with self.strategy.autocast():
                return self.engine("outputs", self.name, part)

        size, most = self.config.runtime.micro_batch, self.cut(context)
        enter("forward")
        cached = None
        if size and most:
            cached = CachedOutputs(
                self.engine, forward, batch, size=size, rounds=most, shared=self.method.shared_outputs
            )
        with counting or nullcontext():
            outputs = cached.outputs if cached else forward(batch, 0)
            enter("losses")
            with self.strategy.autocast():
                extra = self.auxiliary.step(batch, outputs, context)
                losses = self.method.losses(self.name, batch, outputs, context)
            share = torch.stack(list(losses.values())).sum()
            enter("backward")
            if cached:
                cached.backward(share)
            else:
                self.engine.backward(share)
        return losses, extra

"""Auxiliary networks of a method, such as a discriminator: stepped before the main loss, each by its own optimiser.

They are replicated on every rank under every strategy, and their gradients are summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.config import StageConfig
from ccr_dist.data.stream.batch import Batch
from ccr_dist.losses.context import Context
from ccr_dist.train.state import checkpoint
from ccr_dist.train.strategies.replicated import Single
from ccr_dist.train.strategies.strategy import Strategy


class AuxiliaryNetworks:
    """The networks in `method.aux` during one stage.

    Args:
        name: Name of the stage.
        method: The method, built.
        strategy: The strategy of the run.
        settings: Settings of the stage.

    Attributes:
        engines: The engine of each network, by its name.
    """

    def __init__(self, name: str, method: Any, strategy: Strategy, settings: StageConfig) -> None:
        self._name, self._method, self._strategy = name, method, strategy
        self.engines = {
            key: Single(strategy, network, dict(network.named_parameters()), self._adam(key), settings)
            for key, network in method.aux.items()
        }

    def _adam(self, key: str) -> Any:
        return lambda parameters: torch.optim.Adam(
            parameters.values(), lr=self._method.auxiliary_lr(key), betas=(0.9, 0.999)
        )

    def reuse_copies(self) -> None:
        """As `Engine.reuse_copies`."""
        for engine in self.engines.values():
            engine.reuse_copies()

    def step(self, batch: Batch, outputs: Mapping[str, Tensor], context: Context) -> dict[str, Tensor]:
        """Train the networks on detached outputs. A network whose gradient is not finite is left as it is. Collective.

        Args:
            batch: This rank's part of the batch.
            outputs: Outputs of the step.
            context: Context of the losses.

        Returns:
            This rank's share of each network's loss, by `aux_<network>`.
        """
        if not self.engines:
            return {}
        losses = self._method.auxiliary_losses(
            self._name, batch, {key: value.detach() for key, value in outputs.items()}, context
        )
        for key, loss in losses.items():
            optimizer = self.engines[key].optimizer
            loss.backward()
            parameters = list(self._method.aux[key].parameters())
            self._strategy.sum_gradients(parameters)
            if torch.isfinite(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {f"aux_{key}": loss for key, loss in losses.items()}

    def state(self) -> dict[str, Tensor]:
        """`<network>/weights/<name>` and `<network>/optimizer/<name>/<state>`, for a checkpoint (`Engine.kept`)."""
        tensors: dict[str, Tensor] = {}
        for key, engine in self.engines.items():
            weights, states = engine.weights(engine.trained), engine.optimizer_state()
            tensors |= {f"{key}/weights/{n}": p for n, p in weights.items()} | {
                f"{key}/optimizer/{n}": v for n, v in states.items()
            }
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load `state`. Raises CheckpointError for tensors of other networks or parameters."""
        for key, engine in self.engines.items():
            weights = checkpoint.below(f"{key}/weights/", tensors)
            checkpoint.restore_weights(engine.trained, weights, f"auxiliary network {key}")
            engine.restore(checkpoint.below(f"{key}/optimizer/", tensors))

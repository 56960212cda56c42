"""An exponential moving average of the trained weights, which is validated, selected and published if a stage has
`ema`.

    after step k of the stage (0, 1, …), unless it was skipped:  a <- d a + (1 - d) w,  d = min(ema, (1 + k) / (10 + k))

The bound on d lets the average forget the beginning of training. A stage's average starts as its weights. Every rank
keeps the same part of it as of the weights, in fp32 as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ccr_dist.errors import CheckpointError
from ccr_dist.train.state.checkpoint import State
from ccr_dist.train.strategies.base import Engine, local

PREFIX = "ema/"  # of its tensors among the auxiliary ones of a checkpoint


class Ema:
    """The average of an engine's trained parameters, without those of auxiliary networks (`aux.`).

    Args:
        engine: An engine whose weights are available between steps (not ZeRO's).
        decay: The decay d, without its bound.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self._weights = {name: p for name, p in engine.trained.items() if not name.startswith("aux.")}
        self._averages = {name: p.detach().clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self, k: int) -> None:
        """Update the average after step `k` of the stage. Not collective."""
        decay = min(self._decay, (1 + k) / (10 + k))
        for average, weight in self._pairs():
            average.lerp_(weight, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context manager: exchanges the weights for the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in self._pairs():
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        self._engine.rewritten()

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((local(average), local(self._weights[name])) for name, average in self._averages.items())

    def state(self) -> dict[str, Tensor]:
        """`ema/<parameter>`, for a checkpoint (`Engine.kept`). Collective."""
        return self._engine.kept((PREFIX + name, average) for name, average in self._averages.items())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load `state`. Raises CheckpointError if it belongs to other parameters."""
        kept = _averages(tensors)
        if kept.keys() != self._averages.keys():
            odd = sorted(kept.keys() ^ self._averages.keys())
            raise CheckpointError(f"the checkpoint's moving average is of other parameters than are trained: {odd[:3]}")
        for name, value in kept.items():
            local(self._averages[name]).copy_(local(self._engine.placed(value, self._weights[name])))


def selected(state: State) -> dict[str, Tensor]:
    """The weights of a checkpoint as they were validated: averaged, if it has an average of them."""
    return {**state.weights, **_averages(state.auxiliary)}


def _averages(auxiliary: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): value for name, value in auxiliary.items() if name.startswith(PREFIX)}

"""Gradient caching (GradCache, Gao et al., 2021): trains on a batch too large for memory, exactly, even with losses in
which all rows interact.

Parts of the batch go through the model without gradient. The loss is computed on all their outputs, and its gradients
with respect to the outputs are kept. Then each part goes through the model again and back-propagates its own. Since
every output is cached, loss and gradients are those of the whole batch, up to the order of summation. Each part draws
the same random numbers in both passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ccr_dist.data.stream.batch import Batch
from ccr_dist.models import token_counts
from ccr_dist.train.strategies.base import Engine


class CachedOutputs:
    """Outputs of a batch, computed part by part.

    Args:
        engine: The engine of the stage.
        forward: (part, its number) -> outputs, with the part's random state; called twice per part.
        batch: This rank's part of the batch.
        size: Most rows of a part.
        rounds: Number of parts on the rank that has most; all ranks make as many calls.
        shared: Names of outputs that have no row per row of the batch, such as a temperature.

    Attributes:
        outputs: Outputs of the whole batch by name, in the order of its rows.
    """

    def __init__(
        self,
        engine: Engine,
        forward: Callable[[Batch, int], dict[str, Tensor]],
        batch: Batch,
        *,
        size: int,
        rounds: int,
        shared: Sequence[str],
    ) -> None:
        self._engine, self._forward, self._shared = engine, forward, frozenset(shared)
        nobody = torch.zeros(0, dtype=torch.int64)
        self._parts = batch.parts(size)
        while len(self._parts) < rounds:
            self._parts.append((nobody, batch.take(nobody)))
        with torch.no_grad():
            made = [forward(part, number) for number, (_, part) in enumerate(self._parts)]
        back = torch.cat([rows for rows, _ in self._parts]).argsort()
        whole = {
            key: made[0][key] if key in self._shared else torch.cat([each[key] for each in made])[back]
            for key in made[0]
        }
        self.outputs = {key: value.detach().requires_grad_(value.is_floating_point()) for key, value in whole.items()}

    def backward(self, loss: Tensor) -> None:
        """Back-propagate to the outputs, then part by part to the parameters; the last part reduces gradients."""
        loss.backward()
        for number, (rows, part) in enumerate(self._parts):
            with self._engine.accumulate(last=number == len(self._parts) - 1), token_counts.again():
                self._engine.backward(self._surrogate(self._forward(part, number), rows, first=number == 0))

    def _surrogate(self, made: dict[str, Tensor], rows: Tensor, *, first: bool) -> Tensor:
        """A scalar with the cached gradients: the sum of outputs times the loss's gradients with respect to them."""
        terms: list[Tensor] = []
        for key, value in made.items():
            cached = self.outputs[key].grad
            if not value.requires_grad or (key in self._shared and not first):
                continue
            if cached is None:
                terms.append(value.sum() * 0)  # the wrapper expects a gradient of every output with a graph
            else:
                terms.append((value * (cached if key in self._shared else cached[rows.to(cached.device)])).sum())
        return torch.stack(terms).sum()


def rounds(counts: Sequence[int], size: int) -> int:
    """Number of parts on the rank with most rows.

    Args:
        counts: Rows of each rank.
        size: Most rows of a part.
    """
    return max(1, math.ceil(max(counts) / size))

"""Gradient caching: a batch too large for memory, exactly, for losses in which every row meets every other (Gao et al.,
2021, GradCache).

Parts of the batch go through the model without gradient; the loss is taken on all their outputs and its gradients with
respect to them are kept; then each part goes through again and receives its own. Every output is cached, so loss and
gradients are those of the whole batch (what is left is rounding: parts are summed in another order). Each part draws
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
    """Outputs of a batch, made part by part.

    Args:
        forward: (part, its number) -> outputs, in whatever context and random state that part has; called twice a part.
        size: most rows of a part.
        rounds: parts on the rank that has most of them (all ranks make as many calls).
        shared: outputs that do not have a row for each of the batch's, such as a temperature.
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
        """To the outputs, then part by part to the parameters. The engine reduces gradients with the last part."""
        loss.backward()
        for number, (rows, part) in enumerate(self._parts):
            with self._engine.accumulate(last=number == len(self._parts) - 1), token_counts.again():
                self._engine.backward(self._surrogate(self._forward(part, number), rows, first=number == 0))

    def _surrogate(self, made: dict[str, Tensor], rows: Tensor, *, first: bool) -> Tensor:
        """A scalar whose gradients are the cached ones: the sum of outputs times what the loss said of them."""
        terms: list[Tensor] = []
        for key, value in made.items():
            cached = self.outputs[key].grad
            if not value.requires_grad or (key in self._shared and not first):
                continue
            if cached is None:
                terms.append(value.sum() * 0)  # the wrapper expects every output that has a graph
            else:
                terms.append((value * (cached if key in self._shared else cached[rows.to(cached.device)])).sum())
        return torch.stack(terms).sum()


def rounds(counts: Sequence[int], size: int) -> int:
    """Parts on the rank that has most rows."""
    return max(1, math.ceil(max(counts) / size))

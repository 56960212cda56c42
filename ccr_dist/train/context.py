"""What a method may ask about the other ranks. It is all a method sees of distribution: no rank, no world size.

Every loss that a method returns is its rank's *share*: the sum over ranks is the loss of the global batch, for any split into ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..data.order import mix
from ..losses.contrastive import contrastive_share, positives
from ..losses.gather import gather_rows, row_counts, world


class Context:
    """The global batch of one step, seen from one rank.

    Args:
        seed: the run's seed.
        step: the global step k; with the seed it fixes every pairing.
        rows: rows on this rank.
        device: where collectives take their tensors.
    """

    def __init__(self, *, seed: int, step: int, rows: int, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.step = step
        self.counts = row_counts(rows, device)
        self.batch = sum(self.counts)
        self._first = sum(self.counts[: world()[0]])

    def gather(self, rows: Tensor) -> Tensor:
        """(n, ...) -> (B, ...), with gradient; the order of the rows does not depend on the world size."""
        return gather_rows(rows, self.counts)

    def mean(self, per_row: Tensor) -> Tensor:
        """Share of the mean over the global batch of a per-row value, (n,) -> scalar."""
        return per_row.sum() / self.batch

    def contrastive(self, x: Tensor, y: Tensor, *, scale: Tensor | float, group: Tensor | None = None) -> Tensor:
        """Share of the symmetric contrastive loss of the global batch.

        Args:
            x, y: (n, D) features of this rank's rows; brought to unit length here.
            scale: 1/tau, a number or a tensor (its gradient, too, is a share).
            group: (n,) int64, rows with the same number are positives of each other; None: only a row and its partner are.
        """
        x, y = functional.normalize(x, dim=-1), functional.normalize(y, dim=-1)
        if group is None:
            columns = torch.arange(self.batch, device=x.device)
            rows = columns[self._first : self._first + x.shape[0]]
        else:
            rows, columns = group, self.gather(group)
        return contrastive_share(x, y, self.gather(x), self.gather(y), positives(rows, columns), scale)

    def permute(self, rows: Tensor) -> Tensor:
        """Rows of the global batch re-paired, (n, ...) -> (n, ...), without gradient: no row keeps its own partner (B > 1).

        The pairing is one cycle through a random order of the batch, a pure function of (seed, step).
        """
        order = sorted(range(self.batch), key=lambda i: mix(self.seed, self.step, i, 0x9A17))
        partner = [0] * self.batch
        for here, there in zip(order, order[1:] + order[:1], strict=True):
            partner[here] = there
        mine = partner[self._first : self._first + rows.shape[0]]
        return self.gather(rows.detach())[torch.tensor(mine, dtype=torch.int64, device=rows.device)]

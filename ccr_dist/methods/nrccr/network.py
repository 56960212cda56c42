"""What NRCCR (Wang et al., ACM MM 2022, and its released code) puts on top of a text encoder or of frame features: a
small sequence encoder, and the mapping into the common space with its normalisation.

`BatchNorm` here takes the statistics of the global batch, so that it does not depend on how the batch is cut over
processes, and keeps its running ones in a module of their own, as parameters that are never trained: checkpoints hold
parameters and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_dist.losses.gather import gather_rows, row_counts
from ccr_dist.models.hf_tower import masked_mean


class SequenceEncoder(nn.Module):
    """LayerNorm, Linear, ReLU; learned positions, LayerNorm; one attention layer with a residual and LayerNorm and no
    feed-forward.

    Args:
        inputs: width of what comes in.
        width: of the states.
        positions: longest sequence.
    """

    def __init__(self, inputs: int, width: int, positions: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(inputs), nn.Dropout(dropout), nn.Linear(inputs, width), nn.ReLU())
        self.positions = nn.Parameter(torch.randn(positions, width))
        self.placed = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.attended = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def embed(self, x: Tensor) -> Tensor:
        """(n, L, inputs) to (n, L, width), n ≥ 1, L ≤ positions; nothing has read its neighbours yet."""
        return self.dropout(self.placed(self.project(x) + self.positions[: x.shape[1]]))

    def read(
        self, queries: Tensor, memory: Tensor, mask: Tensor, *, residual: bool, asking: Tensor | None = None
    ) -> Tensor:
        """(n, Q, width) reads (n, M, width), mask (n, M) bool, True = there. Without the residual nothing of the
        queries' own is left.

        asking: (n, Q) bool, the queries that are there: the others see every position, padding too, as in the released
        code, which adds the same to all scores of such a query. None: all see what is there.
        """
        if asking is None:
            hidden: dict[str, Tensor] = {"key_padding_mask": ~mask}
        else:
            hidden = {
                "attn_mask": (asking[:, :, None] & ~mask[:, None, :]).repeat_interleave(self.attention.num_heads, dim=0)
            }
        seen, _ = self.attention(queries, memory, memory, need_weights=False, **hidden)
        return self.attended(self.dropout(seen) + queries if residual else self.dropout(seen))

    def forward(self, x: Tensor, mask: Tensor, counted: Tensor | None = None) -> Tensor:
        """x (n, L, inputs), mask (n, L), to the mean state (n, width) over `counted` (n, L) bool, by default over the
        mask.
        """
        h = self.embed(x)
        return masked_mean(self.read(h, h, mask, residual=True), mask if counted is None else counted)


class Statistics(nn.Module):
    """Running mean and variance of one `BatchNorm`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.variance = nn.Parameter(torch.ones(width), requires_grad=False)

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor, momentum: float) -> None:
        self.mean.lerp_(mean.to(self.mean.dtype), momentum)
        self.variance.lerp_(variance.to(self.variance.dtype), momentum)


class BatchNorm(nn.Module):
    """`nn.BatchNorm1d` over the global batch: in training all ranks call it together, in evaluation none needs the
    others.
    """

    def __init__(self, width: int, *, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, running: Statistics) -> Tensor:
        """(n, width), n ≥ 0 on a rank, to the same in float32 (or float64)."""
        x = x if x.dtype.itemsize >= 4 else x.float()
        if self.training:
            everywhere = gather_rows(x, row_counts(len(x), x.device))
            variance, mean = torch.var_mean(everywhere, dim=0, correction=0)
            rows = len(everywhere)
            running.update(mean.detach(), variance.detach() * rows / max(1, rows - 1), self.momentum)
        else:
            mean, variance = running.mean, running.variance
        return (x - mean) * torch.rsqrt(variance + self.epsilon) * self.weight + self.bias


class CommonSpace(nn.Module):
    """Linear, normalisation, dropout, unit length: (n, inputs) to (n, width), n ≥ 0. `norm`: "batch" or "layer"."""

    def __init__(self, inputs: int, width: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.norm: BatchNorm | nn.LayerNorm = BatchNorm(width) if norm == "batch" else nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, running: Statistics | None) -> Tensor:
        """`running`: of the batch normalisation; none needed for the other."""
        x = self.linear(x)
        if isinstance(self.norm, BatchNorm):
            assert running is not None
            x = self.norm(x, running)
        else:
            x = self.norm(x)
        x = self.dropout(x)
        return F.normalize(x if x.dtype.itemsize >= 4 else x.float(), dim=-1)

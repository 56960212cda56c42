"""The symmetric contrastive loss over the global batch without its matrix of logits: neither (B, B) nor a rank's rows
of it, (n, B).

A rank forms the logits of its own x with the y of all ranks tile by tile, each tile once for both directions: its rows
are x to y, its columns y to x. Forward keeps a running log-sum-exp of every row and column, backward forms the tiles
again from the features (Cheng et al., "Breaking the Memory Barrier", CVPR 2025, after FlashAttention); columns' sums
are added over ranks. That is 4 products of features where the gathered loss (`contrastive.symmetric`) takes 6. Memory
above the features: a few tiles, 6 numbers a row of the global batch, the gradients, and with `gathered` blocks the
global batch's y and its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ccr_dist.losses.blocks import gathered, ring
from ccr_dist.losses.contrastive import Score, similarities
from ccr_dist.losses.gather import gather_rows, own


def tile_of(device: torch.device) -> int:
    """Rows and columns of a tile: 4 MiB of float32 on a CPU, else 64 MiB."""
    return 1024 if device.type == "cpu" else 4096


def symmetric(
    x: Tensor,
    y: Tensor,
    *,
    scale: Tensor | float,
    counts: Sequence[int],
    groups: Tensor | None = None,
    score: Score = similarities,
    around: bool = False,
    tile: int | None = None,
) -> Tensor:
    """Of each of this rank's rows, (n,); the mean over the global batch is SC (`contrastive.symmetric`).

    Args:
        x, y: this rank's features, (n, ...); n may be 0.
        scale: 1/tau, a number or a tensor of one element, whose gradient is this rank's share.
        counts: rows a rank. One count: no other rank takes part.
        groups: (B,) ids of the global batch, rows with the same id are positives of each other; None: only x_i and y_i.
        score: of a tile; `slots.slot_scores` takes x of (n, K, D).
        around: the y of all ranks are passed round a ring (`blocks.ring`) instead of being gathered.
        tile: rows and columns of a tile; None: `tile_of` the device.

    Returns:
        float32 (float64 for float64 features). It can be differentiated once.
    """
    widest = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    plan = _Plan(tuple(counts), groups, score, around, tile or tile_of(x.device), widest)
    return _Symmetric.apply(x, y, torch.as_tensor(scale, dtype=widest, device=x.device), plan)


@dataclass(frozen=True)
class _Tile:
    rows: slice  # among this rank's rows
    columns: slice  # in the block
    places: slice  # of the columns in the global batch
    same: Tensor | None  # (rows, columns) bool, which are right; None: none of them


@dataclass(frozen=True)
class _Plan:
    counts: tuple[int, ...]
    groups: Tensor | None
    score: Score
    around: bool
    tile: int
    dtype: torch.dtype

    def visit(self, y: Tensor, work: Callable[[int, Tensor], Tensor | None]) -> Tensor | None:
        return (ring if self.around else gathered)(y, self.counts, work)

    def tiles(self, first: int, columns: int, device: torch.device) -> Iterator[_Tile]:
        """Of this rank's rows with a block of so many columns, from place `first` on."""
        mine = own(self.counts)
        for i in range(mine.start, mine.stop, self.tile):
            rows = slice(i, min(i + self.tile, mine.stop))
            for j in range(first, first + columns, self.tile):
                places = slice(j, min(j + self.tile, first + columns))
                here = slice(rows.start - mine.start, rows.stop - mine.start)
                yield _Tile(here, slice(j - first, places.stop - first), places, self._same(rows, places, device))

    def _same(self, rows: slice, columns: slice, device: torch.device) -> Tensor | None:
        if self.groups is not None:
            return self.groups[rows, None] == self.groups[columns]
        if rows.stop <= columns.start or columns.stop <= rows.start:
            return None
        a, b = (torch.arange(part.start, part.stop, device=device) for part in (rows, columns))
        return a[:, None] == b

    def right(self, device: torch.device) -> Tensor:
        """How many columns are right for each row of the global batch, and so rows for each column: (B,)."""
        if self.groups is None:
            return torch.ones(sum(self.counts), device=device)
        _, inverse, counts = self.groups.unique(return_inverse=True, return_counts=True)
        return counts[inverse]


class _Symmetric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, plan: _Plan) -> Tensor:
        batch, mine, factor = sum(plan.counts), own(plan.counts), scale.reshape(())
        row_sums = x.new_full((len(x),), -torch.inf, dtype=plan.dtype)  # log-sum-exps of logits
        column_sums = x.new_full((batch,), -torch.inf, dtype=plan.dtype)
        row_right, column_right = torch.zeros_like(row_sums), torch.zeros_like(column_sums)  # sums of right logits

        def work(first: int, block: Tensor) -> None:
            for tile in plan.tiles(first, len(block), x.device):
                z = plan.score(x[tile.rows].to(plan.dtype), block[tile.columns].to(plan.dtype)) * factor
                row_sums[tile.rows] = torch.logaddexp(row_sums[tile.rows], z.logsumexp(1))
                column_sums[tile.places] = torch.logaddexp(column_sums[tile.places], z.logsumexp(0))
                if tile.same is not None:
                    z = z.masked_fill_(~tile.same, 0)
                    row_right[tile.rows] += z.sum(1)
                    column_right[tile.places] += z.sum(0)

        with torch.autocast(x.device.type, enabled=False):
            plan.visit(y, work)
            column_sums, column_right = _over_ranks(column_sums, column_right, plan.counts)
        right = plan.right(x.device)
        ctx.plan = plan
        ctx.save_for_backward(x, y, scale, row_sums, column_sums, right)
        return (row_sums + column_sums[mine] - (row_right + column_right[mine]) / right[mine]) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, y, scale, row_sums, column_sums, right = ctx.saved_tensors
        plan, (needs_x, needs_y, needs_scale, _) = ctx.plan, ctx.needs_input_grad
        factor, mine = scale.reshape(()), own(plan.counts)
        weights = gather_rows(grad / 2, plan.counts)  # of the global batch's rows, and so of all columns
        shares = weights / right
        x_grad, scale_grad = x.new_zeros(x.shape, dtype=plan.dtype), torch.zeros_like(factor)

        def work(first: int, block: Tensor) -> Tensor | None:
            y_grad = block.new_zeros(block.shape, dtype=plan.dtype)
            for tile in plan.tiles(first, len(block), x.device):
                a = x[tile.rows].detach().to(plan.dtype).requires_grad_(needs_x)
                b = block[tile.columns].to(plan.dtype).requires_grad_(needs_y)
                with torch.enable_grad():
                    scores = plan.score(a, b)
                s = scores.detach()
                z = s * factor
                of_rows = (z - row_sums[tile.rows, None]).exp_().mul_(weights[mine][tile.rows, None])
                d = z.sub_(column_sums[tile.places]).exp_().mul_(weights[tile.places]).add_(of_rows)
                if tile.same is not None:
                    d -= tile.same * (shares[mine][tile.rows, None] + shares[tile.places])
                if needs_x or needs_y:
                    scores.backward(d)
                if needs_scale:
                    scale_grad.add_(s.mul_(d).sum())
                if a.grad is not None:
                    x_grad[tile.rows] += a.grad
                if b.grad is not None:
                    y_grad[tile.columns] += b.grad
            return y_grad if needs_y else None

        with torch.autocast(x.device.type, enabled=False):
            of_y = plan.visit(y, work)
            return (
                x_grad.mul_(factor).to(x.dtype) if needs_x else None,
                None if of_y is None else of_y.mul_(factor).to(y.dtype),
                scale_grad.reshape(scale.shape) if needs_scale else None,
                None,
            )


def _over_ranks(log_sums: Tensor, sums: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """log of the ranks' added exp(log_sums), and added sums; both (B,)."""
    if len(counts) == 1:
        return log_sums, sums
    peak = log_sums.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    both = torch.stack([(log_sums - peak).exp(), sums])
    dist.all_reduce(both)
    return peak + both[0].log(), both[1]

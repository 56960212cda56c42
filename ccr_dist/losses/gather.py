"""Rows of all ranks, with the gradient that one process would have.

Ranks may hold different numbers of rows, also none. A method never calls this directly; it goes through
`train.context.Context`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ccr_dist.losses import sent


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) where no process group runs."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def row_counts(rows: int, device: torch.device | str = "cpu") -> list[int]:
    """How many rows every rank holds."""
    _, size = world()
    if size == 1:
        return [rows]
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([rows], dtype=torch.int64, device=device))
    return [int(count) for count in counts]


def own(counts: Sequence[int]) -> slice:
    """Places of this rank's rows among all of `counts`; of one count, all places are this rank's."""
    rank = world()[0] if len(counts) > 1 else 0
    first = sum(counts[:rank])
    return slice(first, first + counts[rank])


def sum_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Of (sum(counts), ...) on every rank, the sum over ranks of this rank's part: (counts[rank], ...)."""
    if len(counts) == 1:
        return rows
    rows = rows.contiguous().clone()
    sent.reduced(rows, len(counts))
    dist.all_reduce(rows)
    return rows[own(counts)]


def _gather_padded(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """All ranks' rows, (sum(counts), ...); collectives want equal sizes, so each part is padded to the largest."""
    most = max(counts)
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    sent.gathered(padded, len(counts))
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        return _gather_padded(rows.contiguous(), counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Every rank's loss share depends on every row, so a row's gradient is the sum over ranks.
        return sum_rows(grads[0], ctx.counts), None


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """All ranks' rows in rank order.

    Args:
        rows: this rank's rows, (counts[rank], ...).
        counts: rows a rank, from `row_counts`.

    Returns:
        (sum(counts), ...). Its gradient reaches the rows of every rank: where each rank back-propagates its share of a
        global loss, each row receives the gradient of the sum of the shares, as in one process.
    """
    if len(counts) == 1:
        return rows
    if rows.requires_grad:
        return _Gather.apply(rows, counts)
    with torch.no_grad():
        return _gather_padded(rows.contiguous(), counts)


def largest(values: Tensor) -> Tensor:
    """Elementwise maximum over ranks, without gradient."""
    values = values.detach().clone()
    if world()[1] > 1:
        sent.reduced(values, world()[1])
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values

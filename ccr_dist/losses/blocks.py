"""Rows of all ranks, block by block, for work that needs no two blocks at once: all of them gathered, or passed round a
ring.

Both call `work(first, rows)` with rows of the global batch, of which `first` is the place of the first one, until each
row was seen once. `work` returns what it contributes to each of these rows, or None throughout; what all ranks
contributed to this rank's own rows comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ccr_dist.losses import sent
from ccr_dist.losses.gather import gather_rows, sum_rows, world

Work = Callable[[int, Tensor], Tensor | None]
ROWS, SUMS = 0, 1  # message tags


def gathered(mine: Tensor, counts: Sequence[int], work: Work) -> Tensor | None:
    """One block, the global batch: O(B d) memory, one all-gather and one all-reduce.

    Args:
        mine: this rank's rows, (counts[rank], ...).
        counts: rows a rank.

    Returns:
        (counts[rank], ...), or None where `work` gives None.
    """
    contributed = work(0, gather_rows(mine.detach(), counts))
    return None if contributed is None else sum_rows(contributed, counts)


def ring(mine: Tensor, counts: Sequence[int], work: Work) -> Tensor | None:
    """Blocks go from rank to rank, one rank's rows each: O(n d) memory. The next block arrives while this one is worked
    on.

    As `gathered`. Blocks are sent at the size of the largest, so that all ranks, also those without rows, exchange
    alike.
    """
    size = len(counts)
    if size == 1:
        return work(0, mine.detach())
    rank, most = world()[0], max(counts)
    here, sums = _padded(mine.detach(), most), None
    for turn in range(size):
        owner = (rank - turn) % size
        moving = _Shift(here, ROWS) if turn < size - 1 else None
        contributed = work(sum(counts[:owner]), here[: counts[owner]])
        if contributed is not None:
            contributed = _padded(contributed, most)
            if sums is not None:  # of the ranks that had this block before
                contributed += sums.arrived()
            sums = _Shift(contributed, SUMS)
        if moving is not None:
            here = moving.arrived()
    return None if sums is None else sums.arrived()[: counts[rank]]


class _Shift:
    """A tensor on its way to the next rank, while the previous rank's comes in."""

    def __init__(self, outgoing: Tensor, tag: int) -> None:
        rank, size = world()
        self._outgoing = outgoing  # must live until it is sent
        self._incoming = torch.empty_like(outgoing)
        send = dist.P2POp(dist.isend, outgoing, (rank + 1) % size, tag=tag)
        receive = dist.P2POp(dist.irecv, self._incoming, (rank - 1) % size, tag=tag)
        sent.passed_on(outgoing)
        self._pending = dist.batch_isend_irecv([send, receive])

    def arrived(self) -> Tensor:
        for each in self._pending:
            each.wait()
        return self._incoming


def _padded(rows: Tensor, most: int) -> Tensor:
    if len(rows) == most:
        return rows.contiguous()
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: len(rows)] = rows
    return padded

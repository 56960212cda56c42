"""The best rows of an index for some queries: every row is scored, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ccr_dist.errors import DataError, NonFiniteError
from ccr_dist.search.vectors import Block, Vectors

_ROWS = 1 << 14  # of a block: many small shards are scored together


def best(
    vectors: Vectors, allowed: np.ndarray, score: Callable[[np.ndarray], np.ndarray], queries: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows.

    Args:
        vectors: all rows.
        allowed: (total,) bool: the numbers that count.
        score: rows (m, width) -> (queries, m).
        queries: how many.
        k: how many; fewer where there are fewer.

    Returns:
        Numbers (queries, k) int64 and scores (queries, k) float32, best first; of equal scores the smaller number.

    Raises:
        DataError: k is no positive number.
        NonFiniteError: a score is NaN.
    """
    if k < 1:
        raise DataError(f"k {k}: expected at least 1")
    k = min(k, int(allowed.sum()))
    numbers, scores = np.zeros((queries, 0), np.int64), np.zeros((queries, 0), np.float32)
    for block in _allowed(vectors, allowed):
        new = score(block.rows)
        if np.isnan(new).any():
            raise NonFiniteError("a score is NaN: the query, or the index, has rows that are not finite")
        numbers = np.concatenate([numbers, np.broadcast_to(block.numbers, new.shape)], axis=1)
        scores = np.concatenate([scores, new.astype(np.float32, copy=False)], axis=1)
        order = np.lexsort((numbers, -scores))[:, :k]
        numbers, scores = np.take_along_axis(numbers, order, 1), np.take_along_axis(scores, order, 1)
    return numbers, scores


def _allowed(vectors: Vectors, allowed: np.ndarray) -> Iterator[Block]:
    """The rows that count, in blocks."""
    waiting: list[Block] = []
    for rows, numbers in vectors:
        keep = allowed[numbers]
        if not keep.any():
            continue
        waiting.append(Block(rows, numbers) if keep.all() else Block(rows[keep], numbers[keep]))
        if sum(len(block.numbers) for block in waiting) >= _ROWS:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1 and blocks[0].rows.flags.writeable:  # PyTorch takes no read-only memory map
        return blocks[0]
    return Block(np.concatenate([block.rows for block in blocks]), np.concatenate([block.numbers for block in blocks]))

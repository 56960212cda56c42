"""The rows of an index by number: where they lie in the segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError
from ccr_dist.search.encode import ROWS
from ccr_dist.search.state import SEGMENTS, Segment


class Block(NamedTuple):
    """Rows that lie together.

    Attributes:
        rows: (m, visual_width) float32, memory-mapped.
        numbers: (m,) int64, ascending.
    """

    rows: np.ndarray
    numbers: np.ndarray


class Vectors:
    """The rows of all segments.

    Args:
        root: the index.
        segments: of one of its states.

    Raises:
        DataError: a segment is damaged.
    """

    def __init__(self, root: Path, segments: Sequence[Segment]) -> None:
        self.blocks = [block for segment in segments for block in _blocks(root, segment)]
        self._starts = np.array([block.numbers[0] for block in self.blocks], np.int64)

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, visual_width) float32 of n ≥ 1 numbers. Raises DataError for one without a row."""
        found = []
        for number in np.asarray(numbers, np.int64):
            at = int(np.searchsorted(self._starts, number, side="right")) - 1
            block = self.blocks[at] if at >= 0 else None
            place = int(np.searchsorted(block.numbers, number)) if block else 0
            if block is None or place == len(block.numbers) or block.numbers[place] != number:
                raise DataError(f"the index has no row of number {number}")
            found.append(block.rows[place])
        return np.stack(found)


def _blocks(root: Path, segment: Segment) -> Iterator[Block]:
    dataset = Dataset(root / SEGMENTS / segment.id)
    if dataset.rows != segment.rows:
        raise DataError(f"{dataset.root}: {dataset.rows} rows, the index records {segment.rows}: it is damaged")
    column, first = dataset.column(ROWS), segment.first
    for shard, rows in enumerate(dataset.shard_rows):
        array, offsets = column.matrix(shard)
        if len(array):
            yield Block(array, first + np.flatnonzero(np.diff(offsets)))
        first += rows

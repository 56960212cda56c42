"""Every value of a column once, in row order: what evaluation encodes (a gallery, all captions of a language).

A column is cut in blocks of rows that do not depend on the world size; a rank reads a contiguous share of them. Nothing is drawn,
repeated, dropped or substituted: null rows are left out (`rows` tells which are there), broken content is a DataError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ccr_dist.data.decode import decode_image, texts_of
from ccr_dist.data.loader import Reader, as_it_is
from ccr_dist.data.table import Column, Dataset
from ccr_dist.errors import ConfigError


class Block(NamedTuple):
    """n values: `rows` (n,) int64 row numbers in the dataset; `parts` (n,) int64 which caption, vector or view of the row (views by name).

    values: list[str] for texts, views and labels; (n, D) float32 for a matrix; (n, ...) for pictures with a transform, else bytes.
    """

    rows: torch.Tensor
    parts: torch.Tensor
    values: Any


class Sweep(TorchDataset[Block]):
    """The blocks of one rank, by number."""

    def __init__(
        self,
        dataset: Dataset,
        column: str,
        *,
        transform: Callable[[Any], torch.Tensor] | None = None,
        world: int = 1,
        rank: int = 0,
        block_rows: int = 64,
    ) -> None:
        if not 0 <= rank < world or block_rows < 1:
            raise ConfigError(f"rank {rank} of {world}, blocks of {block_rows} rows: expected 0 <= rank < world and at least one row")
        self.column: Column = dataset.column(column)
        self.column.require_complete()
        self.transform, self.block_rows, self._reader = transform, block_rows, Reader()
        self._ends = np.cumsum(dataset.shard_rows)
        blocks = -(-dataset.rows // block_rows)
        self._first, self._last = blocks * rank // world, blocks * (rank + 1) // world

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, i: int) -> Block:
        if not 0 <= i < len(self):
            raise IndexError(i)
        start = (self._first + i) * self.block_rows
        rows: list[int] = []
        parts: list[int] = []
        values: list[Any] = []
        for row in range(start, min(start + self.block_rows, self.column.dataset.rows)):
            found = self._values(row)
            rows += [row] * len(found)
            parts += range(len(found))
            values += found
        return Block(torch.tensor(rows, dtype=torch.int64), torch.tensor(parts, dtype=torch.int64), self._stacked(values))

    def _values(self, row: int) -> list[Any]:
        shard = int(np.searchsorted(self._ends, row, side="right"))
        at = row - (int(self._ends[shard - 1]) if shard else 0)
        value = self._reader.value(self.column, shard, at)
        if value is None:
            return []
        if self.column.kind == "video":
            return [value]
        if self.column.kind == "image":
            return [value if self.transform is None else self.transform(decode_image(value, self.column.where(shard, at)))]
        if self.column.kind == "matrix":
            return list(torch.from_numpy(value))
        return [value] if self.column.kind == "label" else texts_of(value)

    def _stacked(self, values: list[Any]) -> Any:
        if self.column.kind == "matrix" and not values:
            return torch.empty(0, self._reader.matrix(self.column, 0)[0].shape[1])
        return torch.stack(values) if values and isinstance(values[0], torch.Tensor) else values


def sweep(dataset: Dataset, column: str, *, workers: int = 0, **options: Any) -> DataLoader:
    """Yields the `Block`s of a rank in order, read by `workers` processes; options as for `Sweep`."""
    return DataLoader(
        Sweep(dataset, column, **options), batch_size=None, collate_fn=as_it_is, num_workers=workers, generator=torch.Generator()
    )

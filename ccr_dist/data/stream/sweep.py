"""Every row once, in order: what evaluation encodes. `Sweep` reads one column (all captions of a language), `Gallery`
all that is known about the items.

Rows are divided into blocks that do not depend on the world size; a rank reads a contiguous share of them. Nothing is
drawn, repeated or substituted. Null rows are left out (`rows` lists the others), and so are texts that say nothing,
which are counted. Broken content is a DataError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ccr_dist.data.media.decode import decode_image
from ccr_dist.data.media.text import has_text, texts_of, with_text
from ccr_dist.data.storage.lru import Recent
from ccr_dist.data.stream.batch import padded
from ccr_dist.data.stream.loader import as_it_is
from ccr_dist.data.stream.rows import read_value, vector_width
from ccr_dist.data.table.column_values import ValueName
from ccr_dist.data.table.dataset import Column, Dataset
from ccr_dist.errors import ConfigError, DataError


@dataclass
class Block:
    """n values of a column.

    Attributes:
        rows: (n,) int64, row numbers in the dataset.
        parts: (n,) int64, which caption, vector or view of the row it is (views ordered by name).
        values: List[str] for texts, views and labels; (n, D) float32 for a matrix; (n, ...) for pictures with a
            transform, otherwise bytes.
        beside: The aligned texts of a second column.
        blank: Number of texts left out because they, or those beside them, are blank.
        without: Rows that are left with no text although the index has a value for them.
    """

    rows: torch.Tensor
    parts: torch.Tensor
    values: Any
    beside: list[str] = field(default_factory=list)
    blank: int = 0
    without: list[int] = field(default_factory=list)


class Items(NamedTuple):
    """n items of a gallery.

    Attributes:
        rows: (n,) int64, row numbers in the dataset.
        visual: As `Batch.visual`.
        mask: As `Batch.visual_mask`.
        description: As `Batch.description`; "" for an item without one.
    """

    rows: torch.Tensor
    visual: torch.Tensor
    mask: torch.Tensor | None
    description: list[str]


class _Blocks(TorchDataset[Any]):
    """The row numbers of one rank's blocks."""

    def __init__(self, dataset: Dataset, *, world: int, rank: int, block_rows: int) -> None:
        if not 0 <= rank < world or block_rows < 1:
            raise ConfigError(
                f"rank {rank} of {world}, blocks of {block_rows} rows: expected 0 <= rank < world and at least one row"
            )
        self.dataset, self.block_rows = dataset, block_rows
        self._ends = np.cumsum(dataset.shard_rows)
        self._present: Recent[np.ndarray] = Recent(4)
        blocks = math.ceil(dataset.rows / block_rows)
        self._first, self._last = blocks * rank // world, blocks * (rank + 1) // world

    def __len__(self) -> int:
        return self._last - self._first

    def _complete(self, name: str) -> Column:
        """A complete column. Raises DataError if it is missing or incomplete."""
        column = self.dataset.column(name)
        column.require_complete()
        return column

    def _block(self, i: int) -> range:
        if not 0 <= i < len(self):
            raise IndexError(i)
        start = (self._first + i) * self.block_rows
        return range(start, min(start + self.block_rows, self.dataset.rows))

    def _value(self, column: Column, row: int) -> tuple[Any, ValueName]:
        """A row's value, and its name for messages."""
        shard, at = self._place(row)
        return read_value(column, shard, at), column.where(shard, at)

    def _place(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, row - (int(self._ends[shard - 1]) if shard else 0)

    def _texts(self, column: Column, row: int) -> list[str]:
        """All texts of a row; none where the index says that it is null, even if a broken value is stored."""
        try:
            return texts_of(self._value(column, row)[0])
        except DataError:
            if self._there(column, row):
                raise
            return []

    def _there(self, column: Column, row: int) -> bool:
        shard, at = self._place(row)
        return bool(self._present.made((column.name, shard), lambda: column.present(shard))[at])


class Sweep(_Blocks):
    """The values of a column, one `Block` at a time.

    Args:
        dataset: The dataset.
        column: A column of any kind.
        beside: A second column of texts, one for each text of `column`, read with them.
        transform: RGB picture -> float tensor; None: pictures are bytes.
        world: Number of ranks.
        rank: The rank whose share is read.
        block_rows: Rows of a block.

    Raises:
        DataError: A column is missing or incomplete.
    """

    def __init__(
        self,
        dataset: Dataset,
        column: str,
        *,
        beside: str | None = None,
        transform: Callable[[Any], torch.Tensor] | None = None,
        world: int = 1,
        rank: int = 0,
        block_rows: int = 64,
    ) -> None:
        super().__init__(dataset, world=world, rank=rank, block_rows=block_rows)
        self.column = self._complete(column)
        self.beside = self._complete(beside) if beside else None
        self.transform = transform

    def __getitem__(self, i: int) -> Block:
        return self._read_texts(i) if self.column.kind in ("texts", "views", "label") else self._read(i)

    def _read(self, i: int) -> Block:
        rows: list[int] = []
        parts: list[int] = []
        values: list[Any] = []
        for row in self._block(i):
            found = self._values(row)
            rows += [row] * len(found)
            parts += range(len(found))
            values += found
        return Block(
            torch.tensor(rows, dtype=torch.int64), torch.tensor(parts, dtype=torch.int64), self._stacked(values)
        )

    def _read_texts(self, i: int) -> Block:
        rows: list[int] = []
        parts: list[int] = []
        block = Block(torch.empty(0), torch.empty(0), [])
        for row in self._block(i):
            texts = self._texts(self.column, row)
            beside = self._aligned(row, len(texts)) if self.beside is not None and texts else None
            there = with_text(texts) if beside is None else with_text(texts, beside)
            rows += [row] * len(there)
            parts += there
            block.values += [texts[at] for at in there]
            block.beside += [] if beside is None else [beside[at] for at in there]
            block.blank += len(texts) - len(there)
            if not there and self._there(self.column, row):
                block.without.append(row)
        block.rows, block.parts = (torch.tensor(numbers, dtype=torch.int64) for numbers in (rows, parts))
        return block

    def _aligned(self, row: int, number: int) -> list[str]:
        """The texts beside those of a row; for a null row, blank ones."""
        assert self.beside is not None
        texts = self._texts(self.beside, row)
        if texts and len(texts) != number:
            where = self.column.where(*self._place(row))
            raise DataError(
                f"columns {self.column.name} and {self.beside.name} are not aligned caption by caption: {where} has"
                f" {number}, the other {len(texts)}"
            )
        return texts or [""] * number

    def _values(self, row: int) -> list[Any]:
        value, where = self._value(self.column, row)
        if value is None:
            return []
        if self.column.kind == "video":
            return [value]
        if self.column.kind == "image":
            return [value if self.transform is None else self.transform(decode_image(value, where))]
        return list(torch.from_numpy(value))

    def _stacked(self, values: list[Any]) -> Any:
        if self.column.kind == "matrix" and not values:
            return torch.empty(0, vector_width(self.column))
        return torch.stack(values) if values and isinstance(values[0], torch.Tensor) else values


class Gallery(_Blocks):
    """The items of a dataset, one block of `Items` at a time. Rows without a value in the visual column are left out.

    Args:
        dataset: The dataset.
        visual: Column of pictures or vectors.
        many: The visual column may have any number of vectors per row; otherwise exactly one.
        description: Column of descriptions, if any.
        transform: RGB picture -> float tensor.
        world: Number of ranks.
        rank: The rank whose share is read.
        block_rows: Rows of a block.

    Raises:
        ConfigError: The visual column has neither pictures nor vectors.
        DataError: A column is missing or incomplete; while iterating, several vectors where one is expected.
    """

    def __init__(
        self,
        dataset: Dataset,
        visual: str,
        *,
        many: bool = False,
        description: str | None = None,
        transform: Callable[[Any], torch.Tensor] | None = None,
        world: int = 1,
        rank: int = 0,
        block_rows: int = 64,
    ) -> None:
        super().__init__(dataset, world=world, rank=rank, block_rows=block_rows)
        self.visual = self._complete(visual)
        self.description = self._complete(description) if description else None
        if self.visual.kind not in ("image", "matrix"):
            raise ConfigError(
                f"{self.visual.folder}: a column of kind {self.visual.kind}; a gallery needs pictures or vectors"
                + ("; `ccr-dist featurise` makes vectors of videos" if self.visual.kind == "video" else "")
            )
        self.transform, self.many = transform, many

    def __getitem__(self, i: int) -> Items:
        rows: list[int] = []
        values: list[torch.Tensor] = []
        descriptions: list[str] = []
        for row in self._block(i):
            value, where = self._value(self.visual, row)
            if value is None:
                continue
            rows.append(row)
            values.append(self._one(value, where))
            if self.description is not None:
                descriptions.append(" ".join(filter(has_text, self._texts(self.description, row))))
        several = self.many and self.visual.kind == "matrix"
        if not rows:
            return Items(torch.zeros(0, dtype=torch.int64), torch.zeros(0), None, [])
        visual, mask = padded(values) if several else (torch.stack(values), None)
        return Items(torch.tensor(rows, dtype=torch.int64), visual, mask, descriptions)

    def _one(self, value: Any, where: ValueName) -> torch.Tensor:
        if self.visual.kind == "image":
            assert self.transform is not None, "pictures need a transform"
            return self.transform(decode_image(value, where))
        if not self.many and len(value) != 1:
            raise DataError(
                f"{where}: {len(value)} vectors; this method's gallery needs one per row: evaluate on another column"
            )
        return torch.from_numpy(value if self.many else value[0])


def gallery(dataset: Dataset, visual: str, *, workers: int = 0, **options: Any) -> DataLoader:
    """A loader of the `Items` of a rank, in order, read by `workers` processes. Options as for `Gallery`."""
    return _loader(Gallery(dataset, visual, **options), workers)


def sweep(dataset: Dataset, column: str, *, workers: int = 0, **options: Any) -> DataLoader:
    """A loader of the `Block`s of a rank, in order, read by `workers` processes. Options as for `Sweep`."""
    return _loader(Sweep(dataset, column, **options), workers)


def _loader(rows: _Blocks, workers: int) -> DataLoader:
    return DataLoader(rows, batch_size=None, collate_fn=as_it_is, num_workers=workers, generator=torch.Generator())

"""Whole blocks of cached features, row i of each for the same caption: what stages in closed form sum up.

A block is some rows of one shard. Every caption that has text and a vector in all columns is in exactly one block, and
blocks do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from ccr_dist.data.media.text import texts_of, with_text
from ccr_dist.data.storage.store import retry_io
from ccr_dist.data.stream.chance import mix
from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError

ONE_A_CAPTION = ("query_feature", "source_feature")


class Block(NamedTuple):
    """Rows of one shard.

    Attributes:
        source: Number of the dataset.
        lang: Language of the captions.
        shard: Number of the shard.
        first: First row in the shard.
        last: Behind the last row.
    """

    source: int
    lang: str
    shard: int
    first: int
    last: int


class Matrices:
    """The blocks of a mixture of datasets, and what is in them.

    Args:
        datasets: The datasets.
        fields: The columns: `query_features`, `source_feature`, and where they are given `visual`, `source`, `targets`.
        rows: Rows of a block.
        seed: Of the captions' random numbers.

    Attributes:
        blocks: All blocks, in order.

    Raises:
        ConfigError: A column is of the wrong kind, or a language has no column in any dataset.
        DataError: A column is missing or incomplete, or has vectors of another width than those beside it.
    """

    def __init__(self, datasets: Sequence[Dataset], fields: Fields, *, rows: int, seed: int = 0) -> None:
        self._seed, self._digests = seed, [dataset.digest for dataset in datasets]
        self._columns: dict[tuple[int, str], dict[str, Column]] = {}
        self._widths: dict[str, tuple[int, Column]] = {}
        self.blocks: list[Block] = []
        for lang in fields.query_features:
            opened = [fields.of(lang).open(dataset, lang) for dataset in datasets]
            if not any(opened):
                datasets[0].column(fields.targets[lang])  # raises an error that lists the columns
            for source, (dataset, columns) in enumerate(zip(datasets, opened, strict=True)):
                if columns:
                    _require_vectors(columns)
                    self._require_width(columns)
                    self._columns[source, lang] = columns
                    self.blocks += _blocks(source, lang, dataset, rows)

    def _require_width(self, columns: dict[str, Column]) -> None:
        """DataError where vectors of one role are not as wide as those of another language or dataset."""
        for role, column in columns.items():
            width = _width(column) if column.kind == "matrix" else None
            if width is None:
                continue
            known, other = self._widths.setdefault(role, (width, column))
            if known != width:
                raise DataError(
                    f"{column.folder}: vectors of {width} numbers, and those of {other.folder} have {known}; one"
                    " encoder has to have made both"
                )

    def captions(self, block: Block) -> int:
        """Query vectors of a block, from offsets alone; those whose row lacks another vector, or text, are counted."""
        column = self._columns[block.source, block.lang]["query_feature"]
        return len(_rows(column, block)[0])

    @property
    def widths(self) -> dict[str, int]:
        """Numbers of a vector by role, such as "query_feature", as far as there are vectors."""
        return {role: width for role, (width, _) in self._widths.items()}

    def read(self, block: Block) -> dict[str, np.ndarray]:
        """The vectors of a block's captions.

        Returns:
            "query" (n, Q) and "english" (n, F) float32; with a visual column "visual" (n, Fv); and "draw" (n,) uint64,
            a random number of each caption that depends on nothing but the caption.

        Raises:
            DataError: Columns are not aligned, or a vector has values that are not finite.
            StorageError: Reading keeps failing.
        """
        columns = self._columns[block.source, block.lang]
        found = {role: _rows(column, block) for role, column in columns.items() if column.kind == "matrix"}
        counts = {role: np.diff(offsets) for role, (_, offsets) in found.items()}
        there = np.logical_and.reduce([count > 0 for count in counts.values()])
        each = counts["query_feature"]
        for role, count in counts.items():
            wanted = each if role in ONE_A_CAPTION else np.ones_like(each)
            if (wrong := np.flatnonzero(there & (count != wanted))).size:
                row = int(wrong[0])
                raise DataError(
                    f"{columns[role].where(block.shard, block.first + row)}: {count[row]} vectors, and {wanted[row]}"
                    f" are expected beside those of {columns['query_feature'].name}"
                )
        kept = np.repeat(there, each)
        if (each > 1).any():  # a row with one caption, and that blank, has no vector
            kept &= self._with_text(columns, block, each)
        at = {"query_feature": np.flatnonzero(kept)}
        rows = np.repeat(np.arange(len(each)), each)[kept]
        within = np.arange(int(each.sum())) - np.repeat(np.cumsum(each) - each, each)
        result = {"draw": self._draws(block, found["query_feature"][1][0] + at["query_feature"])}
        for role, name in (("query_feature", "query"), ("source_feature", "english"), ("visual", "visual")):
            if role in found:
                array, offsets = found[role]
                first = offsets[:-1] - offsets[0]
                index = at.get(role, first[rows] + (within[kept] if role in ONE_A_CAPTION else 0))
                result[name] = _finite(array, index, columns[role], block)
        return result

    def _draws(self, block: Block, captions: np.ndarray) -> np.ndarray:
        """captions: (n,) their numbers in the shard."""
        start = mix(self._seed, self._digests[block.source], block.lang, block.shard)
        return splitmix(np.uint64(start) + captions.astype(np.uint64))

    def _with_text(self, columns: dict[str, Column], block: Block, counts: np.ndarray) -> np.ndarray:
        """(captions,) bool: those that are blank in no column of texts."""
        texts = [column for role, column in columns.items() if role in ("source", "target")]
        kept = np.zeros(int(counts.sum()), bool)
        first = 0
        for row, count in enumerate(counts):
            if count:
                values = [_texts(column, block.shard, block.first + row) for column in texts]
                for column, value in zip(texts, values, strict=True):
                    if len(value) != count:
                        raise DataError(
                            f"{column.where(block.shard, block.first + row)}: {len(value)} captions, but"
                            f" {columns['query_feature'].name} has {count} vectors; they must be aligned one by one"
                        )
                kept[[first + at for at in with_text(*values)]] = True
            first += int(count)
        return kept


def _width(column: Column) -> int | None:
    """Of the first vector; None where there is none."""
    for shard in range(len(column.dataset.shard_rows)):
        array, _ = retry_io(partial(column.matrix, shard), what=column.folder)
        if len(array):
            return int(array.shape[1])
    return None


def _require_vectors(columns: dict[str, Column]) -> None:
    visual = columns.get("visual")
    if visual is not None and visual.kind != "matrix":
        raise ConfigError(
            f"{visual.folder}: a column of kind {visual.kind}, and a stage in closed form sums up cached features:"
            f" `ccr-dist featurise --from {visual.name}` makes them on the training datasets"
        )


def splitmix(values: np.ndarray) -> np.ndarray:
    """(n,) uint64 to (n,) uint64 that look random: the finaliser of SplitMix64."""
    with np.errstate(over="ignore"):
        values = values * np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _blocks(source: int, lang: str, dataset: Dataset, rows: int) -> list[Block]:
    return [
        Block(source, lang, shard, first, min(first + rows, size))
        for shard, size in enumerate(dataset.shard_rows)
        for first in range(0, size, rows)
    ]


def _rows(column: Column, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of a block's rows, memory-mapped, and their offsets (rows + 1,)."""
    array, offsets = retry_io(partial(column.matrix, block.shard), what=column.folder)
    offsets = offsets[block.first : block.last + 1]
    return array[offsets[0] : offsets[-1]], offsets


def _texts(column: Column, shard: int, row: int) -> list[str]:
    value = retry_io(partial(column.value, shard, row), what=column.where(shard, row))
    return [] if value is None else texts_of(value)


def _finite(array: np.ndarray, index: np.ndarray, column: Column, block: Block) -> np.ndarray:
    whole = len(index) == len(array) and np.array_equal(index, np.arange(len(array)))
    found = np.array(array if whole else array[index], dtype=np.float32)
    if not np.isfinite(found).all():
        raise DataError(
            f"{column.where(block.shard, block.first)} and the rows behind it: vectors with values that are NaN or"
            " infinite; make the column again"
        )
    return found

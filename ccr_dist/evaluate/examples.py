"""A few queries of a language with what they found, for people to look at."""

from __future__ import annotations

import numpy as np

from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError
from ccr_dist.evaluate.schema import Example, Hit


def pick(item: np.ndarray, n: int) -> np.ndarray:
    """The first captions of n items spread evenly over the gallery: the same for every method on the same captions."""
    first = np.unique(item, return_index=True)[1]
    return (
        first[np.unique(np.linspace(0, len(first) - 1, min(n, len(first)) + 2)[1:-1].round().astype(int))]
        if len(first) > n
        else first
    )


class Texts:
    """Keys and texts of single rows, for the examples."""

    def __init__(self, dataset: Dataset, query_column: str, english_column: str | None) -> None:
        self._dataset = dataset
        self._query = dataset.column(query_column)
        there = english_column in dataset.columns()  # a training set's descriptions need not exist of the others
        self._english = dataset.column(english_column) if english_column and there else None
        self._ends = np.cumsum(dataset.shard_rows)

    def _place(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, int(row - self._ends[shard] + self._dataset.shard_rows[shard])

    def example(self, row: int, part: int, rank: int, hits: list[tuple[int, float, bool]]) -> Example:
        """`hits`: dataset row, score, correct."""
        top = tuple(
            Hit(item=self.key(r), score=score, correct=right, english=self.english(r)) for r, score, right in hits
        )
        return Example(item=self.key(row), query=self.query(row, part), english=self.english(row), rank=rank, top=top)

    def key(self, row: int) -> str:
        shard, at = self._place(row)
        return self._dataset.keys(shard)[at]

    def query(self, row: int, part: int) -> str:
        texts = self._query.value(*self._place(row))
        if not isinstance(texts, list) or part >= len(texts):
            raise DataError(
                f"{self._query.folder}: item {self.key(row)!r} has no caption {part}: the column is not aligned with"
                " the queries"
            )
        return texts[part]

    def english(self, row: int) -> str | None:
        """Of a broken one none: it is only shown."""
        try:
            texts = texts_of(self._english.value(*self._place(row))) if self._english else []
        except DataError:
            return None
        return next(filter(has_text, texts), None)

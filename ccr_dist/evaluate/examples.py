"""A few queries of a language and what they found, for people to look at."""

from __future__ import annotations

import numpy as np

from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError
from ccr_dist.evaluate.schema import Example, Hit


def pick(item: np.ndarray, n: int) -> np.ndarray:
    """The first captions of n items that are spread evenly over the gallery: the same for every method.

    Args:
        item: (Nt,) the item of each caption.
        n: how many; all items with captions if there are not more.

    Returns:
        Numbers of captions, ascending.
    """
    first = np.unique(item, return_index=True)[1]
    if len(first) <= n:
        return first
    places = np.linspace(0, len(first) - 1, n + 2)[1:-1]
    return first[np.unique(places.round().astype(int))]


class Texts:
    """Keys and texts of single rows, for the examples.

    Args:
        dataset: that was measured on.
        query_column: whose texts are shown as queries; aligned with the column that was asked.
        english_column: whose texts explain items; None, or not in the dataset: nothing does.
    """

    def __init__(self, dataset: Dataset, query_column: str, english_column: str | None) -> None:
        self._dataset = dataset
        self._query = dataset.column(query_column)
        there = english_column in dataset.columns()  # the config's column of training texts may be missing here
        self._english = dataset.column(english_column) if english_column and there else None
        self._ends = np.cumsum(dataset.shard_rows)

    def _place(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, int(row - self._ends[shard] + self._dataset.shard_rows[shard])

    def example(self, row: int, part: int, rank: int, hits: list[tuple[int, float, bool]]) -> Example:
        """A query and its hits.

        Args:
            row: of the query's item in the dataset.
            part: which caption of the row it is.
            rank: of the best correct answer, from 1.
            hits: row in the dataset, score, and whether it is correct; best first.

        Raises:
            DataError: see `query`.
        """
        top = tuple(
            Hit(item=self.key(r), score=score, correct=right, english=self.english(r)) for r, score, right in hits
        )
        return Example(item=self.key(row), query=self.query(row, part), english=self.english(row), rank=rank, top=top)

    def key(self, row: int) -> str:
        """The key of a row."""
        shard, at = self._place(row)
        return self._dataset.keys(shard)[at]

    def query(self, row: int, part: int) -> str:
        """A caption of a row. Raises DataError if the shown column does not have it."""
        texts = self._query.value(*self._place(row))
        if not isinstance(texts, list) or part >= len(texts):
            raise DataError(
                f"{self._query.folder}: item {self.key(row)!r} has no caption {part}: the column is not aligned with"
                " the queries"
            )
        return texts[part]

    def english(self, row: int) -> str | None:
        """The first English text of a row; None if there is none, or it is damaged: it is only shown."""
        try:
            texts = texts_of(self._english.value(*self._place(row))) if self._english else []
        except DataError:
            return None
        return next(filter(has_text, texts), None)

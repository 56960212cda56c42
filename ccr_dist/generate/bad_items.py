"""Limits bad items, and ends jobs that make nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ccr_dist.data.table.dataset import Column
from ccr_dist.errors import DataBudgetError
from ccr_dist.generate.shard_work import Work
from ccr_dist.generate.summary import JobSummary

FRUITLESS = 100  # a job is ended if its first rows, this many, have no value
_SHOWN = 5  # errors in a message


@dataclass(frozen=True)
class Budget:
    """How many bad items a run tolerates: the larger of two limits.

    Attributes:
        items: A number of rows; at most half of the rows of a small share.
        fraction: A fraction of the rows.
    """

    items: int = 10
    fraction: float = 0.01

    def limit(self, rows: int) -> int:
        """The number of bad items that are tolerated among `rows` rows."""
        return max(min(self.items, rows // 2), math.floor(self.fraction * rows))


class BadItems:
    """The bad items of a run, checked against its budget.

    Args:
        target: The column that is made.
        rows: Rows of the share.
        budget: The budget.
        summary: Its `bad` is updated.
    """

    def __init__(self, target: Column, rows: int, budget: Budget, summary: JobSummary) -> None:
        self._target, self._rows, self._limit, self._summary = target, rows, budget.limit(rows), summary
        self._errors: dict[str, str] = {}
        # Rows by result, of shards that are finished or about to be committed here.
        self._became: Counter[str] = Counter()

    def add(self, errors: Mapping[str, str]) -> None:
        """Count bad items, given as errors by key."""
        self._errors.update(errors)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop the bad items of a shard that another worker has taken over."""
        for key in keys:
            self._errors.pop(key, None)

    def require_within_budget(self) -> None:
        """Raise DataBudgetError, with the first errors, if there are more bad items than the budget allows."""
        self._summary.bad = len(self._errors)
        if len(self._errors) > self._limit:
            raise DataBudgetError(
                f"{self._target.place}: {len(self._errors)} bad items, {self._limit} are tolerated. The first ones:"
                f"{self._first_errors()}\nmend them, or allow more bad items, and run again: good rows are kept, bad"
                " ones will be tried again"
            )

    def reused(self, rows: int, nulls: int) -> None:
        """Count a shard that was finished before, by its rows and null rows."""
        self._became += Counter(made=rows - nulls, absent=nulls)

    def require_values(self, became: Counter[str], open_shards: Iterable[Work]) -> None:
        """End a job that makes nothing, before a shard becomes final.

        Args:
            became: Rows by result of a shard that is about to be committed (`Work.became`).
            open_shards: The open shards, for counts in the message.

        Raises:
            DataBudgetError: The first rows, or all rows of a small job, have no value.
        """
        self._became += became
        nothing = self._became["bad"] + self._became["fruitless"]
        if self._became["made"] or not nothing or self._limit >= self._rows:
            return
        if nothing >= FRUITLESS or self._became.total() == self._rows:
            total = sum((work.counts() for work in open_shards), Counter[str]())
            counts = ", ".join(f"{name} {n}" for name, n in sorted(total.items())) or "no counts"
            raise DataBudgetError(
                f"{self._target.place}: none of the first {nothing} rows has a value: {self._became['bad']} are bad"
                f" items, of {self._became['fruitless']} nothing usable came back ({counts}).{self._first_errors()}"
                "\nThey are not committed. See whether model, prompt, language and filters fit these rows, and remove"
                " the column's folder for another try; --bad-fraction 1 allows it"
            )

    def _first_errors(self) -> str:
        return "".join(f"\n  {key}: {error}" for key, error in list(self._errors.items())[:_SHOWN])

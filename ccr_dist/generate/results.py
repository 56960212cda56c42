"""Keeps the results of an engine: journal, then budget, then commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from ccr_dist.errors import DataError
from ccr_dist.generate.job_parts import JobParts
from ccr_dist.generate.processor import RowOutcome, Ticket
from ccr_dist.generate.shard_work import Lost, Work


class Results:
    """Keeps the results of a job.

    Args:
        parts: The run's shared parts.
        width: Gives the width of the vectors of a matrix column; asked only for a shard without vectors.
    """

    def __init__(self, parts: JobParts, width: Callable[[], int]) -> None:
        self._parts, self._width = parts, width
        self.counts: Counter[str] = Counter()  # of the shards committed here

    def keep(self, results: list[tuple[Ticket, RowOutcome]]) -> None:
        """Journal results, check the budget, and commit complete shards.

        Raises:
            DataBudgetError: There are too many bad items, or the job makes nothing. The results are in the journals.
            StorageError: A journal or a shard cannot be written.
        """
        parts, report = self._parts, self._parts.report
        by_shard: dict[int, list[tuple[int, RowOutcome]]] = {}
        for ticket, outcome in results:
            work = parts.open_shards.get(ticket.shard)
            if work is not None and ticket.row not in work.outcomes:  # otherwise another worker now has the shard
                by_shard.setdefault(ticket.shard, []).append((ticket.row, self._checked(ticket, outcome)))
        kept = sum(self._journal(shard, rows) for shard, rows in by_shard.items())
        report.summary.rows += kept
        report.advance(kept)
        report.event("kept", {"rows": kept})
        parts.bad_items.require_within_budget()
        for shard in by_shard:
            work = parts.open_shards.get(shard)
            if work is not None and len(work.outcomes) == work.rows:
                self.commit(work)

    def _journal(self, shard: int, rows: list[tuple[int, RowOutcome]]) -> int:
        """Journal rows of one shard.

        Returns:
            Number of rows kept; 0 if another worker has the shard.
        """
        work = self._parts.open_shards.get(shard)
        assert work is not None
        try:
            work.keep(rows)
        except Lost:
            self._parts.open_shards.lose(work)
            return 0
        errors = {work.keys[row]: outcome.error or outcome.lacks for row, outcome in rows}
        self._parts.bad_items.add({key: error for key, error in errors.items() if error is not None})
        return len(rows)

    def _checked(self, ticket: Ticket, outcome: RowOutcome) -> RowOutcome:
        """The result, or a bad item if its value cannot be committed, so that it does not reach a journal."""
        target, value = self._parts.target, outcome.value
        if outcome.error is not None or value is None:
            return outcome
        try:
            if target.kind != "matrix":
                target.encode(value)
            elif not (
                isinstance(value, np.ndarray)
                and value.dtype == np.dtype(target.dtype)
                and value.ndim == 2
                and np.isfinite(value).all()
            ):
                raise DataError(
                    f"{target.name}: expected finite {target.dtype} vectors (n, D); found"
                    f" {getattr(value, 'dtype', type(value))}"
                )
        except DataError as e:
            return RowOutcome(error=f"{ticket.key}: {e}")
        return outcome

    def _became_before(self, work: Work) -> Counter[str]:
        """Rows by result of a shard whose payload is final; without a record it is taken for made."""
        if not self._parts.target.whole(work.shard):
            return Counter(made=1)
        nulls = int(self._parts.target.record(work.shard)["nulls"])
        return Counter(made=work.rows - nulls, absent=nulls)

    def commit(self, work: Work) -> None:
        """Commit a complete shard, or give it up if another worker has it.

        Raises:
            DataBudgetError: The job makes nothing; the shard is not committed.
            StorageError: The shard cannot be written.
        """
        parts, summary = self._parts, self._parts.report.summary
        waited_s = parts.engine_wait.seconds - work.waited_s
        became = self._became_before(work) if work.settled else work.became(parts.target.kind)
        parts.bad_items.require_values(became, parts.open_shards)
        try:
            mine = parts.bench.commit(work, self._width, {"waited_s": round(waited_s, 3)})
        except Lost:
            parts.open_shards.lose(work)
            return
        parts.open_shards.remove(work)
        if mine:
            summary.done += 1
            summary.absent += became["absent"]
            summary.fruitless += became["fruitless"]
            self.counts.update(work.counts())
        else:
            summary.skipped += 1
            if not work.settled:  # a stale worker woke up and was faster
                summary.lost += 1
        parts.report.event("committed", {"shard": work.name, "mine": mine})

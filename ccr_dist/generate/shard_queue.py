"""Chooses the rows to be made: takes shards by leases, and gives their rows to the feed."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence

from ccr_dist.errors import DataBudgetError
from ccr_dist.generate.job_parts import JobParts
from ccr_dist.generate.processor import Ticket
from ccr_dist.generate.results import Results
from ccr_dist.generate.shard_work import STUCK, Work


class ShardQueue:
    """The rows of a share that no other worker makes. It runs ahead of the engine by the feed's window.

    Args:
        parts: The run's shared parts.
        results: Commits shards without missing rows.
        shards: The share.
        wait: Whether to wait for the shards of other workers, and to take over those whose worker dies.
        window: Most rows in work at once.

    Attributes:
        refused: Why each shard that kills its workers was left out.
    """

    def __init__(self, parts: JobParts, results: Results, shards: range, *, wait: bool, window: int) -> None:
        self._parts, self._results, self._shards = parts, results, shards
        self._wait, self._window = wait, window
        self._pause_s = min(parts.bench.leases.lease_s / 8, parts.bench.place.pause_s)
        self.refused: list[str] = []

    def tickets(self) -> Iterator[Ticket | None]:
        """Take shards and yield their missing rows; None stands for "nothing now"."""
        parts = self._parts
        pending: Sequence[int] = self._shards
        while True:
            held: list[int] = []
            if not (yield from self._take_each(pending, held)):
                return
            if not self._wait:
                self._report_held(held)
                return
            until = time.monotonic() + self._pause_s
            while time.monotonic() < until or not (held or parts.open_shards.lost_count):
                parts.open_shards.drop_lost()
                if parts.stop.asked or not (held or parts.open_shards.lost_count or len(parts.open_shards)):
                    return
                yield None
            pending = held + parts.open_shards.take_lost()

    def _take_each(self, pending: Sequence[int], held: list[int]) -> Generator[Ticket | None, None, bool]:
        """The rows of each pending shard that can be taken; shards that other workers hold are added to `held`.

        Returns:
            Whether all shards were considered; False if the run was asked to stop.
        """
        parts, target = self._parts, self._parts.target
        finished, traces = target.finished(), parts.bench.place.look()
        for shard in pending:
            if parts.stop.asked:
                return False
            parts.open_shards.drop_lost()
            if shard in finished and target.dataset.shards[shard] not in traces:
                self._reuse(shard)
            elif shard not in finished and target.whole(shard):
                held.append(shard)  # finished since the listing: its owner may still remove its traces
            else:
                try:
                    work = parts.bench.take(shard)
                except DataBudgetError as e:
                    self.refused.append(str(e))
                    continue
                if work is None:
                    held.append(shard)
                else:
                    yield from self._rows(work)
        return True

    def _rows(self, work: Work) -> Iterator[Ticket | None]:
        """The missing rows of a shard.

        A shard on which a worker died is the only one in work until one of its rows is done, so that no other shard is
        blamed.
        """
        self._open(work)
        missing, deaths = work.missing, work.lease.past
        deadly = bool(deaths.stuck or deaths.suspect)
        if not missing:
            self._results.commit(work)
        while deadly and len(self._parts.open_shards) > 1 and not self._ended(work):
            yield None
        suspects = missing[: self._window] if deaths.suspect is not None or deaths.stuck >= STUCK - 1 else []
        if not (yield from self._one_by_one(work, suspects)):
            return
        for row in missing[len(suspects) :]:
            if work.lost:
                return
            yield self._ticket(work, row)
        while deadly and self._is_open(work) and len(work.outcomes) == work.resumed and not self._ended(work):
            yield None

    def _open(self, work: Work) -> None:
        """Count the rows of a shard in older journals."""
        parts, report = self._parts, self._parts.report
        parts.open_shards.add(work)
        work.waited_s = parts.engine_wait.seconds
        report.summary.dropped_lines += work.past.dropped
        if not work.settled:
            report.summary.resumed_rows += work.resumed
            report.event("taken", {"shard": work.name, "rows": work.rows, "resumed": work.resumed})
        report.advance(work.resumed)
        if work.settled:
            return
        final = {work.keys[row]: outcome.error for row, outcome in work.outcomes.items()}
        errors = {key: error for key, error in final.items() if error is not None}
        if errors:
            parts.bad_items.add(errors)
            parts.bad_items.require_within_budget()

    def _one_by_one(self, work: Work, suspects: list[int]) -> Generator[Ticket | None, None, bool]:
        """Rows of which one may kill its worker, each alone, so that the lease tells the next owner which one it was.

        Returns:
            Whether to continue with the rest of the shard.
        """
        for row in suspects:
            work.lease.alone_with(row, len(work.outcomes))
            yield self._ticket(work, row)
            while row not in work.outcomes and self._is_open(work) and not self._ended(work):
                yield None
            if self._ended(work):
                return False
        if suspects and self._is_open(work):
            work.lease.alone_with(None, len(work.outcomes))
        return True

    @staticmethod
    def _ticket(work: Work, row: int) -> Ticket:
        return Ticket(work.shard, row, work.keys[row])

    def _is_open(self, work: Work) -> bool:
        return work.shard in self._parts.open_shards

    def _ended(self, work: Work) -> bool:
        return self._parts.stop.asked or work.lost

    def _reuse(self, shard: int) -> None:
        """Count a shard that is finished."""
        rows = self._parts.target.dataset.shard_rows[shard]
        self._parts.bad_items.reused(rows, int(self._parts.target.record(shard)["nulls"]))
        self._parts.report.summary.skipped += 1
        self._parts.report.advance(rows)

    def _report_held(self, shards: list[int]) -> None:
        """Report the shards of other workers as busy."""
        for shard in shards:
            if self._parts.target.whole(shard):
                self._reuse(shard)
            else:
                self._parts.report.summary.busy += 1
                self._parts.report.event("busy", {"shard": self._parts.target.dataset.shards[shard]})

"""Work on a shard, from taking it to giving it up: lease, journal, results, commit. `shard_queue.py` decides which
shards, and when.

    take:    lease g -> commits of older generations made impossible, where the place can -> rows of all older journals,
             merged into journal g -> older journals and leases removed
    commit:  still the owner? -> payload -> index -> record -> errors.jsonl -> stats -> journal and lease removed

After a kill between any two of these steps the next generation resumes. A payload is created once and is final: if a
payload already exists, that payload is recorded, and errors.jsonl lists its null rows. In a folder it may even be from
a stale worker; in a store it is from an owner that began to commit while it held the shard, and whose journal the next
generation takes over as it is (`traces/objects.py`).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ccr_dist.data.media import decode
from ccr_dist.data.table.dataset import Column
from ccr_dist.data.table.dataset_rows import DatasetRows
from ccr_dist.errors import DataBudgetError
from ccr_dist.generate import journal as journals
from ccr_dist.generate.journal import Journal, Past
from ccr_dist.generate.lease import Deaths, Lease, Leases
from ccr_dist.generate.processor import RowOutcome
from ccr_dist.generate.traces.base import Traces

T = TypeVar("T")
_ATTEMPTS = 8
STUCK = 3  # owners in a row that die on a shard without a new row
_OVERTAKEN = "made null by a worker that lost the shard while it committed it; why is not known"


class Lost(Exception):
    """Another worker now has the shard, so results made here do not count. Never leaves the runner."""


def _undisturbed(lease: Lease, act: Callable[[], T]) -> T:
    """Call `act()`, again if a temporary file of it is gone.

    A worker that lost this shard, and does not know it yet, removes temporary files that it cannot know.
    """
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            return act()
        if not lease.valid():
            break
    return act()


class Work:
    """A shard that this worker holds.

    Attributes:
        shard: Its number.
        name: Its name.
        rows: Number of its rows.
        lease: Its lease.
        journal: Its journal; None if it is settled.
        outcomes: Results of finished rows by row.
        past: Contents of older journals.
        settled: Whether its payload already exists, so that nothing must be made.
        decided: Whether an earlier owner began to commit its rows, so that all of them are final.
        resumed: Number of rows that were finished when the shard was taken.
        tokens: Tokens generated.
        waited_s: Seconds that the engine had waited when the shard was taken.
        lost: Whether another worker has taken it over.
    """

    def __init__(
        self,
        dataset: DatasetRows,
        shard: int,
        lease: Lease,
        journal: Journal | None,
        past: Past,
        *,
        settled: bool,
        decided: bool = False,
    ) -> None:
        self._dataset, self.shard, self.lease, self.journal, self.past = dataset, shard, lease, journal, past
        self.name, self.rows = dataset.shards[shard], dataset.shard_rows[shard]
        final = settled or decided
        self.outcomes = {row: o for row, o in past.outcomes.items() if final or o.error is None or o.final}
        self.settled, self.decided = settled, decided
        self.resumed = len(self.outcomes)
        self.tokens = sum(outcome.counts.get("tokens", 0) for outcome in self.outcomes.values())
        self.began, self.started = time.time(), time.perf_counter()
        self.waited_s = 0.0
        self.lost = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its rows, in order."""
        return self._dataset.keys(self.shard)

    @property
    def missing(self) -> list[int]:
        """Rows that still must be made, ascending."""
        return [] if self.settled else [row for row in range(self.rows) if row not in self.outcomes]

    def became(self, kind: str) -> Counter[str]:
        """Number of rows by result: `made`, `bad`, `fruitless` (requests, but no usable answer), `absent`.

        Args:
            kind: Kind of the column.
        """
        found: Counter[str] = Counter()
        for outcome in self.outcomes.values():
            if outcome.error is not None:
                found["bad"] += 1
            elif _there(kind, outcome.value):
                found["made"] += 1
            else:
                found["fruitless" if outcome.counts.get("requests") or outcome.counts.get("empty") else "absent"] += 1
        return found

    def counts(self) -> Counter[str]:
        """Sums of the rows' counters."""
        return sum((Counter(outcome.counts) for outcome in self.outcomes.values()), Counter())

    def beat(self) -> None:
        """Renew the lease, and check whether it is still valid; called in the watch's thread."""
        self.lease.beat(len(self.outcomes), self.tokens)
        self.lost = self.lost or not self.lease.valid()

    def keep(self, rows: list[tuple[int, RowOutcome]]) -> None:
        """Journal rows.

        Args:
            rows: (row, result).

        Raises:
            Lost: Another worker has the shard.
            StorageError: The disk is full.
        """
        assert self.journal is not None
        try:
            self.journal.append(rows)
        except OSError as e:
            self.raise_lost(e)
            raise
        self.outcomes.update(rows)
        self.tokens += sum(outcome.counts.get("tokens", 0) for _, outcome in rows)

    def raise_lost(self, cause: OSError | None = None) -> None:
        """Raise Lost if another worker has the shard."""
        if self.lost or not self.lease.valid():
            raise Lost from cause

    def close(self) -> None:
        """Give the shard up; its journal stays for the next worker."""
        if self.journal is not None:
            self.journal.close()
        self.lease.release()


class Bench:
    """Takes and commits the shards of a column for one worker.

    Args:
        target: The column.
        leases: Its leases.
    """

    def __init__(self, target: Column, leases: Leases) -> None:
        self.target, self.leases, self.place = target, leases, leases.place

    def name(self, shard: int) -> str:
        """The name of a shard."""
        return self.target.dataset.shards[shard]

    def _header(self, shard: int) -> dict[str, Any]:
        target = self.target
        place = {"column": target.name, "shard": self.name(shard), "keys": target.dataset.shard_keys[shard]}
        return {**place, "plan": target.plan_digest, "inputs": target.plan["inputs"]}

    def _past(self, shard: int, traces: Traces) -> Past:
        contents, rows = self.place.journals(self.name(shard), traces), self.target.dataset.shard_rows[shard]
        return journals.read(contents, self.target.kind, self._header(shard), rows)

    def take(self, shard: int) -> Work | None:
        """Take a shard that no living worker holds, with all rows in its journals.

        Returns:
            The work, or None if another worker holds the shard or was faster.

        Raises:
            DataBudgetError: The shard seems to kill its workers.
            DataError: A journal belongs to other work.
            StorageError: The disk is full or fails.
        """
        name = self.name(shard)
        traces = self.leases.look(name)
        if self.leases.held(name, traces):
            return None
        try:
            deaths, deadly = self._deaths(shard, traces)
        except FileNotFoundError:  # another worker has taken it and removes what it does not need any more
            return None
        lease = self.leases.take(name, traces, of=self.target.dataset.shard_rows[shard], past=deaths)
        if lease is None:
            return None
        work = None
        try:
            work = _undisturbed(lease, lambda: self._begin(shard, lease, deadly))
        except OSError:
            if lease.valid():  # otherwise another worker has taken over
                raise
        finally:
            if work is None:
                lease.release()
        return work

    def _deaths(self, shard: int, traces: Traces) -> tuple[Deaths, int | None]:
        """How owners have died up to now, and the row that must be left out because of that, if any."""
        # of a finished shard there is nothing left over which anybody could die, however many did before
        if not traces.leases or self.target.whole(shard):
            return Deaths(), None
        last = max(traces.leases)
        path = self.place.where(self.name(shard), last)
        about, beat = self.place.read_lease(self.name(shard), last) or ({}, {})
        past = self._past(shard, traces)
        stuck = 0 if last in traces.journals and past.fresh else int(about.get("stuck", 0)) + bool(beat.get("begun"))
        at = beat.get("at") if beat.get("begun") else None
        if at is not None and at not in past.outcomes:
            # One death may have any reason, such as a lost node; if several owners with only this row in work die, the
            # row is to blame.
            before = about.get("suspect", {})
            deaths = 1 + (before["deaths"] if before.get("row") == at else 0)
            return (Deaths(), at) if deaths >= STUCK else (Deaths(stuck, (at, deaths)), None)
        if stuck >= STUCK:
            keys = self.target.dataset.keys(shard)
            missing = [
                keys[row]
                for row in range(len(keys))
                if row not in past.outcomes or past.outcomes[row].error is not None
            ]
            some = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
            raise DataBudgetError(
                f"{self.target.place}/{self.name(shard)}: {stuck} workers died over this shard one after the other and"
                f" made no row of it; it is left out. Rows that are missing: {some}. Look at their inputs (and at the"
                f" memory of the workers); remove {path} to have them tried again"
            )
        return Deaths(stuck), None

    def _begin(self, shard: int, lease: Lease, deadly: int | None) -> Work | None:
        name = self.name(shard)
        self.place.close_below(name, lease.generation)
        traces = self.place.look(name).get(name, Traces())
        past = self._past(shard, traces)
        if deadly is not None:
            past.add(
                deadly,
                RowOutcome(error=f"{STUCK} workers died one after the other while it alone was in work", final=True),
            )
        settled = self.target.settled(shard)
        journal, decided = None, False
        if not settled:
            whole = len(past.outcomes) == self.target.dataset.shard_rows[shard]
            decided = whole and self.place.is_decided(name, traces)
            journal = Journal.create(lease.journal, self.target.kind, self._header(shard), past.outcomes)
            if journal is None or (decided and not lease.claim()):
                return None
            self.place.tidy(name, traces, below=lease.generation)
        return Work(self.target.dataset, shard, lease, journal, past, settled=settled, decided=decided)

    def commit(self, work: Work, width: Callable[[], int], stats: dict[str, Any]) -> bool:
        """Commit complete or settled work, and remove its traces.

        Args:
            work: The work.
            width: Gives the width of a matrix without vectors.
            stats: Further telemetry for the shard's stats.

        Returns:
            Whether this process wrote the record.

        Raises:
            Lost: Another worker has the shard.
            StorageError: The disk is full or fails.
        """
        name = self.name(work.shard)
        if work.lost or not work.lease.claim():
            raise Lost
        try:
            mine = _undisturbed(work.lease, lambda: self._write(work, width))
            if work.journal is not None or work.past.outcomes:
                _undisturbed(work.lease, lambda: self._explain(work, mine, stats))
        except OSError as e:
            work.raise_lost(e)
            raise
        if work.journal is not None:
            work.journal.close()
        self.place.tidy(name, self.place.look(name).get(name, Traces()), below=work.lease.generation)
        self.place.remove_journal(name, work.lease.generation)
        work.lease.release()
        return mine

    def _write(self, work: Work, width: Callable[[], int]) -> bool:
        values = [] if work.settled else [work.outcomes[row].value for row in range(work.rows)]
        if self.target.whole(work.shard):
            return False
        if self.target.kind == "matrix":
            there = [value for value in values if value is not None]
            array = np.concatenate(there) if there else np.zeros((0, width()), self.target.dtype)
            return self.target.commit_matrix(
                work.shard, array, [0 if value is None else len(value) for value in values]
            )
        return self.target.commit(
            work.shard, (None if value is None else self.target.encode(value) for value in values)
        )

    def _explain(self, work: Work, mine: bool, stats: dict[str, Any]) -> None:
        """Write errors.jsonl and stats of the existing payload."""
        absent = set(self.target.index(work.shard)["nulls"])
        bad = []
        for row, key in enumerate(self.target.dataset.keys(work.shard)):
            outcome = work.outcomes.get(row)
            if outcome is not None and outcome.lacks is not None and row not in absent:
                bad.append({"key": key, "error": outcome.lacks})
            if outcome is None or row not in absent:
                continue
            error = outcome.error
            if error is None and _there(self.target.kind, outcome.value):  # another worker's payload
                error = (work.past.outcomes[row].error if row in work.past.outcomes else None) or _OVERTAKEN
            if error is not None:
                bad.append({"key": key, "error": error})
        if bad:
            lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in bad)
            self.target.write_errors(work.shard, lines.encode())
        if mine or not self.target.has_stats(work.shard):
            seconds = time.perf_counter() - work.started
            times = {"began": round(work.began, 3), "ended": round(time.time(), 3), "seconds": round(seconds, 3)}
            rows = {
                "rows": work.rows,
                "resumed": work.resumed,
                "nulls": len(absent),
                "bad": len(bad),
                "counts": dict(work.counts()),
            }
            self.target.write_stats(
                work.shard, {**times, **rows, "host": self.leases.host, "worker": self.leases.worker, **stats}
            )


def _there(kind: str, value: Any) -> bool:
    if value is None or kind == "matrix" or isinstance(value, bytes):
        return value is not None and len(value) > 0
    return decode.is_present(kind, value)

"""Runs a processor over a dataset: takes shards, resumes from journals, keeps the engine fed, commits each shard once.

    column.json (plan) -> lock the shard's journal -> rows prepared ahead -> engine -> journal -> all there: commit, stats, journal removed

Whatever dies is simply started again. What is done to a row is the processor's affair (`processor.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import platform
import shlex
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import ccr_dist
from ccr_dist.data import store
from ccr_dist.data.table import Column, Dataset, create_column
from ccr_dist.errors import DataBudgetError, DataError
from ccr_dist.generate.journal import Journal
from ccr_dist.generate.processor import Feed, Outcome, Processor, Ticket

Event = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Budget:
    """How many bad items a run tolerates: `items`, or `fraction` of the rows of its share, whichever is more."""

    items: int = 10
    fraction: float = 0.01

    def limit(self, rows: int) -> int:
        return max(self.items, math.floor(self.fraction * rows))


@dataclass
class Summary:
    """What a run did to its share of the shards. `stopped`: it was asked to stop and the rest waits for the next start."""

    column: str
    shards: int = 0  # in the share
    skipped: int = 0  # finished before
    done: int = 0  # committed by this run
    busy: int = 0  # another process works on them
    lost: int = 0  # made here, but committed by somebody else first
    rows: int = 0  # made by this run
    resumed_rows: int = 0  # taken over from journals
    bad: int = 0  # null rows with an error
    dropped_lines: int = 0  # torn journal lines, made again
    counts: dict[str, int] = field(default_factory=dict)  # of the shards committed by this run
    seconds: float = 0.0
    waited_s: float = 0.0  # the engine waited for prepared rows
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """The whole share is finished."""
        return self.skipped + self.done + self.lost == self.shards

    def __str__(self) -> str:
        parts = [f"{self.done} of {self.shards} shards done"]
        parts += [f"{self.skipped} there already and reused"] * (self.skipped > 0)
        parts += [f"{self.resumed_rows} rows resumed from journals"] * (self.resumed_rows > 0)
        parts += [f"{self.rows} rows made in {self.seconds:.1f} s"] * (self.rows > 0)
        parts += [f"{self.dropped_lines} torn journal lines dropped"] * (self.dropped_lines > 0)
        parts += [f"{self.bad} bad items (null rows; see *.errors.jsonl)"] * (self.bad > 0)
        parts += [f"{self.busy} shards skipped: another process works on them"] * (self.busy > 0)
        parts += [f"{self.lost} shards committed by another process first"] * (self.lost > 0)
        parts += [", ".join(f"{name} {n}" for name, n in sorted(self.counts.items()))] * bool(self.counts)
        parts += ["stopped on request: the same command goes on from here"] * self.stopped
        return f"{self.column}: " + "; ".join(parts)


def run(
    dataset: Dataset,
    processor: Processor,
    column: str,
    *,
    share: tuple[int, int] = (0, 1),
    batch: int | None = None,
    threads: int = 4,
    budget: Budget = Budget(),
    progress: bool = True,
    on_event: Event | None = None,
) -> Summary:
    """Makes (its share of) a column. share (i, n): the shards i, i + n, i + 2n, ... ; batch: items an engine call.

    SIGTERM and SIGINT end it after the batch in flight, with `stopped` set. Raises DataError (inputs missing, another plan there),
    DataBudgetError, EngineError, StorageError; finished shards and journals survive all of them.
    """
    if not 0 <= share[0] < share[1]:
        raise DataError(f"share {share[0]}/{share[1]}: expected i/n with 0 <= i < n")
    inputs = {name: dataset.column(name) for name in processor.inputs}
    for source in inputs.values():
        source.require_complete()
    processor.check(dataset)
    plan = {**processor.plan(), "inputs": {name: source.digest for name, source in inputs.items()}}
    argv = [Path(sys.argv[0]).name, *sys.argv[1:]]
    provenance = {
        "ccr_dist": ccr_dist.__version__,
        "python": platform.python_version(),
        "command": shlex.join(argv),
        **processor.provenance(),
    }
    target = create_column(dataset, column, kind=processor.kind, extension=processor.extension, plan=plan, provenance=provenance)
    job = _Job(target, processor, inputs, range(share[0], len(dataset.shards), share[1]), budget, on_event)
    return job.run(batch or processor.batch, threads, progress)


class _Shard:
    """A shard in work: its journal and the outcomes so far."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.outcomes = dict(journal.done)
        self.resumed = len(journal.done)
        self.started = time.perf_counter()


class _Job:
    def __init__(
        self, target: Column, processor: Processor, inputs: dict[str, Column], shards: range, budget: Budget, on_event: Event | None
    ) -> None:
        self.target, self.processor, self.inputs, self.shards = target, processor, inputs, shards
        self.event: Event = on_event or (lambda name, info: None)
        self.limit = budget.limit(sum(target.dataset.shard_rows[s] for s in shards))
        self.open: dict[int, _Shard] = {}
        self.errors: dict[str, str] = {}
        self.stop = False
        self.summary = Summary(target.name, shards=len(shards))
        self.counts: Counter[str] = Counter()
        self.advance: Callable[[int], None] = lambda rows: None

    def run(self, batch: int, threads: int, progress: bool) -> Summary:
        started, console = time.perf_counter(), Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with (
            _signals(self),
            ThreadPoolExecutor(threads, "prepare") as pool,
            Progress(*columns, console=console, disable=not progress, transient=True) as bar,
        ):
            task = bar.add_task(self.target.name, total=sum(self.target.dataset.shard_rows[s] for s in self.shards))
            self.advance = lambda rows: bar.advance(task, rows)
            try:
                tickets = self._tickets()
                if (first := next(tickets, None)) is not None:  # there is work: only then are models loaded
                    self.processor.load()
                    self._drive(Feed(itertools.chain([first], tickets), self._prepare, pool, ahead=2 * batch), batch)
            finally:
                for shard in self.open.values():
                    shard.journal.close()
        self.summary.seconds = time.perf_counter() - started
        self.summary.counts = dict(self.counts)
        self.summary.stopped = self.stop and not self.summary.complete
        if progress:
            console.print(str(self.summary), markup=False, highlight=False, soft_wrap=True)
        return self.summary

    def _drive(self, feed: Feed, batch: int) -> None:
        try:
            for outcomes in self.processor.stream(feed, batch):
                self._keep(outcomes + feed.settled)
                feed.settled.clear()
                if self.stop:
                    break
        finally:
            feed.cancel()
            self.summary.waited_s = feed.waited_s

    def _tickets(self) -> Iterator[Ticket]:
        """Takes the shards one after the other and names the rows that are to be made. Runs ahead of the engine by the feed's window."""
        finished = self.target.finished()
        for shard in self.shards:
            if self.stop:
                return
            rows, name = self.target.dataset.shard_rows[shard], self.target.dataset.shards[shard]
            if shard in finished and not self._path(shard, "journal").exists():
                self._skip(rows)
                continue
            journal = Journal.open(self._path(shard, "journal"), self.target.kind, self._header(shard))
            if journal is None:
                self.summary.busy += 1
                self.event("busy", {"shard": name})
                continue
            for rubbish in self.target.folder.glob(f"{store.TEMPORARY}{name}.*"):  # of a process killed while it committed this shard
                rubbish.unlink(missing_ok=True)
            if self.target.path(shard, "record").exists():  # finished meanwhile, or killed between commit and removal of the journal
                journal.remove()
                self._skip(rows)
                continue
            work = self.open[shard] = _Shard(journal)
            self.summary.resumed_rows += work.resumed
            self.summary.dropped_lines += journal.dropped
            self.event("taken", {"shard": name, "rows": rows, "resumed": work.resumed})
            self.advance(work.resumed)
            missing = [row for row in range(rows) if row not in work.outcomes]
            if not missing:
                self._commit(shard)
            keys = self.target.dataset.keys(shard)
            for row in missing:
                yield Ticket(shard, row, keys[row])

    def _skip(self, rows: int) -> None:
        self.summary.skipped += 1
        self.advance(rows)

    def _path(self, shard: int, suffix: str) -> Path:
        return self.target.folder / f"{self.target.dataset.shards[shard]}.{suffix}"

    def _header(self, shard: int) -> dict[str, Any]:
        dataset = self.target.dataset
        place = {"column": self.target.name, "shard": dataset.shards[shard], "keys": dataset.shard_keys[shard]}
        return {**place, "plan": self.target.plan_digest, "inputs": self.target.plan["inputs"]}

    def _prepare(self, ticket: Ticket) -> Any:
        """The engine's item for a row, or at once its Outcome. In a thread of the pool."""

        def read(source: Column) -> Any:
            return store.retry_io(lambda: source.value(ticket.shard, ticket.row), what=source.where(ticket.shard, ticket.row))

        try:
            item = self.processor.prepare(ticket.key, {name: read(source) for name, source in self.inputs.items()})
        except DataError as e:
            return Outcome(error=str(e))
        return Outcome() if item is None else item

    def _keep(self, results: list[tuple[Ticket, Outcome]]) -> None:
        """Journals results, then holds them against the budget, then commits the shards that are complete."""
        by_shard: dict[int, list[tuple[int, Outcome]]] = {}
        for ticket, outcome in results:
            outcome = self._checked(ticket, outcome)
            by_shard.setdefault(ticket.shard, []).append((ticket.row, outcome))
            if outcome.error is not None:
                self.errors[ticket.key] = outcome.error
        for shard, rows in by_shard.items():
            self.open[shard].journal.append(rows)
            self.open[shard].outcomes.update(rows)
        self.summary.rows += len(results)
        self.summary.bad = len(self.errors)
        self.advance(len(results))
        self.event("kept", {"rows": len(results)})
        if len(self.errors) > self.limit:
            shown = "\n  ".join(f"{key}: {error}" for key, error in list(self.errors.items())[:5])
            raise DataBudgetError(
                f"{self.target.folder}: {len(self.errors)} bad items, {self.limit} are tolerated. The first ones:\n  {shown}\n"
                "mend them, or allow more bad items, and run again: good rows are kept, bad ones will be tried again"
            )
        for shard in by_shard:
            if len(self.open[shard].outcomes) == self.target.dataset.shard_rows[shard]:
                self._commit(shard)

    def _checked(self, ticket: Ticket, outcome: Outcome) -> Outcome:
        """What cannot be committed must not get into a journal: it is a bad item."""
        value = outcome.value
        if outcome.error is not None or value is None:
            return outcome
        try:
            if self.target.kind != "matrix":
                self.target.encode(value)
            elif not (isinstance(value, np.ndarray) and value.dtype == np.float16 and value.ndim == 2 and np.isfinite(value).all()):
                raise DataError(f"{self.target.name}: expected finite float16 vectors (n, D); found {getattr(value, 'dtype', type(value))}")
        except DataError as e:
            return Outcome(error=f"{ticket.key}: {e}")
        return outcome

    def _commit(self, shard: int) -> None:
        work, name = self.open[shard], self.target.dataset.shards[shard]
        keys = self.target.dataset.keys(shard)
        outcomes = [work.outcomes[row] for row in range(len(keys))]
        values = [outcome.value for outcome in outcomes]
        bad = [{"key": key, "error": outcome.error} for key, outcome in zip(keys, outcomes, strict=True) if outcome.error is not None]
        if bad:  # before the commit: a null row is never without its reason
            store.replace_atomic(self._path(shard, "errors.jsonl"), "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in bad).encode())
        else:
            self._path(shard, "errors.jsonl").unlink(missing_ok=True)
        if self.target.kind == "matrix":
            there = [value for value in values if value is not None]
            array = np.concatenate(there) if there else np.zeros((0, self.processor.width), np.float16)
            mine = self.target.commit_matrix(shard, array, [0 if value is None else len(value) for value in values])
        else:
            mine = self.target.commit(shard, (None if value is None else self.target.encode(value) for value in values))
        if mine:
            counts = sum((Counter(outcome.counts) for outcome in outcomes), Counter())
            self.counts += counts
            rows = {"rows": len(keys), "resumed": work.resumed, "nulls": sum(value is None for value in values)}
            stats = {"seconds": round(time.perf_counter() - work.started, 3), **rows, "bad": len(bad), "counts": dict(counts)}
            self.target.write_stats(shard, {**stats, "host": socket.gethostname()})
            self.summary.done += 1
        else:
            self.summary.lost += 1
        work.journal.remove()
        del self.open[shard]
        self.event("committed", {"shard": name, "mine": mine})


@contextlib.contextmanager
def _signals(job: _Job) -> Iterator[None]:
    """SIGTERM and SIGINT ask the job to stop after the batch in flight; a second one interrupts it at once (the journal is safe)."""

    def ask(number: int, frame: object) -> None:
        if job.stop:
            raise KeyboardInterrupt
        job.stop = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

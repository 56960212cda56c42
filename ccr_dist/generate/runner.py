"""Runs a processor over a dataset.

    column.json (plan) -> take a shard -> prepare its rows ahead -> engine -> journal -> all rows there: commit -> ...
    nothing left to take: wait for the shards of others, and take over those whose worker dies

Whatever dies is simply started again. `processor.py` defines what is done to a row; `lease.py`, `journal.py` and
`shard_work.py` define leases, journals and commits. `shard_queue.py` chooses the rows, `results.py` keeps the results.
"""

from __future__ import annotations

import functools
import itertools
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import ccr_dist
from ccr_dist import terminal
from ccr_dist.data.storage import remote, store
from ccr_dist.data.storage.object_store import Store
from ccr_dist.data.table.dataset import Column, Dataset, create_column
from ccr_dist.errors import ConfigError, DataBudgetError, DataError
from ccr_dist.generate.bad_items import BadItems, Budget
from ccr_dist.generate.job_parts import JobParts
from ccr_dist.generate.lease import Leases
from ccr_dist.generate.load_once import first_load
from ccr_dist.generate.open_shards import OpenShards
from ccr_dist.generate.prepare import Preparation
from ccr_dist.generate.processor import EngineWait, Feed, Processor, Ticket, require_rules
from ccr_dist.generate.results import Results
from ccr_dist.generate.shard_queue import ShardQueue
from ccr_dist.generate.shard_work import Bench
from ccr_dist.generate.stop_request import StopRequest
from ccr_dist.generate.summary import Event, JobReport, JobSummary
from ccr_dist.generate.traces.place import work_place
from ccr_dist.heartbeat import Watch
from ccr_dist.places import require_writable
from ccr_dist.redact import command_line

_NAMED = 8  # items in a message about a silent engine


def run(
    dataset: Dataset,
    processor: Processor,
    column: str,
    *,
    share: tuple[int, int] = (0, 1),
    batch: int | None = None,
    workers: int | None = None,
    threads: int = 4,
    budget: Budget = Budget(),
    lease_s: float = 60.0,
    wait: bool = True,
    silence_s: float = 600.0,
    progress: bool = True,
    summarise: bool = True,
    on_event: Event | None = None,
) -> JobSummary:
    """Make a column, together with all other workers that run the same job.

    SIGTERM, SIGINT, SIGUSR1 and a stop file (`stopfile.py`) end it after the batch in flight, with `stopped` set.
    Finished shards and journals survive every error.

    Args:
        dataset: The dataset that gets the column.
        processor: Makes a row's value.
        column: Name of the column.
        share: (i, n): only the shards i, i + n, ...
        batch: Items per engine call; None: the processor's default.
        workers: Preparing processes; None: the processor's default; 0: `threads` threads instead.
        threads: Preparing threads, if `workers` is 0.
        budget: How many bad items are tolerated.
        lease_s: Seconds without a heartbeat after which this worker counts as dead for the others; its leases say so.
        wait: Whether to stay until other workers' shards are finished, and to take over those whose worker dies;
            otherwise these shards are reported as busy.
        silence_s: Seconds without any result after which the process ends with HangError's exit code.
        progress: Whether to show a progress bar and print the summary.
        summarise: Whether a summary may be printed at all.
        on_event: Called with the name of an event (taken, kept, committed, lost, busy) and its details.

    Returns:
        The summary.

    Raises:
        ConfigError: A setting is impossible.
        DataError: Inputs are missing, or the column has another plan.
        DataBudgetError: There are too many bad items, the job makes nothing, or shards kill their workers.
        EngineError: The engine failed.
        StorageError: The disk is full or fails.
    """
    if not 0 <= share[0] < share[1]:
        raise DataError(f"share {share[0]}/{share[1]}: expected i/n with 0 <= i < n")
    if lease_s <= 0 or silence_s <= 0:
        raise ConfigError(f"lease_s {lease_s:g}, silence_s {silence_s:g}: expected more than 0 seconds")
    inputs = {name: dataset.column(name) for name in processor.inputs}
    for source in inputs.values():
        source.require_complete()
    if column not in dataset.columns() or dataset.column(column).missing():
        _require_place(dataset, column)  # before a plan that needs its model loads it
    processor.check(dataset)
    target = _target(dataset, processor, column, inputs)
    shards = range(share[0], len(dataset.shards), share[1])
    rows = sum(dataset.shard_rows[shard] for shard in shards)
    started, console = time.perf_counter(), terminal.console(stderr=True)
    bar = Progress(*_bar_columns(), console=console, disable=not progress, transient=True)
    task = bar.add_task(target.name, total=rows)
    report = JobReport(
        JobSummary(target.name, shards=len(shards)), on_event or _no_event, lambda done: bar.advance(task, done)
    )
    bad_items = BadItems(target, rows, budget, report.summary)
    bench = Bench(target, Leases(work_place(dataset, column), lease_s))
    parts = JobParts(
        target, bench, OpenShards(bad_items, report), bad_items, report, StopRequest(), engine_wait=EngineWait()
    )
    loop = _EngineLoop(
        parts,
        processor,
        inputs,
        batch=batch or processor.batch,
        workers=processor.workers if workers is None else workers,
        threads=threads,
    )
    queue = ShardQueue(parts, loop.results, shards, wait=wait, window=loop.window)
    with parts.stop, Watch(parts.open_shards.beat, lease_s / 4, lambda: None, silence_s) as watch, bar:
        try:
            loop.run(queue.tickets(), watch)
        finally:
            parts.open_shards.close()
            remote.look_again()  # what the next job reads may be in a store, and has changed
    summary = _summed_up(parts, loop.results, wait=wait, seconds=time.perf_counter() - started)
    if summarise and (progress or summary.bad or summary.fruitless):
        console.print(str(summary), markup=False, highlight=False, soft_wrap=True)
    if queue.refused:
        raise DataBudgetError("\n".join(queue.refused))
    return summary


def _require_place(dataset: Dataset, column: str) -> None:
    """Raises OSError or ConfigError unless the column can be made where the dataset is."""
    if dataset.remote and dataset.remote.mirror:
        Store(dataset.remote.url).require_create_once("dataset.json")
    else:
        require_writable(dataset.root / column)


def _target(dataset: Dataset, processor: Processor, column: str, inputs: dict[str, Column]) -> Column:
    """The column to be made, new or begun. Raises DataError if it has another plan."""
    plan = {**processor.plan(), "inputs": {name: source.digest for name, source in inputs.items()}}
    provenance = {
        "ccr_dist": ccr_dist.__version__,
        "python": platform.python_version(),
        "command": command_line(),
        **processor.provenance(),
    }
    if column in dataset.columns():
        require_rules(f"{dataset.place}/{column}", dataset.column(column).plan, plan)
    return create_column(
        dataset,
        column,
        kind=processor.kind,
        extension=processor.extension,
        plan=plan,
        provenance=provenance,
        dtype=processor.dtype,
    )


def _no_event(name: str, details: dict[str, Any]) -> None:
    pass


def _bar_columns() -> tuple[Any, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _summed_up(parts: JobParts, results: Results, *, wait: bool, seconds: float) -> JobSummary:
    summary = parts.report.summary
    summary.seconds, summary.waited_s = seconds, parts.engine_wait.seconds
    summary.counts = dict(results.counts)
    summary.stopped = parts.stop.asked and not summary.complete
    if not wait:
        summary.busy += parts.open_shards.lost_count
    if summary.complete:
        # left by a process that was killed while it created the column
        for rubbish in parts.target.folder.glob(f"{store.TEMPORARY}column.json.*"):
            rubbish.unlink(missing_ok=True)
    return summary


class _EngineLoop:
    """Drives the engine from the queue of rows to the results.

    Args:
        parts: The run's shared parts.
        processor: The processor.
        inputs: The columns that it reads, by name.
        batch: Items per engine call.
        workers: Preparing processes; 0: threads.
        threads: Preparing threads, if `workers` is 0.
    """

    def __init__(
        self,
        parts: JobParts,
        processor: Processor,
        inputs: dict[str, Column],
        *,
        batch: int,
        workers: int,
        threads: int,
    ) -> None:
        self._parts, self._processor, self._inputs = parts, processor, inputs
        self._batch, self._workers, self._threads = batch, workers, threads
        self._ahead = max(2 * batch, 4 * workers)  # rows that are prepared ahead of the engine
        self.window = 2 * (self._ahead + batch)  # rows that may be in work at once
        self.results = Results(parts, lambda: processor.width)

    def run(self, tickets: Iterator[Ticket | None], watch: Watch) -> None:
        """Make the rows of `tickets`, until there are no more or the run is asked to stop."""
        parts, processor = self._parts, self._processor
        first = _first(tickets)
        if first is None:  # models are loaded only when there is work
            return
        with Preparation(
            processor.preparer(), self._inputs, workers=self._workers, threads=self._threads
        ) as preparation:
            preparation.begin()  # its processes need about as long to start as the model
            with (
                first_load(processor.load_key(), lambda: parts.stop.asked),
                watch.loading(f"{parts.target.place}: the model is being loaded"),
            ):
                if not parts.stop.asked:
                    processor.load()
            if parts.stop.asked:
                return

            def submit(ticket: Ticket) -> Future[Any]:
                parts.open_shards.begin(ticket.shard)
                return preparation.submit(ticket)

            feed = Feed(itertools.chain([first], tickets), submit, self._ahead, preparation.alone, parts.engine_wait)
            watch.expect(functools.partial(_at_work, parts.target, feed))
            try:
                self._drive(feed, watch.heard)
            finally:
                feed.cancel()

    def _drive(self, feed: Feed, heard: Callable[[], None]) -> None:
        for outcomes in self._processor.stream(feed, self._batch):
            feed.back(ticket for ticket, _ in outcomes)
            if self._processor.bounded:
                heard()
            if outcomes or feed.settled:
                heard()
                self.results.keep(outcomes + feed.settled)
                feed.settled.clear()
            if self._parts.stop.asked:
                return
        if feed.settled:
            self.results.keep(feed.settled)


def _first(tickets: Iterator[Ticket | None]) -> Ticket | None:
    """Wait for the first ticket; None if there is none."""
    for ticket in tickets:
        if ticket is not None:
            return ticket
        time.sleep(Feed.POLL_S)
    return None


def _at_work(target: Column, feed: Feed) -> str | None:
    """What the engine works on or waits for, for messages; called in the watch's thread."""
    if tickets := list(feed.in_flight):
        named = ", ".join(f"{target.dataset.shards[ticket.shard]}: {ticket.key!r}" for ticket in tickets[:_NAMED])
        more = ", ..." if len(tickets) > _NAMED else ""
        return f"{target.place}: the engine works on {len(tickets)} items ({named}{more})"
    waits_for = feed.waits_for
    return f"{target.place}: the item {waits_for.key!r} is being prepared" if waits_for else None

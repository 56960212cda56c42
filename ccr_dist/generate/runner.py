"""Runs a processor over a dataset: takes shards by leases, resumes from journals, keeps the engine fed, commits each
shard once.

    column.json (plan) -> take a shard -> rows prepared ahead -> engine -> journal -> all there: commit -> ... ->
    nothing left to take: wait for the shards of others, and take over those of the dead

Whatever dies is simply started again. What is done to a row is the processor's affair (`processor.py`), what a lease, a
journal and a commit are is told in `lease.py`, `journal.py` and `work.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import ccr_dist
from ccr_dist import stopfile, terminal
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import Column, Dataset, create_column
from ccr_dist.errors import ConfigError, DataBudgetError, DataError
from ccr_dist.generate.lease import Leases, look
from ccr_dist.generate.load_once import first_load
from ccr_dist.generate.prepare import Preparation
from ccr_dist.generate.processor import Feed, Outcome, Processor, Ticket, require_rules
from ccr_dist.generate.shard_work import STUCK, Bench, Lost, Work
from ccr_dist.generate.summary import Budget, Summary
from ccr_dist.heartbeat import Watch
from ccr_dist.redact import command_line

FRUITLESS = 100  # rows without any value from the start after which a job is ended

Event = Callable[[str, dict[str, Any]], None]


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
    on_event: Event | None = None,
) -> Summary:
    """Makes a column, together with whoever else runs the same job. share (i, n): the shards i, i + n, ... only.

    batch: items an engine call; workers: processes that prepare rows (None: what suits the processor; 0: `threads`
    threads instead). lease_s: seconds without a heartbeat after which a worker counts as dead; the same for all
    workers. wait: stay until the shards that others hold are finished, and take over those whose owner dies; else they
    are reported as busy. silence_s: an engine that gives nothing back for so long ends the process with HangError's
    exit code.

    SIGTERM, SIGINT, SIGUSR1 and a stop file (`stopfile.py`) end it after the batch in flight, with `stopped` set.
    Raises DataError (inputs missing, another plan there), DataBudgetError, EngineError, StorageError; finished shards
    and journals survive all of them.
    """
    if not 0 <= share[0] < share[1]:
        raise DataError(f"share {share[0]}/{share[1]}: expected i/n with 0 <= i < n")
    if lease_s <= 0 or silence_s <= 0:
        raise ConfigError(f"lease_s {lease_s:g}, silence_s {silence_s:g}: expected more than 0 seconds")
    inputs = {name: dataset.column(name) for name in processor.inputs}
    for source in inputs.values():
        source.require_complete()
    processor.check(dataset)
    plan = {**processor.plan(), "inputs": {name: source.digest for name, source in inputs.items()}}
    provenance = {
        "ccr_dist": ccr_dist.__version__,
        "python": platform.python_version(),
        "command": command_line(),
        **processor.provenance(),
    }
    if column in dataset.columns():
        require_rules(f"{dataset.place}/{column}", dataset.column(column).plan, plan)
    target = create_column(
        dataset, column, kind=processor.kind, extension=processor.extension, plan=plan, provenance=provenance
    )
    shards = range(share[0], len(dataset.shards), share[1])
    job = _Job(target, processor, inputs, shards, budget, Leases(target.folder, lease_s), wait, on_event)
    return job.run(
        batch or processor.batch, processor.workers if workers is None else workers, threads, silence_s, progress
    )


class _Job:
    def __init__(
        self,
        target: Column,
        processor: Processor,
        inputs: dict[str, Column],
        shards: range,
        budget: Budget,
        leases: Leases,
        wait: bool,
        on_event: Event | None,
    ) -> None:
        self.target, self.processor, self.inputs, self.shards = target, processor, inputs, shards
        self.bench, self.leases, self.wait = Bench(target, leases), leases, wait
        self.event: Event = on_event or (lambda name, info: None)
        self.rows = sum(target.dataset.shard_rows[s] for s in shards)
        self.limit = budget.limit(self.rows)
        self.open: dict[int, Work] = {}
        self.again: list[int] = []  # lost to others: whether those finish them is still to be seen
        self.errors: dict[str, str] = {}
        self.refused: list[str] = []
        self.stop = False
        self.summary = Summary(target.name, shards=len(shards))
        self.counts: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()  # of the shards that came to be committed here: rows by what became of them
        self.advance: Callable[[int], None] = lambda rows: None
        self.feed: Feed | None = None
        self.window = 0  # rows that may be in work at once

    def run(self, batch: int, workers: int, threads: int, silence_s: float, progress: bool) -> Summary:
        started, console = time.perf_counter(), terminal.console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with (
            _signals(self),
            Watch(self._beat, self.leases.lease_s / 4, self._at_work, silence_s) as watch,
            Progress(*columns, console=console, disable=not progress, transient=True) as bar,
        ):
            task = bar.add_task(self.target.name, total=sum(self.target.dataset.shard_rows[s] for s in self.shards))
            self.advance = lambda rows: bar.advance(task, rows)
            ahead = max(2 * batch, 4 * workers)
            self.window = 2 * (ahead + batch)
            try:
                tickets = self._tickets()
                if (first := _first(tickets)) is not None:  # there is work: only then are models loaded
                    with Preparation(
                        self.processor.preparer(), self.inputs, workers=workers, threads=threads
                    ) as preparation:
                        preparation.begin()  # its processes take as long as the model to get ready
                        with (
                            first_load(self.processor.load_key(), lambda: self.stop),
                            watch.loading(f"{self.target.folder}: the model is being loaded"),
                        ):
                            if not self.stop:
                                self.processor.load()
                        if not self.stop:
                            rows = itertools.chain([first], tickets)
                            self.feed = Feed(
                                rows, lambda ticket: self._submit(ticket, preparation), ahead, preparation.alone
                            )
                            self._drive(self.feed, batch, watch)
            finally:
                for work in self.open.values():
                    work.close()
        self._sum_up(time.perf_counter() - started)
        if progress or self.summary.bad or self.summary.fruitless:
            console.print(str(self.summary), markup=False, highlight=False, soft_wrap=True)
        if self.refused:
            raise DataBudgetError("\n".join(self.refused))
        return self.summary

    def _sum_up(self, seconds: float) -> None:
        self.summary.seconds, self.summary.counts = seconds, dict(self.counts)
        self.summary.stopped = self.stop and not self.summary.complete
        self.summary.busy += 0 if self.wait else len(self.again)
        if self.summary.complete:
            # of a process killed while it began the column
            for rubbish in self.target.folder.glob(f"{store.TEMPORARY}column.json.*"):
                rubbish.unlink(missing_ok=True)

    def _submit(self, ticket: Ticket, preparation: Preparation) -> Future[Any]:
        work = self.open.get(ticket.shard)
        if work is not None and not work.lease.begun:
            work.lease.begin(len(work.outcomes))
        return preparation.submit(ticket)

    def _drive(self, feed: Feed, batch: int, watch: Watch) -> None:
        try:
            for outcomes in self.processor.stream(feed, batch):
                feed.back(ticket for ticket, _ in outcomes)
                if self.processor.bounded:
                    watch.heard()
                if outcomes or feed.settled:
                    watch.heard()
                    self._keep(outcomes + feed.settled)
                    feed.settled.clear()
                if self.stop:
                    return
            if feed.settled:
                self._keep(feed.settled)
        finally:
            feed.cancel()
            self.summary.waited_s = feed.waited_s

    # -- in the watch's thread

    def _beat(self) -> None:
        for work in list(self.open.values()):
            try:
                work.beat()
            except OSError as e:
                print(
                    f"{work.lease.path}: no heartbeat ({e}); another worker takes the shard over if this goes on",
                    file=sys.stderr,
                )

    def _at_work(self) -> str | None:
        """What the engine, or the preparation that it waits for, is at."""
        if self.feed is None:
            return None
        if tickets := list(self.feed.in_flight):
            some = ", ".join(f"{self.target.dataset.shards[ticket.shard]}: {ticket.key!r}" for ticket in tickets[:8])
            return (
                f"{self.target.folder}: the engine works on {len(tickets)} items"
                f" ({some}{', ...' if len(tickets) > 8 else ''})"
            )
        waits_for = self.feed.waits_for
        return f"{self.target.folder}: the item {waits_for.key!r} is being prepared" if waits_for else None

    # -- shards

    def _tickets(self) -> Iterator[Ticket | None]:
        """Takes shards and names the rows that are to be made; None: nothing now. Runs ahead of the engine by the
        feed's window.
        """
        pending: Sequence[int] = self.shards
        pause_s = min(self.leases.lease_s / 8, 2.0)
        while True:
            finished, traces, rest = self.target.finished(), look(self.target.folder), []
            for shard in pending:
                if self.stop:
                    return
                self._drop_lost()
                if shard in finished and self.target.dataset.shards[shard] not in traces:
                    self._skip(shard)
                elif shard not in finished and self.target.whole(shard):
                    rest.append(shard)  # since the look: let its owner tidy up
                else:
                    try:
                        work = self.bench.take(shard)
                    except DataBudgetError as e:
                        self.refused.append(str(e))
                        continue
                    if work is None:
                        rest.append(shard)
                    else:
                        yield from self._rows(work)
            if not self.wait:
                self._leave(rest)
                return
            until = time.monotonic() + pause_s
            while time.monotonic() < until or not (rest or self.again):
                self._drop_lost()
                if self.stop or not (rest or self.again or self.open):
                    return
                yield None
            pending, self.again = rest + self.again, []

    def _rows(self, work: Work) -> Iterator[Ticket | None]:
        """A shard over which somebody died is worked on alone until it gives a row, so that no other one is blamed for
        what it does.
        """
        shard, dataset = work.shard, self.target.dataset
        self.open[shard] = work
        work.waited_s = self.feed.waited_s if self.feed else 0.0
        self.summary.dropped_lines += work.past.dropped
        if not work.settled:
            self.summary.resumed_rows += work.resumed
            self.event("taken", {"shard": dataset.shards[shard], "rows": work.rows, "resumed": work.resumed})
        self.advance(work.resumed)
        missing, keys, past = work.missing, dataset.keys(shard), work.lease.past
        wary = bool(past.stuck or past.suspect)
        if not work.settled and (
            left_out := {keys[row]: o.error for row, o in work.outcomes.items() if o.error is not None}
        ):
            self.errors |= left_out
            self._hold_budget()
        if not missing:
            self._commit(work)
        while wary and len(self.open) > 1 and not (self.stop or work.lost):
            yield None
        suspects = missing[: self.window] if past.suspect is not None or past.stuck >= STUCK - 1 else []
        for row in suspects:  # one by one, so that the next owner knows which one it was
            work.lease.alone_with(row, len(work.outcomes))
            yield Ticket(shard, row, keys[row])
            while row not in work.outcomes and shard in self.open and not (self.stop or work.lost):
                yield None
            if self.stop or work.lost:
                return
        if suspects and shard in self.open:
            work.lease.alone_with(None, len(work.outcomes))
        for row in missing[len(suspects) :]:
            if work.lost:
                return
            yield Ticket(shard, row, keys[row])
        while wary and shard in self.open and len(work.outcomes) == work.resumed and not (self.stop or work.lost):
            yield None

    def _skip(self, shard: int) -> None:
        nulls = int(self.target.record(shard)["nulls"])
        self.seen += Counter(made=self.target.dataset.shard_rows[shard] - nulls, absent=nulls)
        self.summary.skipped += 1
        self.advance(self.target.dataset.shard_rows[shard])

    def _leave(self, shards: list[int]) -> None:
        """What others hold, when it is not to be waited for."""
        for shard in shards:
            if self.target.whole(shard):
                self._skip(shard)
            else:
                self.summary.busy += 1
                self.event("busy", {"shard": self.target.dataset.shards[shard]})

    def _drop_lost(self) -> None:
        for work in [work for work in self.open.values() if work.lost]:
            self._lose(work)

    def _lose(self, work: Work) -> None:
        """Others have the shard: nothing of it is kept here, and it has to be seen whether they finish it."""
        self.summary.lost += 1
        del self.open[work.shard]
        work.close()
        self.again.append(work.shard)
        for key in self.target.dataset.keys(work.shard):
            self.errors.pop(key, None)
        self.advance(-len(work.outcomes))
        self.event("lost", {"shard": self.target.dataset.shards[work.shard]})

    # -- results

    def _keep(self, results: list[tuple[Ticket, Outcome]]) -> None:
        """Journals results, then holds them against the budget, then commits the shards that are complete."""
        by_shard: dict[int, list[tuple[int, Outcome]]] = {}
        for ticket, outcome in results:
            work = self.open.get(ticket.shard)
            if work is not None and ticket.row not in work.outcomes:  # else it was lost meanwhile
                by_shard.setdefault(ticket.shard, []).append((ticket.row, self._checked(ticket, outcome)))
        kept = 0
        for shard, rows in by_shard.items():
            work, keys = self.open[shard], self.target.dataset.keys(shard)
            try:
                work.keep(rows)
            except Lost:
                self._lose(work)
                continue
            kept += len(rows)
            self.errors |= {
                keys[row]: error for row, outcome in rows if (error := outcome.error or outcome.lacks) is not None
            }
        self.summary.rows += kept
        self.advance(kept)
        self.event("kept", {"rows": kept})
        self._hold_budget()
        for shard in by_shard:
            if (done := self.open.get(shard)) is not None and len(done.outcomes) == done.rows:
                self._commit(done)

    def _hold_budget(self) -> None:
        self.summary.bad = len(self.errors)
        if len(self.errors) > self.limit:
            shown = "\n  ".join(f"{key}: {error}" for key, error in list(self.errors.items())[:5])
            raise DataBudgetError(
                f"{self.target.folder}: {len(self.errors)} bad items, {self.limit} are tolerated. The first ones:\n "
                f" {shown}\nmend them, or allow more bad items, and run again: good rows are kept, bad ones will be"
                " tried again"
            )

    def _checked(self, ticket: Ticket, outcome: Outcome) -> Outcome:
        """What cannot be committed must not get into a journal: it is a bad item."""
        value = outcome.value
        if outcome.error is not None or value is None:
            return outcome
        try:
            if self.target.kind != "matrix":
                self.target.encode(value)
            elif not (
                isinstance(value, np.ndarray)
                and value.dtype == np.float16
                and value.ndim == 2
                and np.isfinite(value).all()
            ):
                raise DataError(
                    f"{self.target.name}: expected finite float16 vectors (n, D); found"
                    f" {getattr(value, 'dtype', type(value))}"
                )
        except DataError as e:
            return Outcome(error=f"{ticket.key}: {e}")
        return outcome

    def _commit(self, work: Work) -> None:
        waited_s = (self.feed.waited_s if self.feed else 0.0) - work.waited_s
        became = Counter(made=1) if work.settled else work.became(self.target.kind)  # else: whatever it is, it is final
        self._require_something(became)
        try:
            mine = self.bench.commit(work, lambda: self.processor.width, {"waited_s": round(waited_s, 3)})
        except Lost:
            self._lose(work)
            return
        del self.open[work.shard]
        if mine:
            self.summary.done += 1
            self.summary.absent += became["absent"]
            self.summary.fruitless += became["fruitless"]
            self.counts.update(work.counts())
        else:
            self.summary.skipped += 1
            self.summary.lost += not work.settled  # an overtaken worker woke and was quicker
        self.event("committed", {"shard": self.target.dataset.shards[work.shard], "mine": mine})

    def _require_something(self, became: Counter[str]) -> None:
        """DataBudgetError, before anything is final, for a job that gives nothing: its first rows, or all of a small
        one, have no value.
        """
        self.seen += became
        nothing = self.seen["bad"] + self.seen["fruitless"]
        if self.seen["made"] or not nothing or self.limit >= self.rows:
            return
        if nothing >= FRUITLESS or self.seen.total() == self.rows:
            total = sum((work.counts() for work in self.open.values()), Counter[str]())
            counts = ", ".join(f"{name} {n}" for name, n in sorted(total.items())) or "no counts"
            errors = "".join(f"\n  {key}: {error}" for key, error in list(self.errors.items())[:5])
            raise DataBudgetError(
                f"{self.target.folder}: none of the first {nothing} rows has a value: {self.seen['bad']} are bad items,"
                f" of {self.seen['fruitless']} nothing usable came back ({counts}).{errors}\nThey are not committed."
                " See whether model, prompt, language and filters fit these rows, and remove the column's folder for"
                " another try; --bad-fraction 1 allows it"
            )


def _first(tickets: Iterator[Ticket | None]) -> Ticket | None:
    """Waits for the first ticket; None when there will be none."""
    for ticket in tickets:
        if ticket is not None:
            return ticket
        time.sleep(Feed.POLL_S)
    return None


@contextlib.contextmanager
def _signals(job: _Job) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGUSR1 (a stop file, too) ask the job to stop after the batch in flight; the first two, if
    they come again, interrupt it at once (the journal is safe).
    """
    heard: set[int] = set()

    def ask(number: int, frame: object) -> None:
        if number in heard and number != signal.SIGUSR1:
            raise KeyboardInterrupt
        heard.add(number)
        job.stop = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    unwatch = stopfile.watch()
    try:
        yield
    finally:
        unwatch()
        for number, handler in before.items():
            signal.signal(number, handler)

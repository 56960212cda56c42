"""What a job does to its rows: the contract between the runner and a processor (translate, featurise, replay, ...).

A processor is a function from the values of some columns to one value a row. It knows no shards, no files of the output and no other
processes: the runner does. Running is `runner.py`; the systems that processors use are in `engines/`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from ccr_dist.data.table import Dataset
from ccr_dist.errors import EngineError


@dataclass(frozen=True)
class Outcome:
    """The result of one row: its value (None: a null row), or why there is none; and what to add to the shard's counters."""

    value: Any = None
    error: str | None = None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ticket:
    """One row to be made."""

    shard: int
    row: int
    key: str


class Feed:
    """Prepared rows, in order: a bounded number of them is prepared ahead by a pool while the engine works.

    Not safe in threads: `take` belongs to the thread that drives the engine. `waited_s`: seconds that thread waited for preparation.
    """

    def __init__(self, tickets: Iterator[Ticket], prepare: Callable[[Ticket], Any], pool: Executor, ahead: int) -> None:
        self._tickets, self._prepare, self._pool, self._ahead = tickets, prepare, pool, ahead
        self._window: deque[tuple[Ticket, Future[Any]]] = deque()
        self.settled: list[tuple[Ticket, Outcome]] = []  # rows that need no engine: null, or impossible to prepare
        self.waited_s = 0.0

    def _fill(self, size: int) -> None:
        while len(self._window) < size and (ticket := next(self._tickets, None)) is not None:
            self._window.append((ticket, self._pool.submit(self._prepare, ticket)))

    def take(self, count: int) -> list[tuple[Ticket, Any]] | None:
        """At most `count` next items, across shards; fewer, even none, where rows settle without an engine. None: the end."""
        self._fill(max(count, self._ahead))
        if not self._window:
            return None
        items, started = [], time.perf_counter()
        for _ in range(min(count, len(self._window))):
            ticket, future = self._window.popleft()
            item = future.result()
            if isinstance(item, Outcome):
                self.settled.append((ticket, item))
            else:
                items.append((ticket, item))
        self.waited_s += time.perf_counter() - started
        self._fill(self._ahead)
        return items

    def cancel(self) -> None:
        """Drops what is waiting to be prepared."""
        for _, future in self._window:
            future.cancel()


class Processor(ABC):
    """Base of all processors. The plan is the identity of the work: equal plans over equal inputs must mean equal columns."""

    kind: str  # of the output column
    extension: str = "json"
    inputs: tuple[str, ...] = ()
    batch: int = 64  # items an engine call, unless the user says otherwise
    width: int = 0  # of a matrix' vectors; needed only for a shard without any

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """Everything that determines the values, input columns aside (the runner adds their digests). JSON, no host names, no paths."""

    def provenance(self) -> dict[str, Any]:
        """What a reader of the column wants to know but what is no part of its identity: versions, licences, sources."""
        return {}

    def check(self, dataset: Dataset) -> None:  # noqa: B027 (most have nothing to check)
        """Called first. Raises DataError when the job makes no sense on this dataset (an input of the wrong kind, ...)."""

    def load(self) -> None:  # noqa: B027 (most have nothing to load)
        """Called once, before the first item, and only when there is something to do: the place to load models."""

    def prepare(self, key: str, values: dict[str, Any]) -> Any:
        """One item for the engine from a row's input values, in a thread of a pool; None: null row. DataError: a bad item."""
        return values[self.inputs[0]]

    @abstractmethod
    def process(self, items: list[Any]) -> list[Outcome]:
        """One outcome an item, in order. EngineError when the engine is gone or answers nonsense; a bad item is an `Outcome(error=...)`."""

    def stream(self, feed: Feed, batch: int) -> Iterator[list[tuple[Ticket, Outcome]]]:
        """Drives the engine: takes from the feed, yields what is done, in any order and grouping; each yield is journalled at once.

        An engine with its own continuous batching overrides this one; for all others it is `process` on batches.
        """
        while (taken := feed.take(batch)) is not None:
            outcomes = self.process([item for _, item in taken]) if taken else []
            if len(outcomes) != len(taken):
                raise EngineError(f"{type(self).__name__}: {len(outcomes)} results for {len(taken)} items; nothing of this batch was kept")
            yield [(ticket, outcome) for (ticket, _), outcome in zip(taken, outcomes, strict=True)]

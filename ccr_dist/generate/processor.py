"""What a job does to its rows: the contract between the runner and a processor (translate, featurise, replay, ...).

A processor is a function from the values of some columns to one value a row. It knows no shards, no files of the output
and no other processes: the runner does. Running is `runner.py`; the systems that processors use are in `engines/`.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field
from typing import Any

from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import CcrError, DataError, EngineError

RULES = {  # keys of plans: numbers of rules that come with a version of this package, and not from the command
    "pictures": (
        "pictures were read by rule {}, they are now read by rule {} (turned by EXIF, 16-bit grey, ...:"
        " ccr_dist/data/media/pictures.py)"
    ),
    "texts": (
        "what counts as text was decided by rule {}, it now is by rule {} (blank rows are null rows:"
        " ccr_dist/data/media/text.py)"
    ),
    "filters": (
        "answers were cleaned and filtered by rule {}, they now are by rule {} (ccr_dist/generate/text/answer.py and"
        " filters.py)"
    ),
}
MOST_DEATHS = 16  # of processes that prepare, for which no row is at fault


@dataclass(frozen=True)
class RowOutcome:
    """The result of one row.

    Attributes:
        value: Its value; None: a null row.
        error: Why there is no value.
        counts: What to add to the shard's counters.
        lacks: Why a part of the value is missing. Such a row is kept, and is a bad item like one without a value.
        final: Whether the error is not to be tried again.
    """

    value: Any = None
    error: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    lacks: str | None = None
    final: bool = False


@dataclass(frozen=True)
class Ticket:
    """One row to be made."""

    shard: int
    row: int
    key: str


def require_rules(place: str, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """DataError where the plan of a column that is there differs from the one asked for in nothing but rules of an
    earlier version.
    """
    asked = json.loads(store.canonical_json(asked))
    changed = [name for name in RULES if name in asked and there.get(name, 0) != asked[name]]
    if changed and {**there, **{name: asked[name] for name in changed}} == asked:
        what = "; ".join(RULES[name].format(there.get(name, 0), asked[name]) for name in changed)
        raise DataError(
            f"{place}: made by the same command of an earlier version: {what}. What is there can be read as before, but"
            " is not continued: nothing is to be done if it is complete; else finish it with that version, or make a"
            " new column with --column NAME for all datasets that are used together"
        )


@dataclass
class EngineWait:
    """Seconds for which an engine with nothing to do has waited for prepared rows."""

    seconds: float = 0.0


class Feed:
    """Prepared rows, in order: a bounded number of them is prepared ahead while the engine works.

    tickets: the rows to be made; None stands for "nothing now" (other workers have the rest). submit: starts the
    preparation of a row. Not safe in threads: `take` belongs to the thread that drives the engine. `in_flight`: rows
    that were taken and have not come back. `waited_s`: seconds that thread waited for preparation, with an engine that
    had nothing to do.
    """

    POLL_S = 0.05

    def __init__(
        self,
        tickets: Iterator[Ticket | None],
        submit: Callable[[Ticket], Future[Any]],
        ahead: int,
        alone: Callable[[Ticket], Any] | None = None,
        engine_wait: EngineWait | None = None,
    ) -> None:
        self._tickets, self._submit, self._ahead, self._alone = tickets, submit, ahead, alone
        self._deaths = 0  # of processes that prepare
        self._window: deque[tuple[Ticket, Future[Any]]] = deque()
        self._ended = False
        self.settled: list[tuple[Ticket, RowOutcome]] = []  # rows that need no engine: null, or impossible to prepare
        self.in_flight: dict[Ticket, None] = {}
        self.waits_for: Ticket | None = None  # the row whose preparation holds the engine up
        self._engine_wait = engine_wait or EngineWait()

    def _fill(self, size: int) -> None:
        while not self._ended and len(self._window) < size:
            try:
                ticket = next(self._tickets)
            except StopIteration:
                self._ended = True
                return
            if ticket is None:
                return
            self._window.append((ticket, self._submit(ticket)))

    def take(self, count: int, wait: bool = True) -> list[tuple[Ticket, Any]] | None:
        """At most `count` next items, across shards; fewer, even none, where rows settle without an engine. None: there
        will be no more.

        wait=False, for an engine that has something to do: what lies prepared at the head of the window, maybe nothing;
        never blocks. wait=True blocks until there is something, except while rows taken before have not been yielded
        yet and other workers have all the rest: then it gives [] too, so that a processor that keeps finished rows back
        can yield them.
        """
        self._fill(max(count, self._ahead))
        while not self._window:
            if self._ended:
                return None
            if not wait or self.in_flight or self.settled:
                return []
            time.sleep(self.POLL_S)
            self._fill(max(count, self._ahead))
        items: list[tuple[Ticket, Any]] = []
        for _ in range(min(count, len(self._window))):
            if not (wait or self._window[0][1].done()):
                break
            ticket, item = self._next()
            if isinstance(item, RowOutcome):
                self.settled.append((ticket, item))
            else:
                items.append((ticket, item))
        self.in_flight.update((ticket, None) for ticket, _ in items)
        self._fill(self._ahead)
        return items

    def _next(self) -> tuple[Ticket, Any]:
        started = time.perf_counter()
        ticket, future = self._window[0]
        self.waits_for = ticket
        try:
            item = future.result()
        except BrokenExecutor as e:
            item = self._after_death(ticket, e)
        finally:
            self.waits_for = None
        self._window.popleft()
        if not self.in_flight:
            self._engine_wait.seconds += time.perf_counter() - started
        return ticket, item

    def _after_death(self, ticket: Ticket, error: BrokenExecutor) -> Any:
        """Processes that prepare rows are gone, with all they had: the next row is prepared alone, those behind it
        anew.

        EngineError when it happens again and again without a row that is at fault.
        """
        self._deaths += 1
        if self._alone is None or self._deaths > MOST_DEATHS:
            raise EngineError(
                f"processes that prepare rows died (out of memory, or a broken library), {self._deaths} times; at last"
                f" at item {ticket.key!r} or shortly after. What was finished is kept; fewer --workers need less memory"
            ) from error
        item = self._alone(ticket)
        if isinstance(item, RowOutcome) and item.error is not None:
            self._deaths = 0
        self._window = deque((t, self._submit(t) if _broken(future) else future) for t, future in self._window)
        return item

    def back(self, tickets: Iterable[Ticket]) -> None:
        """These rows have come back from the engine."""
        for ticket in tickets:
            self.in_flight.pop(ticket, None)

    def cancel(self) -> None:
        """Drops what is waiting to be prepared."""
        for _, future in self._window:
            future.cancel()


def _broken(future: Future[Any]) -> bool:
    return future.done() and (future.cancelled() or isinstance(future.exception(), BrokenExecutor))


class Processor(ABC):
    """Base of all processors. The plan is the identity of the work: equal plans over equal inputs must mean equal
    columns.
    """

    kind: str  # of the output column
    extension: str = "json"
    inputs: tuple[str, ...] = ()
    batch: int = 64  # items an engine call, unless the user says otherwise
    dtype: str = "float16"  # of a matrix: float16 or float32
    width: int = 0  # of a matrix' vectors; needed only for a shard without any
    bounded: bool = False  # whether what drives the engine always gives something back in time, by itself
    # processes that prepare, unless the user says otherwise; 0: threads, for preparation that is cheap
    workers: int = 0

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """Everything that determines the values, input columns aside (the runner adds their digests). JSON, no host
        names, no paths.
        """

    def provenance(self) -> dict[str, Any]:
        """What a reader of the column wants to know but what is no part of its identity: versions, licences,
        sources.
        """
        return {}

    def check(self, dataset: Dataset) -> None:  # noqa: B027 (most have nothing to check)
        """Called first. Raises DataError when the job makes no sense on this dataset (an input of the wrong kind,
        ...).
        """

    def load(self) -> None:  # noqa: B027 (most have nothing to load)
        """Called once, before the first item, and only when there is something to do: the place to load models."""

    def close(self) -> None:  # noqa: B027 (most have nothing to end)
        """Called by the maker of the processor after its last run; ends what `load` started."""

    def prepare(self, key: str, values: dict[str, Any]) -> Any:
        """One item for the engine from a row's input values; None: null row; an RowOutcome settles it. DataError: a bad
        item.
        """
        return values[self.inputs[0]]

    def preparer(self) -> Callable[[str, dict[str, Any]], Any]:
        """What does the work of `prepare`, ahead of the engine, in threads or in processes. Asked for once, before
        `load`.

        For processes it has to be picklable, and small: override it where the processor holds a model. Items come back
        by pickle, too: NumPy arrays, pictures, strings; no torch tensors.
        """
        return self.prepare

    def load_key(self) -> str | None:
        """Names what `load` loads (and compiles): of the processes of a node, one at a time does so for the first time.
        None: no matter.
        """
        return None

    @abstractmethod
    def process(self, items: list[Any]) -> list[RowOutcome]:
        """One outcome an item, in order. EngineError when the engine is gone or answers nonsense; a bad item is an
        `RowOutcome(error=...)`.
        """

    def stream(self, feed: Feed, batch: int) -> Iterator[list[tuple[Ticket, RowOutcome]]]:
        """Drives the engine: takes from the feed, yields what is done, in any order and grouping; each yield is
        journalled at once.

        Rows in `feed.settled` are journalled with the next yield, an empty one too. An engine with its own continuous
        batching overrides this one; for all others it is `process` on batches.
        """
        worked = False
        while (taken := feed.take(batch)) is not None:
            outcomes = self._processed([item for _, item in taken], worked=worked) if taken else []
            worked = worked or any(outcome.error is None for outcome in outcomes)
            if len(outcomes) != len(taken):
                raise EngineError(
                    f"{type(self).__name__}: {len(outcomes)} results for {len(taken)} items; nothing of this batch was"
                    " kept"
                )
            yield [(ticket, outcome) for (ticket, _), outcome in zip(taken, outcomes, strict=True)]

    def _processed(self, items: list[Any], *, worked: bool) -> list[RowOutcome]:
        """`process`; what it fails on is found by taking the items one by one. When it fails on all of several the
        error is its own, and of a single item unless it has `worked` on others.
        """
        error: Exception
        try:
            return self.process(items)
        except DataError as e:
            error = e
        except (CcrError, OSError):
            raise
        except Exception as e:
            error = e
        if len(items) == 1:
            if isinstance(error, DataError) or worked:
                return [RowOutcome(error=_blamed(error))]
            raise error
        outcomes = [outcome for item in items for outcome in self._processed([item], worked=True)]
        if not isinstance(error, DataError) and all(outcome.error is not None for outcome in outcomes):
            raise error
        return outcomes


def _blamed(error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    return f"the engine fails on it, but not on others ({type(error).__name__}: {str(error)[:300]})"

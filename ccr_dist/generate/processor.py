"""The contract between the runner and a processor (translate, featurise, replay, ...), which makes one value per row.

A processor is a function from the values of some columns to one value. It knows neither shards nor output files nor
other workers; `runner.py` does. The systems that processors use are in `engines/`.
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

RULES = {  # keys of plans with numbers of rules, which belong to a version of this package, not to the command
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
MOST_DEATHS = 16  # of preparing processes, for which no row is to blame


@dataclass(frozen=True)
class RowOutcome:
    """The result of one row.

    Attributes:
        value: Its value; None makes a null row.
        error: Why there is no value, or None.
        counts: Added to the shard's counters.
        lacks: Why a part of the value is missing, or None. Such a row is kept, but is a bad item.
        final: Whether the error must not be retried.
    """

    value: Any = None
    error: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    lacks: str | None = None
    final: bool = False


@dataclass(frozen=True)
class Ticket:
    """One row to be made.

    Attributes:
        shard: Number of its shard.
        row: Number of the row in the shard.
        key: Its key.
    """

    shard: int
    row: int
    key: str


def require_rules(place: str, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse to continue a column whose plan differs only in rules of an earlier version.

    Args:
        place: The column, for messages.
        there: Its plan.
        asked: The plan of this job.

    Raises:
        DataError: Only rules differ. (Other differences are refused elsewhere.)
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
    """Time that an idle engine has waited for prepared rows.

    Attributes:
        seconds: Seconds in all.
    """

    seconds: float = 0.0


class Feed:
    """Prepared rows in order; a bounded number is prepared ahead while the engine works.

    Not thread-safe: only the thread that drives the engine may use it.

    Args:
        tickets: The rows to be made; None stands for "nothing now" (other workers have the rest).
        submit: Starts the preparation of a row.
        ahead: Number of rows prepared ahead.
        alone: Prepares a row in a process of its own, after processes died.
        engine_wait: Gets the time that an idle engine waits.

    Attributes:
        settled: Rows that need no engine: null, or impossible to prepare.
        in_flight: Rows that were taken and have not come back.
        waits_for: The row whose preparation the engine waits for, or None.
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
        self._deaths = 0  # of preparing processes
        self._window: deque[tuple[Ticket, Future[Any]]] = deque()
        self._ended = False
        self.settled: list[tuple[Ticket, RowOutcome]] = []
        self.in_flight: dict[Ticket, None] = {}
        self.waits_for: Ticket | None = None
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
        """Take the next items, across shards.

        Args:
            count: At most this many.
            wait: Whether to block until there is an item. It does not block while rows taken before have not come back
                and other workers have all the rest, so that a processor can yield finished rows. False, for an engine
                that is busy: return only what is already prepared.

        Returns:
            (row, item), possibly fewer than `count` or none, since some rows need no engine; None at the end.

        Raises:
            EngineError: Preparing processes died too often.
            DataError: The shard of an input is damaged.
            StorageError: An input cannot be read.
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
        """Continue after preparing processes died: prepare the next row alone, and those after it again.

        Raises EngineError if that happens too often without a row that is to blame.
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
        """Report rows that have come back from the engine."""
        for ticket in tickets:
            self.in_flight.pop(ticket, None)

    def cancel(self) -> None:
        """Cancel preparation that has not started."""
        for _, future in self._window:
            future.cancel()


def _broken(future: Future[Any]) -> bool:
    return future.done() and (future.cancelled() or isinstance(future.exception(), BrokenExecutor))


class Processor(ABC):
    """Base of all processors. Equal plans over equal inputs must make equal columns.

    Attributes:
        kind: Kind of the output column.
        extension: Extension of its members.
        inputs: Names of the input columns.
        batch: Items per engine call by default.
        dtype: Type of a matrix' vectors: float16 or float32.
        width: Width of a matrix' vectors; needed only for a shard without any.
        bounded: Whether the engine ends every request by itself, so that long silence does not mean a hang.
        workers: Preparing processes by default; 0: threads, for cheap preparation.
    """

    kind: str
    extension: str = "json"
    inputs: tuple[str, ...] = ()
    batch: int = 64
    dtype: str = "float16"
    width: int = 0
    bounded: bool = False
    workers: int = 0

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """Everything that determines the values except the input columns, whose digests the runner adds. JSON, without
        host names and paths.
        """

    def provenance(self) -> dict[str, Any]:
        """What a reader of the column should know, but is not part of its identity: versions, licences, sources."""
        return {}

    def check(self, dataset: Dataset) -> None:  # noqa: B027 (most have nothing to check)
        """Called first. Raises DataError if the job is impossible on this dataset, such as an input of the wrong
        kind.
        """

    def load(self) -> None:  # noqa: B027 (most have nothing to load)
        """Load models. Called once before the first item, and only if there is something to do."""

    def close(self) -> None:  # noqa: B027 (most have nothing to end)
        """End what `load` started. Called by the processor's owner after its last run."""

    def prepare(self, key: str, values: dict[str, Any]) -> Any:
        """Turn a row's input values into an item for the engine.

        Args:
            key: The row's key.
            values: Its values by input column.

        Returns:
            The item; None makes a null row; a RowOutcome settles the row without the engine.

        Raises:
            DataError: The row is a bad item.
        """
        return values[self.inputs[0]]

    def preparer(self) -> Callable[[str, dict[str, Any]], Any]:
        """The function that does the work of `prepare` ahead of the engine, in threads or processes.

        It is requested once, before `load`. For processes it must be picklable and small, so processors that hold a
        model override it. Items are pickled as well: NumPy arrays, pictures and strings, but no torch tensors.
        """
        return self.prepare

    def load_key(self) -> str | None:
        """Identifies what `load` loads and compiles, so that only one process per node does it first; None: no lock."""
        return None

    @abstractmethod
    def process(self, items: list[Any]) -> list[RowOutcome]:
        """Run the engine on items.

        Args:
            items: Prepared items.

        Returns:
            One result per item, in order; `RowOutcome(error=...)` for a bad item.

        Raises:
            EngineError: The engine failed.
        """

    def stream(self, feed: Feed, batch: int) -> Iterator[list[tuple[Ticket, RowOutcome]]]:
        """Drive the engine. By default this calls `process` on batches; engines with continuous batching override it.

        Args:
            feed: Prepared rows.
            batch: Items per engine call.

        Yields:
            Finished rows and their results, in any order and grouping. Each yield is journalled at once, together with
            `feed.settled`; it may be empty.

        Raises:
            EngineError: The engine failed.
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
        """`process`; after an error, items are processed one by one to find the bad ones.

        If all of several items fail, the engine is to blame. A single item is to blame only if the engine has `worked`
        on others, or for a DataError.
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

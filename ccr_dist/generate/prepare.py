"""Work ahead of the engine: reads a row's inputs and runs the processor's preparer on them, in threads or in
processes.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from ccr_dist.data.storage import store
from ccr_dist.data.storage.pools import spawn_pool
from ccr_dist.data.table.dataset import Column
from ccr_dist.errors import CcrError, ConfigError, DataError
from ccr_dist.generate.processor import RowOutcome, Ticket

Preparer = Callable[[str, dict[str, Any]], Any]


class Preparation:
    """A pool that prepares rows; use it as a context manager.

    The future of `submit` gives the engine's item for a row, or its RowOutcome when it needs no engine. It raises
    StorageError when an input cannot be read, DataError when the shard of an input is damaged, and BrokenExecutor when
    a process died; `alone` then finds out whether the row is at fault.

    Args:
        preparer: What prepares a row.
        inputs: The columns that it reads, by name.
        workers: Processes; 0: threads.
        threads: Threads, with workers 0.

    Raises:
        ConfigError: The preparer cannot be sent to processes.
    """

    def __init__(self, preparer: Preparer, inputs: dict[str, Column], *, workers: int, threads: int) -> None:
        self._preparer, self._inputs, self._here = preparer, inputs, workers < 1
        self._pool: Executor
        if self._here:
            self._pool = ThreadPoolExecutor(threads, "prepare")
            return
        try:
            pickle.dumps(preparer)
        except (pickle.PicklingError, TypeError, AttributeError) as e:
            raise ConfigError(
                f"--workers {workers}: this job cannot prepare its rows in processes ({e}); use --workers 0"
            ) from e
        self._workers = workers
        self._pool = self._spawned(workers)

    def _spawned(self, workers: int) -> Executor:
        return spawn_pool(workers, _start, self._preparer, self._inputs)

    def begin(self) -> None:
        """Starts the processes; each loads what the preparer needs (its method `load`, if it has one)."""
        if not self._here:
            self._pool.submit(_nothing)

    def submit(self, ticket: Ticket) -> Future[Any]:
        if self._here:
            return self._pool.submit(prepare, self._preparer, self._inputs, ticket)
        try:
            return self._pool.submit(_prepare_here, ticket)
        except BrokenExecutor:  # what it had is lost; others are prepared by fresh processes
            self._pool.shutdown(cancel_futures=True)
            self._pool = self._spawned(self._workers)
            return self._pool.submit(_prepare_here, ticket)

    def alone(self, ticket: Ticket) -> Any:
        """Prepares a row in a process of its own; the row is a bad item when that dies as well."""
        with self._spawned(1) as pool:
            try:
                return pool.submit(_prepare_here, ticket).result()
            except BrokenExecutor:
                return RowOutcome(
                    error=f"{ticket.key}: a process that prepared it alone died (out of memory, or a broken library)"
                )

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def prepare(preparer: Preparer, inputs: dict[str, Column], ticket: Ticket) -> Any:
    def read(source: Column) -> Any:
        return store.retry_io(
            lambda: source.value(ticket.shard, ticket.row), what=source.where(ticket.shard, ticket.row)
        )

    for source in inputs.values():  # a shard that cannot be opened is no fault of its rows
        store.retry_io(partial(source.places, ticket.shard), what=source.folder)
    try:
        item = preparer(ticket.key, {name: read(source) for name, source in inputs.items()})
    except DataError as e:
        return RowOutcome(error=str(e))
    except (CcrError, OSError, ImportError):
        raise
    except (
        Exception
    ) as e:  # whatever a decoder, a template or a tokenizer makes of one row: no other row has to do with it
        return RowOutcome(error=f"{ticket.key}: cannot be prepared ({type(e).__name__}: {str(e)[:300]})")
    return RowOutcome() if item is None else item


_mine: tuple[Preparer, dict[str, Column]]  # of a worker process


def _start(preparer: Preparer, inputs: dict[str, Column]) -> None:
    global _mine
    _mine = (preparer, inputs)
    with contextlib.suppress(Exception):  # the first row runs into the same error, and can tell it
        getattr(preparer, "load", _nothing)()


def _nothing() -> None:
    pass


def _prepare_here(ticket: Ticket) -> Any:
    return prepare(*_mine, ticket)

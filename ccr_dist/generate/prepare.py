"""Prepares rows ahead of the engine, in threads or processes: reads a row's inputs and runs the processor's
preparer.
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
    """A pool that prepares rows; a context manager.

    Args:
        preparer: Prepares a row.
        inputs: The columns that it reads, by name.
        workers: Number of processes; 0: threads.
        threads: Number of threads, if `workers` is 0.

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
        """Start the processes; each loads what the preparer needs (its method `load`, if it has one)."""
        if not self._here:
            self._pool.submit(_nothing)

    def submit(self, ticket: Ticket) -> Future[Any]:
        """Prepare a row.

        Returns:
            A future of the engine's item, or of a RowOutcome if the row needs no engine. It raises StorageError if an
            input cannot be read, DataError if the shard of an input is damaged, and BrokenExecutor if a process died;
            `alone` then finds out whether the row is to blame.
        """
        if self._here:
            return self._pool.submit(prepare, self._preparer, self._inputs, ticket)
        try:
            return self._pool.submit(_prepare_here, ticket)
        except BrokenExecutor:  # its rows are lost; fresh processes prepare further ones
            self._pool.shutdown(cancel_futures=True)
            self._pool = self._spawned(self._workers)
            return self._pool.submit(_prepare_here, ticket)

    def alone(self, ticket: Ticket) -> Any:
        """Prepare a row in a process of its own; the row is a bad item if that one dies as well."""
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
    """Prepare a row: the engine's item, or a RowOutcome if the row needs no engine.

    Args:
        preparer: Prepares a row.
        inputs: The columns that it reads, by name.
        ticket: The row.

    Raises:
        DataError: The shard of an input is damaged.
        StorageError: An input cannot be read.
    """

    def read(source: Column) -> Any:
        return store.retry_io(
            lambda: source.value(ticket.shard, ticket.row), what=source.where(ticket.shard, ticket.row)
        )

    for source in inputs.values():  # an error here is of the shard, not of a row
        store.retry_io(partial(source.places, ticket.shard), what=source.folder)
    try:
        item = preparer(ticket.key, {name: read(source) for name, source in inputs.items()})
    except DataError as e:
        return RowOutcome(error=str(e))
    except (CcrError, OSError, ImportError):
        raise
    except Exception as e:  # any error of a decoder, template or tokenizer concerns only this row
        return RowOutcome(error=f"{ticket.key}: cannot be prepared ({type(e).__name__}: {str(e)[:300]})")
    return RowOutcome() if item is None else item


_mine: tuple[Preparer, dict[str, Column]]  # of a worker process


def _start(preparer: Preparer, inputs: dict[str, Column]) -> None:
    global _mine
    _mine = (preparer, inputs)
    with contextlib.suppress(Exception):  # the first row meets the same error, and reports it
        getattr(preparer, "load", _nothing)()


def _nothing() -> None:
    pass


def _prepare_here(ticket: Ticket) -> Any:
    return prepare(*_mine, ticket)

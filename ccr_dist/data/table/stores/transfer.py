"""What pushing and pulling have in common: names of files in a store, comparison before anything is copied, several
shards at a time.

Only what is missing is copied: payload and index first, the commit record last. An interrupted copy can be continued,
and is never taken for complete. What exists on both sides is compared before anything is copied; a difference is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ccr_dist.data.storage import store
from ccr_dist.data.storage.object_store import Store
from ccr_dist.data.storage.payload_cache import gb
from ccr_dist.data.storage.progress_bar import bar
from ccr_dist.data.storage.remote import relative
from ccr_dist.data.table import records
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError

A = TypeVar("A")
B = TypeVar("B")
_THREADS = 8


@dataclass
class Transfer:
    """Report on the copy of one dataset.

    Attributes:
        place: Where the copy is.
        columns: Number of columns.
        shards: Column shards that this call copied.
        there: Column shards that already existed.
        bytes: Bytes of the payloads that this call copied.
    """

    place: str
    columns: int = 0
    shards: int = 0
    there: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        before = f", {self.there} already existed" if self.there else ""
        return f"{self.columns} columns; copied {self.shards} column shards ({gb(self.bytes)}){before}"


def each_shard(
    dataset: Dataset, copy: Callable[[int], tuple[int, int, int]], summary: Transfer, what: str, progress: bool
) -> None:
    """Copy every shard and add up the results.

    Args:
        dataset: The dataset.
        copy: Copies the shard of this number in all columns; returns (column shards copied, column shards that already
            existed, bytes).
        summary: Gets the sums.
        what: Label of the progress bar.
        progress: Whether to show it.
    """
    with bar(progress, f"{what} {dataset.split}", len(dataset.shards), "shards") as advance:
        for copied, there, size in at_once(copy, range(len(dataset.shards))):
            summary.shards += copied
            summary.there += there
            summary.bytes += size
            advance()


def at_once(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Work on several items concurrently and yield the results in order. After an error nothing further is started."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield from pool.map(work, items)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def record_name(column: Column, shard: int) -> str:
    """The commit record's name relative to the dataset's folder."""
    return f"{column.name}/{column.dataset.shards[shard]}.json"


def payload_name(column: Column, shard: int, record: dict[str, Any]) -> str:
    """The payload's name relative to the dataset's folder."""
    root, own = column.dataset.root, f"{column.dataset.shards[shard]}.{'npy' if column.kind == 'matrix' else 'tar'}"
    return relative(column.folder / record.get("url", own), root, column.dataset.place)


def parsed(source: Store, names: list[str]) -> dict[str, Any]:
    """Read JSON files from a store and check commit records.

    Args:
        source: The store.
        names: Names of the files.

    Returns:
        JSON object by name.

    Raises:
        DataError: A file is damaged; names the object in the store.
    """
    values = {}
    for name, data in zip(names, source.read(names), strict=True):
        place = f"{source.url}/{name}"
        try:
            values[name] = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{place}: not valid JSON ({e})") from e
        if not isinstance(values[name], dict):
            raise DataError(f"{place}: expected a JSON object, found {repr(values[name])[:80]}")
        if name.count("/") == 1 and not name.endswith("/column.json"):
            records.check(values[name], place)
    return values


def compare(place: str, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse to mix two datasets.

    Args:
        place: Where the copy is made, for messages.
        there: The JSON files that exist there, by name.
        asked: The JSON files to be copied, by name.

    Raises:
        DataError: An existing file is another one; shows the difference.
    """
    lines = list(_differences(there, asked))
    if lines:
        shown = "\n  ".join(lines[:20] + ([f"... {len(lines) - 20} more"] if len(lines) > 20 else []))
        raise DataError(
            f"{place}: already holds something else; the difference:\n  {shown}\nuse another place, or remove what is"
            " there"
        )


def _differences(there: dict[str, Any], asked: dict[str, Any]) -> Iterator[str]:
    for name, value in there.items():
        mine, other = (records.identity(one) for one in (asked[name], value))
        yield from (f"{name}: {line}" for line in store.differences(other, mine))

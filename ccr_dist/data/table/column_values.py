"""Reads the values of a column's rows.

`recorded.py` knows which shards exist; `data/media/decode.py` defines values and bytes of each kind.
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from ccr_dist.data.media import decode
from ccr_dist.data.storage import store
from ccr_dist.data.storage.file_ranges import read_at, will_read
from ccr_dist.data.storage.lru import Recent
from ccr_dist.data.table import records
from ccr_dist.data.table.dataset_rows import DatasetRows
from ccr_dist.data.table.payload import Places, load_matrix, matrix_places, tar_places
from ccr_dist.data.table.recorded import Recorded
from ccr_dist.errors import DataError

_PLACES_HELD = 1 << 23  # rows whose places a column keeps in memory, 16 bytes each


class ValueName(NamedTuple):
    """The name of a value in messages: column, shard and key. The text is made only when needed."""

    column: ReadableColumn
    shard: int
    row: int

    def __str__(self) -> str:
        dataset = self.column.dataset
        try:
            key = repr(dataset.key(self.shard, self.row))
        except OSError as e:  # the message is about another error
            key = f"in row {self.row} (its key cannot be read: {e})"
        return f"{self.column.name}/{dataset.shards[self.shard]} item {key} of {dataset.place}"


class OpenShard(NamedTuple):
    """A shard that is ready to be read.

    Attributes:
        path: The payload; None if a store backs the dataset: it is then looked up at every read.
        sha256: Digest of the payload.
        places: Positions of the rows in it.
    """

    path: str | None
    sha256: str
    places: Places


@lru_cache(maxsize=1 << 16)
def _digest(path: str, mtime: int) -> str:
    """sha256 of a file; `mtime` (ns) is part of the cache's key."""
    return store.sha256_file(path)


class ReadableColumn(Recorded):
    """A column and the values of its rows. Reading is safe in threads and after a fork.

    Wrong content is a DataError. OSErrors of reads pass; `store.retry_io` retries them.
    """

    def __init__(self, dataset: DatasetRows, name: str) -> None:
        super().__init__(dataset, name)
        self._shards: Recent[OpenShard] = Recent(max(16, _PLACES_HELD // max(1, max(dataset.shard_rows, default=1))))

    def unsealed(self) -> Self:
        """The same column, read from its records and indexes even if it is sealed."""
        column = type(self)(self.dataset, self.name)
        column._set_seal(None)
        return column

    def _forget(self, shard: int) -> None:
        super()._forget(shard)
        self._shards.pop(shard)

    # -- reading

    def _open(self, shard: int) -> OpenShard:
        record = self.record(shard)
        path = None if self.dataset.remote else str(self._unchanged(shard, self.path(shard)))
        if self._seal:
            return OpenShard(path, record["sha256"], self._seal.places(shard))
        if self.kind == "matrix":
            return OpenShard(path, record["sha256"], matrix_places(self.path(shard), record["rows"], self.dtype))
        return OpenShard(
            path,
            record["sha256"],
            tar_places(self.path(shard, "index"), record.get("index"), self.extension, record["rows"]),
        )

    def _unchanged(self, shard: int, path: Path) -> Path:
        """The payload's path. Raises DataError if size and time show that it is not the recorded file.

        A foreign tar whose time differs may have been copied or rewritten: it is hashed, once per process.
        """
        record, found = self.record(shard), os.stat(path)  # noqa: PTH116 (often)
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait
            raise DataError(f"{path}: not a plain file")
        if why := records.fault(record, found.st_size):
            raise DataError(f"{path}: {why}: truncated, damaged or changed since; `{self.remedy}` makes it again")
        if (
            record.get("mtime", found.st_mtime_ns) != found.st_mtime_ns
            and _digest(str(path), found.st_mtime_ns) != record["sha256"]
        ):
            raise DataError(
                f"{path}: changed after it was indexed (time and sha256 differ); index it again: `{self.remedy}`"
            )
        return path

    def _opened(self, shard: int) -> OpenShard:
        return self._shards.made(shard, lambda: self._open(shard))

    def places(self, shard: int) -> Places:
        """Positions of the rows in the payload.

        Raises:
            DataError: Index or payload are damaged.
            StorageError: The store behind the dataset keeps failing.
        """
        return self._opened(shard).places

    def where(self, shard: int, row: int) -> ValueName:
        """The name of a value in messages."""
        return ValueName(self, shard, row)

    def read(self, shard: int, row: int) -> bytes | None:
        """The stored bytes of a value; None where the row has no member or an empty one.

        Raises:
            DataError: The column is a matrix, or the payload is damaged.
        """
        if self.kind == "matrix":
            raise DataError(f"{self.folder}: the rows of a matrix have no bytes of their own; use value() or matrix()")
        return self._bytes(shard, row)[0]

    def _bytes(self, shard: int, row: int) -> tuple[bytes | None, int]:
        path, sha256, (offsets, sizes, width) = self._opened(shard)
        size = int(sizes[row])
        if size <= 0:
            return None, width
        return read_at(path or str(self.path(shard)), int(offsets[row]), size, sha256), width

    def value(self, shard: int, row: int) -> Any:
        """The value of a row.

        Returns:
            Bytes (image, video), list[str] (texts), {"views": {...}} (views), str (label), (n, D) of `dtype` (matrix),
            or None for a null row.

        Raises:
            DataError: The content is wrong; names the item.
        """
        data, width = self._bytes(shard, row)
        if data is None:
            return None
        if self.kind == "matrix":
            return np.frombuffer(data, self.dtype).reshape(-1, width).copy()
        return decode.decode(self.kind, data, ValueName(self, shard, row), extension=self.extension, field=self.field)

    def will_read(self, shard: int, first: int, last: int) -> None:
        """Tells the kernel that the rows from `first` to `last` of a shard will be read soon.

        Does nothing for a dataset that is backed by a store.
        """
        path, sha256, (offsets, sizes, _) = self._opened(shard)
        rows = first + np.flatnonzero(sizes[first : last + 1] > 0)
        if path and len(rows):
            will_read(path, int(offsets[rows].min()), int((offsets[rows] + sizes[rows]).max()), sha256)

    def matrix(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """All vectors of a shard.

        Returns:
            (memory-mapped (N, D) of `dtype`, offsets (rows + 1,) int64): row i has the vectors
            offsets[i]:offsets[i + 1].
        """
        return load_matrix(self.path(shard), self.record(shard)["rows"], self.dtype)

    def encode(self, value: Any) -> bytes:
        """The bytes to commit for a value; None stands for null."""
        return decode.encode(self.kind, value, f"{self.folder.name}")

"""Finds the rows of a payload: by the index of a tar, or in a matrix shard itself. Nothing is cached here.

`column.py` commits payloads; `storage/file_ranges.py` reads bytes at a place.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccr_dist.data.storage import store
from ccr_dist.data.storage.tar import ShardIndex
from ccr_dist.errors import DataError

_AGAIN = "`ccr-dist shards verify --repair` repairs it, or says what does"


class Places(NamedTuple):
    """Where each row lies in a payload.

    Attributes:
        offsets: (rows,) int64, in bytes.
        sizes: (rows,) int64, in bytes; 0 or -1: the row has no bytes.
        width: D of a matrix, otherwise 0.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    width: int = 0


def pick(index: ShardIndex, extensions: str) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, sizes), each (rows,), of the first of the extensions `a;b;c` that a row has; size -1: it has none."""
    offsets, sizes = np.zeros(len(index.keys), np.int64), np.full(len(index.keys), -1, np.int64)
    for extension in extensions.split(";"):
        if extension in index.members:
            theirs, free = index.members[extension], sizes < 0
            offsets[free], sizes[free] = theirs[0][free], theirs[1][free]
    return offsets, sizes


def index_bytes(path: Path, sha256: str | None) -> bytes:
    """An index file as it is stored.

    Args:
        path: The file.
        sha256: Its digest in the commit record; None if the record has none.

    Raises:
        DataError: It is missing or not the recorded one.
    """
    try:
        data = store.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file; {_AGAIN}") from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{path}: damaged index (not the sha256 that the commit record says); {_AGAIN}")
    return data


def read_index(path: Path, sha256: str | None) -> dict[str, Any]:
    """The content of an index file; arguments as for `index_bytes`.

    Raises:
        DataError: It is missing, damaged or not the recorded one.
    """
    data = index_bytes(path, sha256)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: damaged index (not valid JSON: {e}); {_AGAIN}") from e
    if not isinstance(content, dict):
        raise DataError(f"{path}: damaged index ({repr(content)[:80]}); {_AGAIN}")
    return content


def tar_places(path: Path, sha256: str | None, extensions: str, rows: int) -> Places:
    """The places in a tar shard, from its index file. Rows with an unusable value have none.

    Args:
        path: The index file.
        sha256: As in `read_index`.
        extensions: Extensions of the column, `a;b;c`.
        rows: How many the shard has.

    Raises:
        DataError: The index is damaged.
    """
    content = read_index(path, sha256)
    try:
        offsets, sizes = pick(ShardIndex.from_json(content), extensions)
        if len(sizes) != rows:
            raise ValueError(f"{len(sizes)} rows, expected {rows}")
        sizes[[int(row) for row in content.get("bad", ())]] = -1
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as e:
        raise DataError(f"{path}: damaged index ({e!r}); {_AGAIN}") from e
    return Places(offsets, sizes)


def present_rows(path: Path, sha256: str | None, rows: int) -> np.ndarray:
    """(rows,) bool: whether a row is not among the null rows of an index file. Raises DataError where it is damaged."""
    present, content = np.ones(rows, np.bool_), read_index(path, sha256)
    try:
        nulls = np.asarray(content["nulls"], np.int64)
        if nulls.ndim != 1 or nulls.min(initial=0) < 0:
            raise ValueError(f"null rows {nulls.tolist()[:8]}")
        present[nulls] = False
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as e:
        raise DataError(f"{path}: damaged index ({e!r}); {_AGAIN}") from e
    return present


def open_matrix(path: Path, dtype: str = "float16") -> tuple[np.memmap, np.ndarray]:
    """Opens a matrix shard of vectors of a type.

    Returns:
        (memory-mapped (N, D) of `dtype`, counts (rows,) whose sum is N).

    Raises:
        DataError: The file is not a complete matrix shard.
    """
    try:
        with store.disk_errors(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        with store.disk_errors(path), path.open("rb") as file:
            file.seek(array.offset + array.nbytes)
            counts = np.load(file, allow_pickle=False)
        whole = int(counts.sum()) == len(array) and counts.min(initial=0) >= 0
    except OSError:
        raise
    except Exception as e:  # for a damaged header NumPy raises nearly anything, even MemoryError and SyntaxError
        raise DataError(f"{path}: not a complete matrix shard ({e}); {_AGAIN}") from e
    if array.ndim != 2 or array.dtype != np.dtype(dtype) or counts.ndim != 1 or not whole:
        raise DataError(
            f"{path}: expected (N, D) {dtype} and counts that sum to N, found {array.dtype} {array.shape} and"
            f" {counts.shape}; {_AGAIN}"
        )
    return array, counts


def load_matrix(path: Path, rows: int, dtype: str = "float16") -> tuple[np.memmap, np.ndarray]:
    """Opens a committed matrix shard.

    Returns:
        (memory-mapped (N, D) of `dtype`, offsets (rows + 1,)): row i has the vectors offsets[i]:offsets[i + 1].

    Raises:
        DataError: The file is damaged or has another number of rows.
    """
    array, counts = open_matrix(path, dtype)
    if len(counts) != rows:
        raise DataError(f"{path}: {len(counts)} rows, expected {rows}; {_AGAIN}")
    return array, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def matrix_places(path: Path, rows: int, dtype: str = "float16") -> Places:
    """The places of a matrix shard's rows: the bytes of their vectors, to be read like members of a tar."""
    array, offsets = load_matrix(path, rows, dtype)
    vector = array.shape[1] * array.itemsize
    return Places(array.offset + offsets[:-1] * vector, np.diff(offsets) * vector, array.shape[1])

"""Reading the payload files of a column: where values lie in a tar, and what a matrix shard holds. Cached, read-only.

What a column is, and how payloads are committed, is in `table.py`. Caches are keyed by the payload's digest, so that they can never
serve another payload, and are safe in threads and after fork.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ccr_dist.data import store
from ccr_dist.data.tar import ShardIndex
from ccr_dist.errors import DataError

_AGAIN = "remove it and the record beside it and run the command that makes the column again"


class Places(NamedTuple):
    """The part of an index that reading needs: (rows,) byte offsets and sizes (-1: no member; empty for a matrix), and presence."""

    offsets: np.ndarray
    sizes: np.ndarray
    present: np.ndarray


def pick(index: ShardIndex, extensions: str) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, sizes) of the first of the extensions `a;b;c` that each row has; size -1 where it has none."""
    offsets, sizes = np.zeros(len(index.keys), np.int64), np.full(len(index.keys), -1, np.int64)
    for extension in extensions.split(";"):
        if extension in index.members:
            theirs, free = index.members[extension], sizes < 0
            offsets[free], sizes[free] = theirs[0][free], theirs[1][free]
    return offsets, sizes


@lru_cache(maxsize=512)
def load_places(path: str, extensions: str, rows: int, sha256: str) -> Places:
    """From an index file. DataError when it is damaged."""
    content = store.read_json(path)
    try:
        offsets = sizes = np.empty(0, np.int64)
        if "members" in content:
            offsets, sizes = pick(ShardIndex.from_json(content), extensions)
            if len(sizes) != rows:
                raise ValueError(f"{len(sizes)} rows, expected {rows}")
        present = np.ones(rows, np.bool_)
        present[np.asarray(content["nulls"], np.int64)] = False
    except (KeyError, TypeError, IndexError, ValueError) as e:
        raise DataError(f"{path}: damaged index ({e!r}); {_AGAIN}") from e
    return Places(offsets, sizes, present)


def open_matrix(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(memory-mapped (N, D) float16, counts (rows,) that sum to N) of a matrix shard. DataError when it is not one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            file.seek(array.offset + array.nbytes)
            counts = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, AttributeError) as e:
        raise DataError(f"{path}: not a whole matrix shard ({e}); {_AGAIN}") from e
    if array.ndim != 2 or array.dtype != np.float16 or counts.ndim != 1 or int(counts.sum()) != len(array):
        raise DataError(
            f"{path}: expected (N, D) float16 and counts that sum to N, found {array.dtype} {array.shape} and {counts.shape}; {_AGAIN}"
        )
    return array, counts


@lru_cache(maxsize=128)
def load_matrix(path: str, rows: int, sha256: str) -> tuple[np.ndarray, np.ndarray]:
    """(memory-mapped (N, D), offsets (rows + 1,)) of a committed matrix shard."""
    array, counts = open_matrix(Path(path))
    if len(counts) != rows:
        raise DataError(f"{path}: {len(counts)} rows, expected {rows}; {_AGAIN}")
    return array, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

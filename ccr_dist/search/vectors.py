"""The rows of an index by number: where they lie in the segments, and in fewer bytes beside them.

segments/000000/feature.rows/              the rows, float32: a column of the segment
segments/000000/search/search.json         how long they are at most, shard by shard
segments/000000/search/values.npy, ...     the rows in float16 or int8, where the index is searched in that
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from ccr_dist.data.storage import store
from ccr_dist.data.storage.checked import read_checked
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError
from ccr_dist.scoring import gallery
from ccr_dist.scoring.gallery import Gallery, row_lengths
from ccr_dist.search.state import ROWS, SEGMENTS, Segment

Dtype = Literal["float32", "float16", "int8"]
SEARCH, RECORD = "search", "search.json"
_ARRAYS: dict[Dtype, tuple[str, ...]] = {
    "float32": (),
    "float16": ("values", "errors"),
    "int8": ("values", "errors", "scales"),
}
_READ_ROWS = 4096  # rows that are reduced at a time


class Block(NamedTuple):
    """Rows that lie together.

    Attributes:
        rows: (m, visual_width) float32, memory-mapped.
        numbers: (m,) int64, ascending.
    """

    rows: np.ndarray
    numbers: np.ndarray


class Vectors:
    """The rows of all segments.

    Args:
        root: the index.
        segments: of one of its states.
        dtype: in which they are searched.

    Attributes:
        blocks: the float32 rows.
        numbers: (N,) int64, ascending: of the rows of `gallery`.
        gallery: for products of rows; None where there is no row.

    Raises:
        DataError: a segment is damaged.
    """

    def __init__(self, root: Path, segments: Sequence[Segment], dtype: Dtype) -> None:
        self.blocks: list[Block] = []
        parts: list[gallery.Segment] = []
        for segment in segments:
            column = _column(root, segment)
            blocks = list(_blocks(column, segment.first))
            self.blocks += blocks
            parts += _reduced(column.dataset.root, blocks, dtype)
        self.numbers = np.concatenate([np.zeros(0, np.int64), *(block.numbers for block in self.blocks)])
        self.gallery = Gallery(parts) if parts else None

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, visual_width) float32 of n numbers. Raises DataError for one without a row."""
        asked = np.asarray(numbers)
        if asked.ndim != 1 or (len(asked) and asked.dtype.kind not in "iu"):
            raise DataError(f"numbers {numbers!r}: expected a list of whole numbers")
        asked = asked.astype(np.int64)
        at = np.searchsorted(self.numbers, asked)
        there = at < len(self.numbers)
        there[there] = self.numbers[at[there]] == asked[there]
        if self.gallery is None or not there.all():
            raise DataError(f"the index has no row of number {asked[~there][0]}")
        return self.gallery.take(at)


def _column(root: Path, segment: Segment) -> Column:
    folder = root / SEGMENTS / segment.id
    if not (folder / "dataset.json").is_file():
        raise DataError(f"{folder}: a part of the index is gone; bring it back from a copy, or make a new index")
    dataset = Dataset(folder)
    if dataset.rows != segment.rows:
        raise DataError(f"{dataset.root}: {dataset.rows} rows, the index records {segment.rows}: it is damaged")
    return dataset.column(ROWS)


def _blocks(column: Column, first: int) -> Iterator[Block]:
    for shard, rows in enumerate(column.dataset.shard_rows):
        array, offsets = column.matrix(shard)
        if len(array):
            yield Block(array, first + np.flatnonzero(np.diff(offsets)))
        first += rows


def reduce(root: Path, segment: Segment, dtype: Dtype) -> None:
    """Makes what searches of a complete segment read besides its rows. The same whoever does it, and done once.

    Args:
        root: the index.
        segment: all of its rows are there.
        dtype: in which it is searched.
    """
    column = _column(root, segment)
    folder = column.dataset.root / SEARCH
    if (folder / RECORD).exists():
        return
    folder.mkdir(exist_ok=True)
    store.tidy(folder)
    blocks = list(_blocks(column, segment.first))
    count, width = sum(len(block.rows) for block in blocks), blocks[0].rows.shape[1] if blocks else 0
    kinds = {"values": ((count, width), dtype), "errors": ((count,), "float32"), "scales": ((count,), "float32")}
    wanted = {name: kinds[name] for name in _ARRAYS[dtype] if blocks}
    longest = []
    with _arrays(folder, wanted) as add:
        for block in blocks:
            most = 0.0
            for start in range(0, len(block.rows), _READ_ROWS):
                rows = np.asarray(block.rows[start : start + _READ_ROWS])
                if dtype != "float32":
                    values, scales, errors = gallery.reduce(rows, dtype)
                    add(values=values, errors=errors, scales=scales)
                    rows = gallery.Segment(values, scales).reduced(slice(None))
                most = max(most, float(row_lengths(rows).max()))
            longest.append(most)
    about = {"dtype": dtype, "rows": count, "longest": longest}
    store.create_once(folder / RECORD, store.pretty_json(store.with_digest(about)))


@contextlib.contextmanager
def _arrays(folder: Path, kinds: Mapping[str, tuple[tuple[int, ...], str]]) -> Iterator[Callable[..., None]]:
    """Files of arrays, name -> (shape, dtype), that get their names when all are whole. Yields what adds rows to them.

    They are not mapped: the kernel ends a process (SIGBUS) that writes to a page for which the disk has no room.
    """
    with contextlib.ExitStack() as opened:
        made: dict[str, tuple[Path, BinaryIO]] = {}
        for name, (shape, dtype) in kinds.items():
            tmp = opened.enter_context(store.staged(folder / f"{name}.npy"))
            file: BinaryIO = opened.enter_context(tmp.open("wb"))
            about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, about)
            made[name] = tmp, file

        def add(**rows: np.ndarray) -> None:
            for name, (_, file) in made.items():
                file.write(rows[name].astype(kinds[name][1], copy=False).tobytes())

        yield add
        for name, (tmp, file) in made.items():
            file.flush()
            os.fsync(file.fileno())
            tmp.replace(folder / f"{name}.npy")


def _reduced(root: Path, blocks: Sequence[Block], dtype: Dtype) -> list[gallery.Segment]:
    """The parts of a gallery that the blocks of a segment are."""
    folder = root / SEARCH
    if not blocks:
        return []
    try:
        about, sealed = read_checked(folder / RECORD, error=DataError)
        arrays: dict[str, Any] = {}
        for name in _ARRAYS[dtype]:
            arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: missing or damaged ({error}); remove it and run `ccr-dist index` again") from None
    count = sum(len(block.rows) for block in blocks)
    if not sealed or (about["dtype"], about["rows"], len(about["longest"])) != (dtype, count, len(blocks)):
        raise DataError(f"{folder / RECORD}: damaged; remove {folder} and run `ccr-dist index` again")
    parts, at = [], 0
    for block, longest in zip(blocks, about["longest"], strict=True):
        here = slice(at, at + len(block.rows))
        at += len(block.rows)
        if dtype == "float32":
            parts.append(gallery.Segment(block.rows, longest=longest))
        else:
            cut = {name: array[here] for name, array in arrays.items()}
            parts.append(gallery.Segment(**cut, exact=block.rows, longest=longest))
    return parts

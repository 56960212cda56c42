"""A sealed column: what its records and indexes say, in two files, so that opening it takes two reads instead of two a shard.

    COLUMN/sealed.json   {"format": 1, "dataset", "plan": digests, "width": D of a matrix, else 0, "places": {"bytes", "sha256"} of
                         sealed.npy, "shards": [{"bytes", "sha256", "nulls" [, "url"]}]}; written last
    COLUMN/sealed.npy    uint8, the rows with a value as bits, each shard from a new byte on (empty if there is no null row); then, in
                         the same file, int64 (rows, 2), offset and size in the payload (of a matrix: its vectors' bytes; size 0 or
                         -1: no bytes)

Derived, hence never part of any digest, not pushed to stores, and made (`ccr-dist shards seal`) or removed at will; committing a shard
removes it. `tests/benchmarks/loader_start.py` measures what it saves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccr_dist.data import store
from ccr_dist.data.bar import bar
from ccr_dist.data.payload import Places
from ccr_dist.data.tar import read_at
from ccr_dist.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ccr_dist.data.column import Column
    from ccr_dist.data.table import Dataset

FORMAT = 1
META, _PLACES = "sealed.json", "sealed.npy"


class Seal:
    """The seal of a column. DataError when it is damaged, or of another dataset or plan."""

    def __init__(self, column: Column, meta: dict[str, Any]) -> None:
        self._column, dataset = column, column.dataset
        meta_path, self._path = column.folder / META, column.folder / _PLACES
        asked = {"format": FORMAT, "dataset": dataset.digest, "plan": column.plan_digest}
        rows = np.asarray(dataset.shard_rows, np.int64)
        try:
            self._shards, self._width, self._sha256 = meta["shards"], int(meta["width"]), meta["places"]["sha256"]
            fits = {key: meta[key] for key in asked} == asked and len(self._shards) == len(rows)
            with self._path.open("rb") as file:
                self._bits = np.load(file, allow_pickle=False)
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                self._at = file.tell()
                size = os.fstat(file.fileno()).st_size
            fits = fits and shape == (dataset.rows, 2) and dtype == np.int64 and size == meta["places"]["bytes"]
        except (KeyError, TypeError, ValueError, EOFError, FileNotFoundError) as e:
            raise DataError(f"{meta_path}: damaged seal ({e!r}); remove it, or make it again with `ccr-dist shards seal`") from e
        if not fits:
            raise DataError(f"{meta_path}: the seal of something else; remove it, or make it again with `ccr-dist shards seal`")
        self._first = np.concatenate([[0], np.cumsum(rows)])
        self._first_bit = np.concatenate([[0], np.cumsum((rows + 7) // 8)])

    def record(self, shard: int) -> dict[str, Any]:
        """As the commit record has it."""
        dataset, mine = self._column.dataset, self._shards[shard]
        same = {"rows": dataset.shard_rows[shard], "bytes": mine["bytes"], "sha256": mine["sha256"], "plan": self._column.plan_digest}
        return {**same, "keys": dataset.shard_keys[shard], **{key: mine[key] for key in ("nulls", "url") if key in mine}}

    def present(self, shard: int) -> np.ndarray:
        """(rows,) bool."""
        rows = self._column.dataset.shard_rows[shard]
        if not self._shards[shard]["nulls"]:
            return np.ones(rows, np.bool_)
        start, stop = self._first_bit[shard : shard + 2]
        return np.unpackbits(self._bits[start:stop], count=rows).astype(np.bool_)

    def places(self, shard: int) -> Places:
        start, stop = (int(row) for row in self._first[shard : shard + 2])
        data = read_at(self._path, self._at + 16 * start, 16 * (stop - start), self._sha256)
        pairs = np.frombuffer(data, np.int64).reshape(-1, 2)
        return Places(pairs[:, 0], pairs[:, 1], self._width)


def load(column: Column) -> Seal | None:
    """The seal of a column; None where there is none."""
    path = column.folder / META
    return Seal(column, store.read_json(path)) if path.exists() else None


def remove(folder: Path) -> None:
    """Before a shard is committed; nothing where there is no seal."""
    (folder / META).unlink(missing_ok=True)


def seal(dataset: Dataset, *, progress: bool = False) -> tuple[list[str], list[str]]:
    """Seals the complete columns: names of (those sealed now, those left out because shards are missing). What was sealed is kept,
    unless it is damaged.

    ConfigError where a store is behind the dataset; DataError for damaged records and indexes.
    """
    if dataset.remote:
        raise ConfigError(f"{dataset.place}: columns are sealed where all their files are; `ccr-dist shards pull` the dataset first")
    columns = [dataset.column(name) for name in dataset.columns()]
    todo = [column for column in columns if not column.missing() and not _sealed(column)]
    with bar(progress, "sealing", len(todo) * len(dataset.shards), "shards") as advance:
        for column in todo:
            for _ in _write(column):
                advance()
    return [column.name for column in todo], [column.name for column in columns if column.missing()]


def _sealed(column: Column) -> bool:
    """Whether there is a seal; one that is damaged is removed."""
    try:
        return load(column) is not None
    except DataError:
        remove(column.folder)
        return False


def _write(column: Column) -> Iterator[None]:
    shards = range(len(column.dataset.shards))
    records = [column.record(shard) for shard in shards]
    some = any(record["nulls"] for record in records)
    masks = [np.packbits(column.present(shard)) for shard in shards] if some else [np.zeros(0, np.uint8)]
    widths: dict[int, str] = {}
    path = column.folder / _PLACES
    with store.staged(path) as tmp:
        with tmp.open("wb") as file:
            np.save(file, np.concatenate(masks))
            header = {"descr": "<i8", "fortran_order": False, "shape": (column.dataset.rows, 2)}
            np.lib.format.write_array_header_1_0(file, header)
            for shard in shards:
                places = column.places(shard)
                widths.setdefault(places.width, column.dataset.shards[shard])
                file.write(np.stack([places.offsets, places.sizes], axis=1).astype("<i8").tobytes())
                yield
            file.flush()
            os.fsync(file.fileno())
        if len(widths) > 1:
            found = ", ".join(f"{width} in {shard}" for width, shard in widths.items())
            raise DataError(f"{column.folder}: vectors of different widths ({found}); the column cannot be used")
        sha256, size = store.sha256_file(tmp), tmp.stat().st_size
        tmp.replace(path)  # there may be one of a seal that was removed
        store.sync_folder(column.folder)
    kept = [{key: record[key] for key in ("bytes", "sha256", "nulls", "url") if key in record} for record in records]
    about = {"format": FORMAT, "dataset": column.dataset.digest, "plan": column.plan_digest, "width": next(iter(widths), 0)}
    store.create_once(column.folder / META, store.canonical_json({**about, "places": {"bytes": size, "sha256": sha256}, "shards": kept}))


def differences(column: Column) -> Iterator[str]:
    """Where the seal of a column, if there is one, differs from its records and indexes. `column` was opened without its seal."""
    if (sealed := load(column)) is None:
        return
    for shard in range(len(column.dataset.shards)):
        same = column.path(shard, "record").exists() and sealed.record(shard) == column.record(shard)
        if same:
            mine, theirs = sealed.places(shard), column.places(shard)
            same = np.array_equal(mine.offsets, theirs.offsets) and np.array_equal(mine.sizes, theirs.sizes) and mine.width == theirs.width
            same = same and np.array_equal(sealed.present(shard), column.present(shard))
        if not same:
            yield f"not what the record and index of shard {column.dataset.shards[shard]} say; remove it, or seal again"

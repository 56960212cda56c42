"""A sealed column: what its records and indexes say, in two files, so that opening it takes two reads instead of two a
shard.

    COLUMN/sealed.json   {"format": 1, "dataset", "plan": digests, "width": D of a matrix, else 0, "places": {"bytes",
                         "sha256"} of sealed.npy, "shards": [what the commit record has beside rows, plan and keys, and
                         "check": sha256 of the shard's part of sealed.npy], "digest": of the rest}; written last
    COLUMN/sealed.npy    uint8, the rows with a value as bits, each shard from a new byte on (empty if there is no null
                         row); then, in the same file, int64 (rows, 2), offset and size in the payload (of a matrix: its
                         vectors' bytes; size 0 or -1: no bytes)

Derived, hence never part of any digest, not pushed to stores, and made (`ccr-dist shards seal`) or removed at will;
committing a shard removes it. `tests/benchmarks/loader_start.py` measures what it saves.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccr_dist.data.storage import store
from ccr_dist.data.storage.progress_bar import bar
from ccr_dist.data.storage.tar import read_at
from ccr_dist.data.table import records
from ccr_dist.data.table.payload import Places
from ccr_dist.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ccr_dist.data.table.column import Column
    from ccr_dist.data.table.dataset import Dataset
    from ccr_dist.data.table.recorded import Recorded

FORMAT = 1
_FIELDS = {"format": int, "dataset": str, "plan": str, "width": int, "places": dict, "shards": list}
_AGAIN = "remove it, or make it again with `ccr-dist shards seal`"
META, _PLACES = "sealed.json", "sealed.npy"


class Seal:
    """The seal of a column. DataError when it is damaged, or of another dataset or plan."""

    def __init__(self, column: Recorded, meta: dict[str, Any]) -> None:
        self._column, dataset = column, column.dataset
        meta_path, self._path = column.folder / META, column.folder / _PLACES
        asked = {"format": FORMAT, "dataset": dataset.digest, "plan": column.plan_digest}
        rows = np.asarray(dataset.shard_rows, np.int64)
        try:
            store.check_object(meta, _FIELDS, meta_path)
            self._shards = meta["shards"]
            self._width, self._sha256 = meta["width"], str(meta["places"]["sha256"])
            fits = {key: meta[key] for key in asked} == asked and len(self._shards) == len(rows)
            with store.disk_errors(self._path), self._path.open("rb") as file:
                self._bits = np.load(file, allow_pickle=False)
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                self._at = file.tell()
                size = os.fstat(file.fileno()).st_size
            fits = (
                fits
                and all(isinstance(shard, dict) for shard in self._shards)
                and self._bits.dtype == np.uint8
                and self._bits.ndim == 1
            )
            fits = fits and shape == (dataset.rows, 2) and dtype == np.int64 and size == meta["places"]["bytes"]
        except (FileNotFoundError, DataError) as e:
            raise DataError(f"{meta_path}: damaged seal ({e}); {_AGAIN}") from e
        except OSError:
            raise
        except Exception as e:  # NumPy raises nearly anything over a damaged header
            raise DataError(f"{meta_path}: damaged seal ({e!r}); {_AGAIN}") from e
        if not fits:
            raise DataError(f"{meta_path}: the seal of something else; {_AGAIN}")
        self._first = np.concatenate([[0], np.cumsum(rows)])
        self._first_bit = np.concatenate([[0], np.cumsum((rows + 7) // 8)])

    def record(self, shard: int) -> dict[str, Any]:
        """As the commit record has it."""
        dataset, mine = (
            self._column.dataset,
            {key: value for key, value in self._shards[shard].items() if key != "check"},
        )
        record = {
            "rows": dataset.shard_rows[shard],
            "plan": self._column.plan_digest,
            "keys": dataset.shard_keys[shard],
            **mine,
        }
        return records.check(record, self._column.folder / META)

    def _part(self, shard: int) -> tuple[bytes, bytes]:
        """(bits of the rows with a value, places) as they are stored. DataError when they are not what was sealed."""
        start, stop = (int(row) for row in self._first[shard : shard + 2])
        data = read_at(self._path, self._at + 16 * start, 16 * (stop - start), self._sha256)
        first, last = self._first_bit[shard : shard + 2]
        bits = self._bits[first:last].tobytes()
        if self._shards[shard].get("check", check := _check(bits, data)) != check:
            name = self._column.dataset.shards[shard]
            raise DataError(f"{self._path}: damaged seal (the part of shard {name} is not what was sealed); {_AGAIN}")
        return bits, data

    def present(self, shard: int) -> np.ndarray:
        """(rows,) bool. DataError."""
        rows = self._column.dataset.shard_rows[shard]
        if not self.record(shard)["nulls"]:
            return np.ones(rows, np.bool_)
        return np.unpackbits(np.frombuffer(self._part(shard)[0], np.uint8), count=rows).astype(np.bool_)

    def places(self, shard: int) -> Places:
        pairs = np.frombuffer(self._part(shard)[1], np.int64).reshape(-1, 2)
        return Places(pairs[:, 0], pairs[:, 1], self._width)


def _check(bits: bytes, places: bytes) -> str:
    return hashlib.sha256(bits + places).hexdigest()


def load(column: Recorded) -> Seal | None:
    """The seal of a column; None where there is none."""
    path = column.folder / META
    return Seal(column, store.read_json(path)) if path.exists() else None


def remove(folder: Path) -> None:
    """Before a shard is committed; nothing where there is no seal."""
    (folder / META).unlink(missing_ok=True)


def seal(dataset: Dataset, *, progress: bool = False) -> tuple[list[str], list[str]]:
    """Seals the complete columns: names of (those sealed now, those left out because shards are missing). What was
    sealed is kept, unless it is damaged.

    ConfigError where a store is behind the dataset; DataError for damaged records and indexes.
    """
    if dataset.remote:
        raise ConfigError(
            f"{dataset.place}: columns are sealed where all their files are; `ccr-dist shards pull` the dataset first"
        )
    for folder in (dataset.root / name for name in dataset.columns()):
        store.tidy(folder)
    columns = [column for name in dataset.columns() if not _sealed(column := dataset.column(name).unsealed())]
    left = [column.name for column in columns if column.missing()]
    todo = [column for column in columns if column.name not in left]
    with bar(progress, "sealing", len(todo) * len(dataset.shards), "shards") as advance:
        for column in todo:
            for _ in _write(column):
                advance()
            dataset.forget(column.name)
    return [column.name for column in todo], left


def _sealed(column: Column) -> bool:
    """Whether there is a seal; one that is damaged is removed."""
    try:
        return load(column) is not None
    except DataError:
        remove(column.folder)
        return False


def _write(column: Column) -> Iterator[None]:
    shards = range(len(column.dataset.shards))
    said = [column.record(shard) for shard in shards]
    some = any(record["nulls"] for record in said)
    masks = [np.packbits(column.present(shard)) for shard in shards] if some else [np.zeros(0, np.uint8)] * len(shards)
    checks = []
    widths: dict[int, str] = {}
    path = column.folder / _PLACES
    with store.staged(path) as tmp:
        with tmp.open("wb") as file:
            np.save(file, np.concatenate([*masks, np.zeros(0, np.uint8)]))
            header = {"descr": "<i8", "fortran_order": False, "shape": (column.dataset.rows, 2)}
            np.lib.format.write_array_header_1_0(file, header)
            for shard in shards:
                places = column.places(shard)
                widths.setdefault(places.width, column.dataset.shards[shard])
                data = np.stack([places.offsets, places.sizes], axis=1).astype("<i8").tobytes()
                checks.append(_check(masks[shard].tobytes(), data))
                file.write(data)
                yield
            file.flush()
            os.fsync(file.fileno())
        if len(widths) > 1:
            found = ", ".join(f"{width} in {shard}" for width, shard in widths.items())
            raise DataError(f"{column.folder}: vectors of different widths ({found}); the column cannot be used")
        sha256, size = store.sha256_file(tmp), tmp.stat().st_size
        tmp.replace(path)  # there may be one of a seal that was removed
        store.sync_folder(column.folder)
    kept = [
        {**{key: value for key, value in record.items() if key not in records.OF_THE_DATASET}, "check": check}
        for record, check in zip(said, checks, strict=True)
    ]
    about = {
        "format": FORMAT,
        "dataset": column.dataset.digest,
        "plan": column.plan_digest,
        "width": next(iter(widths), 0),
    }
    content = store.with_digest({**about, "places": {"bytes": size, "sha256": sha256}, "shards": kept})
    store.create_once(column.folder / META, store.canonical_json(content))


def differences(column: Column) -> Iterator[str]:
    """Where the seal of a column, if there is one, differs from its records and indexes. `column` was opened without
    its seal.
    """
    if (sealed := load(column)) is None:
        return
    for shard in range(len(column.dataset.shards)):
        record, mine, bits = sealed.record(shard), sealed.places(shard), sealed.present(shard)
        try:
            theirs, same = column.places(shard), record == column.record(shard)
            same = same and np.array_equal(mine.offsets, theirs.offsets) and np.array_equal(mine.sizes, theirs.sizes)
            same = same and mine.width == theirs.width and np.array_equal(bits, column.present(shard))
        except (DataError, OSError):
            if column.path(shard, "record").exists():
                continue  # what is wrong is told where the shard itself is looked at
            same = False
        if not same:
            yield f"not what the record and index of shard {column.dataset.shards[shard]} say; remove it, or seal again"

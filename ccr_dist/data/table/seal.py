"""A sealed column: the content of its records and indexes in two files, so that opening it takes two reads instead of
two per shard.

    COLUMN/sealed.json   {"format": 1, "dataset", "plan": digests, "width": D of a matrix, else 0, "places": {"bytes",
                         "sha256"} of sealed.npy, "shards": [what the commit record has beside rows, plan and keys, and
                         "check": sha256 of the shard's part of sealed.npy], "digest": of the rest}; written last
    COLUMN/sealed.npy    uint8, the rows with a value as bits, each shard from a new byte on (empty if there is no null
                         row); then, in the same file, int64 (rows, 2), offset and size in the payload (of a matrix: its
                         vectors' bytes; size 0 or -1: no bytes)

A seal is derived data: it is part of no digest, is not pushed to stores, and can be made (`ccr-dist shards seal`) or
removed at any time. Committing a shard removes it. `tests/benchmarks/loader_start.py` measures what it saves.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.data.storage import store
from ccr_dist.data.storage.file_ranges import read_at
from ccr_dist.data.table import records
from ccr_dist.data.table.dataset_rows import DatasetRows
from ccr_dist.data.table.payload import Places
from ccr_dist.errors import DataError

FORMAT = 1
_FIELDS = {"format": int, "dataset": str, "plan": str, "width": int, "places": dict, "shards": list}
_AGAIN = "remove it, or make it again with `ccr-dist shards seal`"
META, PLACES = "sealed.json", "sealed.npy"


class Seal:
    """The seal of a column.

    Args:
        dataset: The dataset of the column.
        folder: The column's folder.
        plan_digest: Digest of the column's plan.
        meta: The content of sealed.json.

    Raises:
        DataError: It is damaged, or belongs to another dataset or plan.
    """

    def __init__(self, dataset: DatasetRows, folder: Path, plan_digest: str, meta: dict[str, Any]) -> None:
        self._dataset, self._folder, self._plan_digest = dataset, folder, plan_digest
        meta_path, self._path = folder / META, folder / PLACES
        asked = {"format": FORMAT, "dataset": dataset.digest, "plan": plan_digest}
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
            raise DataError(f"{meta_path}: this seal belongs to another dataset or plan; {_AGAIN}")
        self._first = np.concatenate([[0], np.cumsum(rows)])
        self._first_bit = np.concatenate([[0], np.cumsum((rows + 7) // 8)])

    def record(self, shard: int) -> dict[str, Any]:
        """The content of a shard's commit record, without `digest`."""
        record = {
            "rows": self._dataset.shard_rows[shard],
            "plan": self._plan_digest,
            "keys": self._dataset.shard_keys[shard],
            **{key: value for key, value in self._shards[shard].items() if key != "check"},
        }
        return records.check(record, self._folder / META)

    def _part(self, shard: int) -> tuple[bytes, bytes]:
        """(bits of the rows with a value, places) as stored. Raises DataError where they are not what was sealed."""
        start, stop = (int(row) for row in self._first[shard : shard + 2])
        data = read_at(self._path, self._at + 16 * start, 16 * (stop - start), self._sha256)
        first, last = self._first_bit[shard : shard + 2]
        bits = self._bits[first:last].tobytes()
        if self._shards[shard].get("check", check := check_of(bits, data)) != check:
            name = self._dataset.shards[shard]
            raise DataError(f"{self._path}: damaged seal (the part of shard {name} is not what was sealed); {_AGAIN}")
        return bits, data

    def present(self, shard: int) -> np.ndarray:
        """(rows,) bool: whether the row has a value. Raises DataError where the seal is damaged."""
        rows = self._dataset.shard_rows[shard]
        if not self.record(shard)["nulls"]:
            return np.ones(rows, np.bool_)
        return np.unpackbits(np.frombuffer(self._part(shard)[0], np.uint8), count=rows).astype(np.bool_)

    def places(self, shard: int) -> Places:
        """Where the rows lie in the payload. Raises DataError where the seal is damaged."""
        pairs = np.frombuffer(self._part(shard)[1], np.int64).reshape(-1, 2)
        return Places(pairs[:, 0], pairs[:, 1], self._width)


def check_of(bits: bytes, places: bytes) -> str:
    """The checksum in `sealed.json` of a shard's part of `sealed.npy`."""
    return hashlib.sha256(bits + places).hexdigest()


def load(dataset: DatasetRows, folder: Path, plan_digest: str) -> Seal | None:
    """The seal of the column in `folder`, or None. Raises DataError where it is damaged."""
    path = folder / META
    if not path.exists():
        return None
    try:
        meta = store.read_json(path)
    except DataError as e:
        raise DataError(f"{path}: damaged seal ({e}); {_AGAIN}") from e
    return Seal(dataset, folder, plan_digest, meta)


def remove(folder: Path) -> None:
    """Removes the seal of a column, if it has one. To be called before a shard is committed."""
    (folder / META).unlink(missing_ok=True)

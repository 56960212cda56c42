"""A column of a dataset: which shards are there, reading values of rows, committing shards.

The layout on disk is described in `table.py`, values and bytes of each kind in `decode.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ccr_dist.data import decode, seal, store
from ccr_dist.data.keys import keys_digest
from ccr_dist.data.names import maker
from ccr_dist.data.payload import Places, load_matrix, matrix_places, open_matrix, pick, present_rows, tar_places
from ccr_dist.data.recent import Recent
from ccr_dist.data.tar import ShardIndex, TarWriter, read_at, will_read
from ccr_dist.errors import DataError

if TYPE_CHECKING:
    from ccr_dist.data.table import Dataset

_PLACES_HELD = 1 << 23  # rows whose places a column keeps at hand, 16 bytes each


class Item(NamedTuple):
    """How messages name a value; the text is made when it is asked for."""

    column: Column
    shard: int
    row: int

    def __str__(self) -> str:
        dataset = self.column.dataset
        try:
            key = repr(dataset.key(self.shard, self.row))
        except OSError as e:  # the message is about another error
            key = f"in row {self.row} (its key cannot be read: {e})"
        return f"{self.column.name}/{dataset.shards[self.shard]} item {key} of {dataset.place}"


class Opened(NamedTuple):
    """A shard as reading needs it. path: of the payload; None: one behind a store, which is asked for at every read."""

    path: str | None
    sha256: str
    places: Places


class Column:
    """One column of a dataset: `name`, `kind`, `extension`, `plan`, `plan_digest`, `provenance`, `view_of`, `field`.

    Reading is safe in threads and after fork. OSErrors of reads pass (wrap in `store.retry_io`); wrong content is a DataError.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.dataset = dataset
        self.name = name
        self.folder = dataset.root / name
        meta = store.read_json(self.folder / "column.json")
        try:
            self.kind: str = meta["kind"]
            self.extension: str = meta["extension"]
            self.plan: dict[str, Any] = meta["plan"]
            self.provenance: dict[str, Any] = meta["provenance"]
        except (KeyError, TypeError) as e:
            raise DataError(f"{self.folder / 'column.json'}: expected kind, extension, plan and provenance ({e!r})") from None
        self.view_of: str | None = meta.get("view_of")
        self.field: str | None = meta.get("field")
        self.plan_digest = store.digest_json(self.plan)
        self._records: dict[int, dict[str, Any]] = {}
        self._shards: Recent[Opened] = Recent(max(16, _PLACES_HELD // max(1, max(dataset.shard_rows, default=1))))

    def __repr__(self) -> str:
        return f"Column({str(self.folder)!r}, {self.kind})"

    def unsealed(self) -> Column:
        """The same column, read from its records and indexes even where it is sealed."""
        column = Column(self.dataset, self.name)
        column._seal = None
        return column

    @cached_property
    def _seal(self) -> seal.Seal | None:
        return seal.load(self)

    # -- what is there

    def path(self, shard: int, what: str = "payload", *, fetch: bool = True) -> Path:
        """A file of a shard: payload, index, record or stats. The payload of an indexed shard is the foreign tar.

        Of a dataset with a store behind it, payload and index are fetched if they are not here, unless fetch=False.

        StorageError, ConfigError.
        """
        name, remote = self.dataset.shards[shard], self.dataset.remote
        if what in ("record", "stats"):
            return self.folder / (name + {"record": ".json", "stats": ".stats.json"}[what])
        recorded = self._seal or shard in self._records or self.path(shard, "record").exists()
        if what == "index":
            path = self.folder / f"{name}.index.json"
            if remote and recorded and fetch:
                remote.bring(path, lambda: [f"{self.name}/{self.dataset.shards[i]}.index.json" for i in self.finished()])
            return path
        own = name + (".npy" if self.kind == "matrix" else ".tar")
        if not recorded:
            return self.folder / own
        path = self.folder / self.record(shard).get("url", own)
        return remote.payload(path, self.record(shard)) if remote and fetch else path

    def finished(self) -> set[int]:
        """The shards that have a commit record, by looking."""
        names = set(os.listdir(self.folder))  # noqa: PTH208
        return {i for i, shard in enumerate(self.dataset.shards) if f"{shard}.json" in names}

    def missing(self) -> list[int]:
        done = self.finished()
        return [i for i in range(len(self.dataset.shards)) if i not in done]

    def require_complete(self) -> None:
        """DataError naming the missing shards and what would make them."""
        if self._seal:
            return
        if missing := self.missing():
            names = ", ".join(self.dataset.shards[i] for i in missing[:8]) + (", ..." if len(missing) > 8 else "")
            raise DataError(
                f"{self.dataset.place}/{self.name}: {len(missing)} of {len(self.dataset.shards)} shards are missing ({names}); "
                f"run the command that makes the column (usually `{maker(self.name, self.dataset.place)}`) again, "
                "it makes the missing ones only"
            )

    def record(self, shard: int) -> dict[str, Any]:
        """The commit record of a shard. DataError when it is not finished, or not of this dataset and plan."""
        if shard not in self._records:
            self._records[shard] = self._seal.record(shard) if self._seal else self._read_record(shard)
        return self._records[shard]

    def _read_record(self, shard: int) -> dict[str, Any]:
        path = self.path(shard, "record")
        try:
            record = store.read_json(path)
        except DataError:
            if path.exists():
                raise
            raise DataError(f"{path}: this shard is not finished; `{maker(self.name, self.dataset.place)}` makes such columns") from None
        expected = {"rows": self.dataset.shard_rows[shard], "keys": self.dataset.shard_keys[shard], "plan": self.plan_digest}
        store.require_same(path, {k: record.get(k) for k in expected}, expected, "the record belongs to other rows or another plan")
        return record

    @property
    def digest(self) -> str:
        """Identity of the content: dataset, plan and every payload. DataError while shards are missing."""
        self.require_complete()
        shas = [self.record(i)["sha256"] for i in range(len(self.dataset.shards))]
        how = {"kind": self.kind, "extension": self.extension, "plan": self.plan_digest, "field": self.field}
        return store.digest_json({"dataset": self.dataset.digest, **how, "shards": shas})

    def nulls(self) -> np.ndarray:
        """(shards,) int64: null rows of each shard, from the commit records. DataError where one is missing."""
        return np.array([self.record(shard)["nulls"] for shard in range(len(self.dataset.shards))], np.int64)

    def present(self, shard: int) -> np.ndarray:
        """(rows,) bool: the row has a value that is not null and not empty."""
        rows = self.record(shard)["rows"]
        return self._seal.present(shard) if self._seal else present_rows(self.path(shard, "index"), rows)

    # -- reading

    def _open(self, shard: int) -> Opened:
        record, remote = self.record(shard), self.dataset.remote
        path = None if remote else str(self.path(shard))
        if self._seal:
            return Opened(path, record["sha256"], self._seal.places(shard))
        if self.kind == "matrix":
            return Opened(path, record["sha256"], matrix_places(self.path(shard), record["rows"]))
        return Opened(path, record["sha256"], tar_places(self.path(shard, "index"), self.extension, record["rows"]))

    def _opened(self, shard: int) -> Opened:
        return self._shards.made(shard, lambda: self._open(shard))

    def places(self, shard: int) -> Places:
        """Where the rows lie in the payload. DataError, StorageError."""
        return self._opened(shard).places

    def where(self, shard: int, row: int) -> Item:
        """How messages name a value."""
        return Item(self, shard, row)

    def read(self, shard: int, row: int) -> bytes | None:
        """The stored bytes of a value (not of a matrix); None when the row has no member or an empty one."""
        if self.kind == "matrix":
            raise DataError(f"{self.folder}: a matrix column has no bytes a row; use value() or matrix()")
        return self._bytes(shard, row)[0]

    def _bytes(self, shard: int, row: int) -> tuple[bytes | None, int]:
        path, sha256, (offsets, sizes, width) = self._opened(shard)
        size = int(sizes[row])
        if size <= 0:
            return None, width
        return read_at(path or str(self.path(shard)), int(offsets[row]), size, sha256), width

    def value(self, shard: int, row: int) -> Any:
        """bytes (image, video), list[str] (texts), {"views": {...}} (views), str (label), (n, D) float16 (matrix); None for a null row."""
        data, width = self._bytes(shard, row)
        if data is None:
            return None
        if self.kind == "matrix":
            return np.frombuffer(data, np.float16).reshape(-1, width).copy()
        return decode.decode(self.kind, data, Item(self, shard, row), extension=self.extension, field=self.field)

    def will_read(self, shard: int, first: int, last: int) -> None:
        """Tells the kernel that the rows from `first` to `last` of a shard will be read soon. Not of a dataset behind a store."""
        path, sha256, (offsets, sizes, _) = self._opened(shard)
        rows = first + np.flatnonzero(sizes[first : last + 1] > 0)
        if path and len(rows):
            will_read(path, int(offsets[rows].min()), int((offsets[rows] + sizes[rows]).max()), sha256)

    def matrix(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """(memory-mapped (N, D) float16, offsets (rows + 1,) int64): row i has the vectors offsets[i]:offsets[i + 1]."""
        return load_matrix(self.path(shard), self.record(shard)["rows"])

    def encode(self, value: Any) -> bytes:
        """The bytes to commit for a value (None: null)."""
        return decode.encode(self.kind, value, f"{self.folder.name}")

    # -- writing

    def commit(self, shard: int, values: Iterable[bytes | None]) -> bool:
        """Writes a shard from its rows' encoded values, in key order; null rows are None. Exactly one of several committers gets True.

        DataError for a wrong number of values or one that does not decode; StorageError on a full disk. Both leave nothing behind.
        """
        if self.kind == "matrix":
            raise DataError(f"{self.folder}: commit_matrix() writes a matrix column")
        payload = self.path(shard)
        if self.path(shard, "record").exists():
            return False
        if not payload.exists():
            keys, null, count = self.dataset.keys(shard), b"" if self.kind in decode.BINARY else b"null", 0
            with store.staged(payload) as tmp:
                with TarWriter(tmp) as tar:
                    for data in values:
                        if count == len(keys):
                            raise DataError(f"{payload}: more values than the {len(keys)} rows of the shard")
                        data = null if data is None else data
                        if self.kind not in decode.BINARY or (data and ";" in self.extension):
                            self._check(data, f"{payload.parent.name} item {keys[count]!r}")
                        tar.add(f"{keys[count]}.{self._extension_of(data)}", data)
                        count += 1
                if count != len(keys):
                    raise DataError(f"{payload}: {count} values for the {len(keys)} rows of the shard")
                store.publish_once(tmp, payload)
        return self._record_payload(shard)

    def _check(self, data: bytes, what: str) -> None:
        if self.kind in decode.BINARY:
            found = decode.file_extension(self.kind, data, what)
            if found not in self.extension.split(";"):
                raise DataError(f"{what}: a {found} {'picture' if self.kind == 'image' else 'video'} in a column of {self.extension}")
        else:
            decode.decode(self.kind, data, what, extension=self.extension, field=self.field)

    def _extension_of(self, data: bytes) -> str:
        first, *others = self.extension.split(";")
        return decode.file_extension(self.kind, data) if others and data else first

    def commit_matrix(self, shard: int, array: np.ndarray, counts: Sequence[int] | None = None, nulls: Iterable[int] = ()) -> bool:
        """Writes a shard of vectors: array (N, D), cast to float16; counts: vectors a row, None: one for every row that is not in `nulls`.

        N is the sum of the counts; a row with none is null. The counts follow the array in the same .npy file (two `np.save`, as
        NumPy documents), so that the payload is whole by itself. Exactly one of several committers gets True.
        """
        if self.kind != "matrix":
            raise DataError(f"{self.folder}: commit() writes a {self.kind} column")
        payload, rows = self.path(shard), self.dataset.shard_rows[shard]
        if self.path(shard, "record").exists():
            return False
        if not payload.exists():
            number = np.ones(rows, np.int32) if counts is None else np.asarray(counts, np.int32)
            null_rows = np.fromiter(nulls, np.int64)
            if len(null_rows) and counts is None:
                number[null_rows] = 0
            fits = array.ndim == 2 and number.shape == (rows,) and number.min(initial=0) >= 0 and int(number.sum()) == len(array)
            if not fits or number[null_rows].any():
                found = f"counts of {number.size} rows that sum to {number.sum()}, an array {array.shape}"
                raise DataError(f"{payload}: expected {rows} counts and an array (their sum, D), no vectors for null rows; got {found}")
            with np.errstate(over="ignore"):
                half = np.ascontiguousarray(array, np.float16)
            if not np.isfinite(half).all():
                raise DataError(f"{payload}: the array has values that float16 cannot hold (largest magnitude {np.abs(array).max()})")
            with store.staged(payload) as tmp:
                with tmp.open("wb") as file:
                    np.save(file, half, allow_pickle=False)
                    np.save(file, number, allow_pickle=False)
                store.publish_once(tmp, payload)
        return self._record_payload(shard)

    def commit_foreign(self, shard: int, url: Path, index: ShardIndex, sha256: str) -> bool:
        """Records a shard whose payload is a tar made elsewhere (absolute `url`); `index` is what `ShardIndex.scan` found in it."""
        return self._record(shard, {"url": str(url)}, index, url.stat().st_size, sha256)

    def write_stats(self, shard: int, stats: dict[str, Any]) -> None:
        """Telemetry beside the shard (seconds, host, bad rows); replaces an earlier one."""
        store.replace_atomic(self.path(shard, "stats"), store.pretty_json(stats))

    def _record_payload(self, shard: int) -> bool:
        """Index and record of the payload that is there: one's own, another committer's, or one that a crash left without a record."""
        payload = self.path(shard)
        index = None if self.kind == "matrix" else ShardIndex.scan(payload)
        return self._record(shard, {}, index, payload.stat().st_size, store.sha256_file(payload))

    def _record(self, shard: int, extra: dict[str, Any], index: ShardIndex | None, size: int, sha256: str) -> bool:
        path = Path(extra.get("url", self.path(shard)))
        if index is None:
            _, counts = open_matrix(path)
            if len(counts) != self.dataset.shard_rows[shard]:
                raise DataError(f"{path}: left by something else (wrong number of rows); remove it and run again")
            nulls = np.flatnonzero(counts == 0).tolist()
            content: dict[str, Any] = {"keys": self.dataset.shard_keys[shard]}
            if (counts != 1).any():
                content["counts"] = counts.tolist()
        else:
            if keys_digest(index.keys) != self.dataset.shard_keys[shard]:
                where = f"shard {self.dataset.shards[shard]} of {self.dataset.root}"
                raise DataError(f"{path}: its keys are not those of {where}; remove it and run again")
            offsets, sizes = pick(index, self.extension)
            nulls = [i for i in range(len(index.keys)) if not self._present(path, sha256, int(offsets[i]), int(sizes[i]), index.keys[i])]
            content = index.to_json()
        store.create_once(self.path(shard, "index"), store.canonical_json({**content, "nulls": nulls}))
        record = {"rows": self.dataset.shard_rows[shard], "bytes": size, "sha256": sha256, "plan": self.plan_digest}
        record |= {"keys": self.dataset.shard_keys[shard], "nulls": len(nulls), **extra}
        seal.remove(self.folder)
        self.__dict__.pop("_seal", None)
        return store.create_once(self.path(shard, "record"), store.pretty_json(record))

    def _present(self, path: Path, sha256: str, offset: int, size: int, key: str) -> bool:
        if size <= 0 or self.kind in decode.BINARY:
            return size > 0
        what = f"{path} item {key!r}"
        value = decode.decode(self.kind, read_at(path, offset, size, sha256), what, extension=self.extension, field=self.field)
        return decode.is_present(self.kind, value)

"""A column of a dataset: its values (`column_values.py`), and committing shards of it.

The layout on disk is described in `dataset.py`, values and bytes of each kind in `data/media/decode.py`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccr_dist.data.media import decode
from ccr_dist.data.storage import store
from ccr_dist.data.storage.tar import ShardIndex, TarWriter, forget_files, read_at
from ccr_dist.data.table import seal
from ccr_dist.data.table.column_values import ReadableColumn
from ccr_dist.data.table.keys import keys_digest
from ccr_dist.data.table.payload import open_matrix, pick
from ccr_dist.errors import DataError


class Foreign(NamedTuple):
    """What indexing found out about a tar and one column in it. crc: (rows,) uint32, of each row's member, 0 where it
    has none; nulls: rows that say nothing; bad: rows (among the nulls) whose value cannot be used, and why; mtime:
    ns.
    """

    bytes: int
    sha256: str
    mtime: int
    crc: np.ndarray
    nulls: list[int]
    bad: dict[int, str]


class Column(ReadableColumn):
    """A column that can be read and committed to, shard by shard."""

    def settled(self, shard: int) -> bool:
        """Whether nothing is to be made of a shard: it is finished, or its payload waits for a record. One that is lost
        is set aside first.

        Asked by the process that may make the shard now. DataError for a record of other rows or another plan.
        """
        if self._seal or self.path(shard, "record").exists():
            if self.whole(shard) or self._fault(shard, set(os.listdir(self.folder))) is None:  # noqa: PTH208 (a listing is fresh on NFS)
                return True
            if not self.damaged(shard):
                self.record(shard)
            if self.confirmed(shard):  # its index or its record is at fault: as if nobody had recorded the payload yet
                self.path(shard, "record").unlink(missing_ok=True)
                self._forget(shard)
            else:
                self.set_aside(shard)
        return self.own_payload(shard).exists()

    def confirmed(self, shard: int) -> bool:
        """Whether the payload made here is there with a sha256 that the record, damaged or not, or the seal speaks of.
        Reads all of it.
        """
        payload = self.own_payload(shard)
        if not payload.exists():
            return False
        sha256 = store.sha256_file(payload).encode()
        return any(
            sha256 in store.read_bytes(path)
            for path in (self.path(shard, "record"), self.folder / seal.META)
            if path.exists()
        )

    def set_aside(self, shard: int) -> Path | None:
        """Makes a damaged shard a missing one: its own payload is kept as `<name>.damaged` (returned), what tells about
        it is removed.

        The record goes last: a shard that this was interrupted over is lost still, and set aside again.
        """
        payload, kept = self.own_payload(shard), None
        record = self.path(shard, "record")
        self._remove_seal()
        self._forget(shard)
        forget_files()  # what is made again may have the same digest
        if os.path.lexists(payload):
            kept = payload.with_name(f"{payload.name}.damaged")
            payload.replace(kept)
        for path in (
            self.path(shard, "index", fetch=False),
            self.path(shard, "stats"),
            record.with_suffix(".errors.jsonl"),
            record,
        ):
            path.unlink(missing_ok=True)
        store.sync_folder(self.folder)
        return kept

    def commit(self, shard: int, values: Iterable[bytes | None]) -> bool:
        """Writes a shard from its rows' encoded values, in key order; null rows are None. Exactly one of several
        committers gets True.

        DataError for a wrong number of values or one that does not decode; StorageError on a full disk. Both leave
        nothing behind.
        """
        if self.kind == "matrix":
            raise DataError(f"{self.folder}: commit_matrix() writes a matrix column")
        if self.whole(shard):
            return False
        payload = self.own_payload(shard)
        if not self.settled(shard):
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
        return self.commit_payload(shard)

    def _check(self, data: bytes, what: str) -> None:
        if self.kind in decode.BINARY:
            found = decode.file_extension(self.kind, data, what)
            if found not in self.extension.split(";"):
                raise DataError(
                    f"{what}: a {found} {'picture' if self.kind == 'image' else 'video'} in a column of"
                    f" {self.extension}"
                )
        else:
            decode.decode(self.kind, data, what, extension=self.extension, field=self.field)

    def _extension_of(self, data: bytes) -> str:
        first, *others = self.extension.split(";")
        return decode.file_extension(self.kind, data) if others and data else first

    def commit_matrix(
        self, shard: int, array: np.ndarray, counts: Sequence[int] | None = None, nulls: Iterable[int] = ()
    ) -> bool:
        """Writes a shard of vectors: array (N, D), cast to float16; counts: vectors a row, None: one for every row that
        is not in `nulls`.

        N is the sum of the counts; a row with none is null. The counts follow the array in the same .npy file (two
        `np.save`, as NumPy documents), so that the payload is whole by itself. Exactly one of several committers gets
        True.
        """
        if self.kind != "matrix":
            raise DataError(f"{self.folder}: commit() writes a {self.kind} column")
        payload, rows = self.own_payload(shard), self.dataset.shard_rows[shard]
        if self.whole(shard):
            return False
        if not self.settled(shard):
            number = np.ones(rows, np.int32) if counts is None else np.asarray(counts, np.int32)
            null_rows = np.fromiter(nulls, np.int64)
            if len(null_rows) and counts is None:
                number[null_rows] = 0
            fits = (
                array.ndim == 2
                and number.shape == (rows,)
                and number.min(initial=0) >= 0
                and int(number.sum()) == len(array)
            )
            if not fits or number[null_rows].any():
                found = f"counts of {number.size} rows that sum to {number.sum()}, an array {array.shape}"
                raise DataError(
                    f"{payload}: expected {rows} counts and an array (their sum, D), no vectors for null rows; got"
                    f" {found}"
                )
            with np.errstate(over="ignore"):
                half = np.ascontiguousarray(array, np.float16)
            if not np.isfinite(half).all():
                raise DataError(
                    f"{payload}: the array has values that float16 cannot hold (largest magnitude"
                    f" {np.abs(array).max()})"
                )
            with store.staged(payload) as tmp:
                with tmp.open("wb") as file:
                    np.save(file, half, allow_pickle=False)
                    np.save(file, number, allow_pickle=False)
                store.publish_once(tmp, payload)
        return self.commit_payload(shard)

    def commit_foreign(self, shard: int, url: Path, index: ShardIndex, found: Foreign, prefix: str = "") -> bool:
        """Records a shard whose payload is a tar made elsewhere (absolute `url`); `index` is what `ShardIndex.scan`
        found in it.

        prefix: what the keys begin with, and the names of the members do not.
        """
        about: dict[str, Any] = {"crc": found.crc.tolist()} | ({"prefix": prefix} if prefix else {})
        about |= {"bad": {str(row): why for row, why in found.bad.items()}} if found.bad else {}
        content = {**index.to_json(), **about, "nulls": found.nulls}
        return self._publish(shard, content, found.bytes, found.sha256, {"url": str(url), "mtime": found.mtime})

    def write_stats(self, shard: int, stats: dict[str, Any]) -> None:
        """Telemetry beside the shard (seconds, host, bad rows); replaces an earlier one."""
        store.replace_atomic(self.path(shard, "stats"), store.pretty_json(stats))

    def commit_payload(self, shard: int) -> bool:
        """Index and record of the existing payload: one's own, another committer's, or one that a crash left
        without a record.
        """
        payload = self.own_payload(shard)
        sha256 = store.sha256_file(payload)
        return self._publish(shard, self.content_of(shard, payload, sha256), payload.stat().st_size, sha256, {})

    def content_of(self, shard: int, path: Path, sha256: str) -> dict[str, Any]:
        """What belongs into the index of a payload made here. DataError for one that is not of this shard."""
        if self.kind == "matrix":
            _, counts = open_matrix(path)
            if len(counts) != self.dataset.shard_rows[shard]:
                raise DataError(f"{path}: left by something else (wrong number of rows); remove it and run again")
            content: dict[str, Any] = {"keys": self.dataset.shard_keys[shard]}
            if (counts != 1).any():
                content["counts"] = counts.tolist()
            return {**content, "nulls": np.flatnonzero(counts == 0).tolist()}
        index = ShardIndex.scan(path)
        if keys_digest(index.keys) != self.dataset.shard_keys[shard]:
            where = f"shard {self.dataset.shards[shard]} of {self.dataset.root}"
            raise DataError(f"{path}: its keys are not those of {where}; remove it and run again")
        offsets, sizes = pick(index, self.extension)
        there = (self._present(path, sha256, int(offsets[i]), int(sizes[i]), key) for i, key in enumerate(index.keys))
        return {**index.to_json(), "nulls": [i for i, present in enumerate(there) if not present]}

    def _publish(self, shard: int, content: dict[str, Any], size: int, sha256: str, extra: dict[str, Any]) -> bool:
        """Index, then record: the shard is there. The index of another payload, which a crash left, is replaced."""
        path, data = self.path(shard, "index", fetch=False), store.canonical_json(content)
        if not store.create_once(path, data) and store.read_bytes(path) != data:
            store.replace_atomic(path, data)
        record = {"rows": self.dataset.shard_rows[shard], "bytes": size, "sha256": sha256, "plan": self.plan_digest}
        record |= {
            "keys": self.dataset.shard_keys[shard],
            "nulls": len(content["nulls"]),
            "index": hashlib.sha256(data).hexdigest(),
        }
        self._remove_seal()
        self._forget(shard)
        return store.create_once(self.path(shard, "record"), store.pretty_json(store.with_digest({**record, **extra})))

    def _present(self, path: Path, sha256: str, offset: int, size: int, key: str) -> bool:
        if size <= 0 or self.kind in decode.BINARY:
            return size > 0
        what = f"{path} item {key!r}"
        value = decode.decode(
            self.kind, read_at(path, offset, size, sha256), what, extension=self.extension, field=self.field
        )
        return decode.is_present(self.kind, value)

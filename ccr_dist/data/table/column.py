"""A column of a dataset, to which shards are committed. `column_values.py` reads its values.

`dataset.py` describes the layout on disk, `data/media/decode.py` the values and bytes of each kind.
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
from ccr_dist.data.storage.file_ranges import forget_files, read_at
from ccr_dist.data.storage.tar import ShardIndex, TarWriter
from ccr_dist.data.table import seal
from ccr_dist.data.table.column_values import ReadableColumn
from ccr_dist.data.table.keys import keys_digest
from ccr_dist.data.table.payload import open_matrix, pick
from ccr_dist.errors import DataError


class Foreign(NamedTuple):
    """What indexing found about one column in a foreign tar.

    Attributes:
        bytes: Size of the tar.
        sha256: sha256 of the tar.
        mtime: Modification time of the tar in ns.
        crc: (rows,) uint32, CRC-32 of each row's member; 0 where it has none.
        nulls: Rows whose value is missing or blank.
        bad: Reasons by row for those of `nulls` whose value cannot be used.
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
        """Whether a shard needs no new payload: it is finished, or its payload only lacks a record.

        A damaged shard is set aside first. To be called only by the process that may make the shard now.

        Raises:
            DataError: Its record belongs to other rows or another plan.
        """
        if self._seal or self.path(shard, "record").exists():
            if self.whole(shard) or self._fault(shard, set(os.listdir(self.folder))) is None:  # noqa: PTH208 (a listing is fresh on NFS)
                return True
            if not self.damaged(shard):
                self.record(shard)
            if self.confirmed(shard):  # index or record is at fault: continue as if the payload had no record yet
                self.path(shard, "record").unlink(missing_ok=True)
                self._forget(shard)
            else:
                self.set_aside(shard)
        return self.own_payload(shard).exists()

    def confirmed(self, shard: int) -> bool:
        """Whether the column's own payload exists and its sha256 occurs in the record, damaged or not, or in the seal.

        Reads the whole payload.
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
        """Turns a damaged shard into a missing one: its payload is renamed, its record and index are removed.

        The record is removed last, so that an interrupted call leaves a shard that is set aside again.

        Returns:
            The payload's new path, `<name>.damaged`; None where there was no payload.
        """
        payload, kept = self.own_payload(shard), None
        record = self.path(shard, "record")
        self._remove_seal()
        self._forget(shard)
        forget_files()  # the payload that is made again may have the same digest
        if os.path.lexists(payload):
            kept = payload.with_name(f"{payload.name}.damaged")
            payload.replace(kept)
        for path in (
            self.path(shard, "index", fetch=False),
            self.path(shard, "stats"),
            self.path(shard, "errors"),
            record,
        ):
            path.unlink(missing_ok=True)
        store.sync_folder(self.folder)
        return kept

    def commit(self, shard: int, values: Iterable[bytes | None]) -> bool:
        """Writes a shard.

        Args:
            shard: Its number.
            values: The encoded values of its rows, in the order of the keys; None for a null row.

        Returns:
            Whether this call committed it: of several committers, exactly one gets True.

        Raises:
            DataError: The number of values is wrong, or one cannot be decoded. Nothing is left behind.
            StorageError: The disk is full. Nothing is left behind.
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
        """Writes a shard of vectors.

        The counts follow the array in the same .npy file (two calls of `np.save`, as NumPy documents), so that the
        payload is complete by itself.

        Args:
            shard: Its number.
            array: (N, D), cast to the column's `dtype`; N is the sum of the counts.
            counts: Number of vectors of each row; a row with 0 is null. None: one per row that is not in `nulls`.
            nulls: Rows without vectors.

        Returns:
            Whether this call committed it: of several committers, exactly one gets True.

        Raises:
            DataError: Array and counts do not fit the shard, or the dtype cannot hold a value.
            StorageError: The disk is full.
        """
        if self.kind != "matrix":
            raise DataError(f"{self.folder}: of kind {self.kind}; commit() writes its values")
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
                cast = np.ascontiguousarray(array, self.dtype)
            if not np.isfinite(cast).all():
                raise DataError(
                    f"{payload}: the array has values that {self.dtype} cannot hold (largest magnitude"
                    f" {np.abs(array).max()})"
                )
            with store.staged(payload) as tmp:
                with tmp.open("wb") as file:
                    np.save(store.Plain(file), cast, allow_pickle=False)
                    np.save(store.Plain(file), number, allow_pickle=False)
                store.publish_once(tmp, payload)
        return self.commit_payload(shard)

    def commit_foreign(self, shard: int, url: Path, index: ShardIndex, found: Foreign, prefix: str = "") -> bool:
        """Records a shard whose payload is a foreign tar.

        Args:
            shard: Its number.
            url: Absolute path of the tar.
            index: The result of `ShardIndex.scan`.
            found: What else is known about the tar.
            prefix: Beginning of the keys that names of members do not have.

        Returns:
            Whether this call committed it.
        """
        about: dict[str, Any] = {"crc": found.crc.tolist()} | ({"prefix": prefix} if prefix else {})
        about |= {"bad": {str(row): why for row, why in found.bad.items()}} if found.bad else {}
        content = {**index.to_json(), **about, "nulls": found.nulls}
        return self._publish(shard, content, found.bytes, found.sha256, {"url": str(url), "mtime": found.mtime})

    def write_stats(self, shard: int, stats: dict[str, Any]) -> None:
        """Writes telemetry beside the shard (seconds, host, bad rows), replacing earlier telemetry."""
        store.replace_atomic(self.path(shard, "stats"), store.pretty_json(stats))

    def has_stats(self, shard: int) -> bool:
        """Whether there is telemetry of a shard."""
        return self.path(shard, "stats").exists()

    def write_errors(self, shard: int, lines: bytes) -> None:
        """Writes what is wrong with rows of a shard, JSON lines, unless that was written before."""
        store.create_once(self.path(shard, "errors"), lines)

    def commit_payload(self, shard: int) -> bool:
        """Writes index and record for an existing payload, whichever process wrote it.

        Returns:
            Whether this call committed it.
        """
        payload = self.own_payload(shard)
        sha256 = store.sha256_file(payload)
        return self._publish(shard, self.content_of(shard, payload, sha256), payload.stat().st_size, sha256, {})

    def content_of(self, shard: int, path: Path, sha256: str) -> dict[str, Any]:
        """The content of the index file for a payload of this column.

        Args:
            shard: Its number.
            path: The payload.
            sha256: Its digest.

        Raises:
            DataError: The payload belongs to another shard, or is damaged.
        """
        if self.kind == "matrix":
            _, counts = open_matrix(path, self.dtype)
            if len(counts) != self.dataset.shard_rows[shard]:
                raise DataError(f"{path}: left by another program (wrong number of rows); remove it and run again")
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
        """Writes the index, then the record, which makes the shard exist. The index of a former payload is replaced."""
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

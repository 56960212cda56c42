"""The state of a column: which of its shards are finished or lost, and what their records say. Values are not read.

`column_values.py` reads values, `column.py` writes them; `records.py` checks single records.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.data.media import decode
from ccr_dist.data.storage import remote, store
from ccr_dist.data.storage.object_store import as_url
from ccr_dist.data.table import records, seal
from ccr_dist.data.table.dataset_rows import DatasetRows
from ccr_dist.data.table.names import is_column_name, maker
from ccr_dist.data.table.payload import present_rows, read_index
from ccr_dist.errors import DataError

_META = {"kind": str, "extension": str, "plan": dict, "provenance": dict, "view_of": str, "field": str, "dtype": str}
_SHA256 = re.compile("[0-9a-f]{64}")
_LOCAL = {"record": ".json", "stats": ".stats.json", "errors": ".errors.jsonl"}  # files that are never fetched


class Recorded:
    """A column without its values.

    Attributes:
        dataset: The dataset that it belongs to.
        name: Its name.
        folder: Its folder.
        kind: Kind of its values, see `decode.KINDS`.
        extension: Extensions of its members, `a;b;c`; npy for a matrix.
        plan: Everything that decides its bytes.
        plan_digest: sha256 of the plan.
        provenance: Versions, licences, dates, the command; never compared.
        view_of: The column whose tars also hold this one, if any.
        field: See `decode.decode`.
        dtype: Type of the vectors of a matrix: float16 or float32.

    Raises:
        DataError: column.json is missing or damaged.
    """

    def __init__(self, dataset: DatasetRows, name: str) -> None:
        self.dataset = dataset
        self.name = name
        self.folder = dataset.root / name
        path = self.folder / "column.json"
        try:
            meta = store.check_object(store.read_json(path), _META, path, optional=("view_of", "field", "dtype"))
        except DataError as e:
            raise DataError(
                f"{e}; remove the file and run the command that makes the column again; its shards are kept"
            ) from e
        self.kind: str = meta["kind"]
        self.extension: str = meta["extension"]
        self.plan: dict[str, Any] = meta["plan"]
        self.provenance: dict[str, Any] = meta["provenance"]
        self.view_of: str | None = meta.get("view_of")
        self.field: str | None = meta.get("field")
        self.dtype: str = meta.get("dtype", "float16")  # of a matrix
        known = self.kind in decode.KINDS and self.dtype in decode.DTYPES
        if not known or not is_column_name(self.view_of or "image"):
            raise DataError(f"{path}: kind {self.kind!r}, view of {self.view_of!r}: the file was edited or damaged")
        self.plan_digest = store.digest_json(self.plan)
        self._seal_read: seal.Seal | None = None
        self._seal_known = False  # the seal is looked for when it is first needed
        self._records: dict[int, dict[str, Any]] = {}
        self._whole: set[int] = set()  # shards whose payload was found to be of the recorded size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, {self.kind})"

    @property
    def place(self) -> str:
        """How messages name the column: its folder, or its URL."""
        return f"{self.dataset.place}/{self.name}"

    def require_kind(self, kinds: Sequence[str], reader: str) -> None:
        """Raises DataError, naming columns that fit, unless the values are of one of these kinds.

        Args:
            kinds: Allowed kinds, as in `decode.KINDS`.
            reader: The command or option that takes only these.
        """
        if self.kind in kinds:
            return
        fitting = [name for name in self.dataset.columns() if self.dataset.column(name).kind in kinds]
        raise DataError(
            f"{self.folder}: a column of kind {self.kind}; {reader} takes {', '.join(kinds)}. Columns that fit:"
            f" {', '.join(fitting) or 'none'}"
        )

    @property
    def _seal(self) -> seal.Seal | None:
        if not self._seal_known:
            self._set_seal(seal.load(self.dataset, self.folder, self.plan_digest))
        return self._seal_read

    def _set_seal(self, read: seal.Seal | None) -> None:
        self._seal_read, self._seal_known = read, True

    def _remove_seal(self) -> None:
        """Remove the seal; to be called before a shard is committed or set aside."""
        seal.remove(self.folder)
        self._seal_read, self._seal_known = None, False

    def path(self, shard: int, what: str = "payload", *, fetch: bool = True) -> Path:
        """The path of a shard's file.

        Args:
            shard: Its number.
            what: payload, index, record, stats or errors. The payload of an indexed shard is a foreign tar.
            fetch: Whether to fetch a payload or index that only the store behind the dataset has.

        Raises:
            DataError: The record is damaged.
            StorageError: The file cannot be fetched.
            ConfigError: The payload is larger than the cache may be.
        """
        name, behind = self.dataset.shards[shard], self.dataset.remote
        if what in _LOCAL:
            return self.folder / f"{name}{_LOCAL[what]}"
        recorded = self._seal or shard in self._records or self.path(shard, "record").exists()
        if what == "index":
            path = self.folder / f"{name}.index.json"
            if behind and recorded and fetch:
                behind.bring(
                    path, lambda: [f"{self.name}/{self.dataset.shards[i]}.index.json" for i in self.recorded()]
                )
            return path
        if not recorded:
            return self.own_payload(shard)
        path = self._place(shard, self.record(shard))
        return behind.payload(path, self.record(shard)) if behind and fetch else path

    def _place(self, shard: int, record: dict[str, Any]) -> Path:
        """The payload's path, by its record. Raises DataError for a foreign tar unless the column is indexed."""
        url = record.get("url")
        if url is not None and url.startswith("/") and "indexed" not in self.plan:
            raise DataError(
                f"{self.path(shard, 'record')}: names {url}, but this is not an indexed column: the file was edited or"
                " damaged"
            )
        return self.folder / (url or self._own(shard))

    def _own(self, shard: int) -> str:
        return self.dataset.shards[shard] + (".npy" if self.kind == "matrix" else ".tar")

    def own_payload(self, shard: int) -> Path:
        """The path of the column's own payload, whether it exists or not."""
        return self.folder / self._own(shard)

    def recorded(self) -> set[int]:
        """The shards with a commit record, from a fresh listing."""
        if self._seal:
            return set(range(len(self.dataset.shards)))
        names = set(os.listdir(self.folder))  # noqa: PTH208
        return {i for i, shard in enumerate(self.dataset.shards) if f"{shard}.json" in names}

    def finished(self) -> set[int]:
        """The finished shards: with a commit record, an index, and a payload of the recorded size.

        From a fresh listing of names and sizes, in the store if one backs the dataset; nothing is read. OSErrors pass.

        Raises:
            StorageError: The store cannot be listed.
        """
        return self.recorded() - self.lost().keys()

    def lost(self) -> dict[int, str]:
        """Lost shards: they have a commit record, but it is damaged, or payload or index are missing or truncated.

        Committing such a shard makes it again (`Column.settled`), unless its record is intact but belongs to other rows
        or another plan.

        Returns:
            What is wrong, by shard.
        """
        names = set(os.listdir(self.folder))  # noqa: PTH208
        faults = {shard: self._fault(shard, names) for shard in sorted(self.recorded())}
        return {shard: why for shard, why in faults.items() if why is not None}

    def whole(self, shard: int) -> bool:
        """Whether one shard is finished, from a fresh listing."""
        if not (self._seal or self.path(shard, "record").exists()):
            return False
        names = (self._own(shard), f"{self.dataset.shards[shard]}.index.json")
        return self._fault(shard, {name for name in names if (self.folder / name).exists()}) is None

    def _fault(self, shard: int, names: Container[str]) -> str | None:
        """What is wrong with a shard, or None. A record that another process replaced meanwhile is read again.

        Args:
            shard: Its number.
            names: Names of the files in the column's folder.
        """
        again = shard in self._records
        try:
            why = self._fault_of(shard, self.record(shard), names)
            if why and again and not self._seal:
                self._forget(shard)
                why = self._fault_of(shard, self.record(shard), names)
        except DataError as e:
            return str(e)
        return why

    def _fault_of(self, shard: int, record: dict[str, Any], names: Container[str]) -> str | None:
        own, behind, name = self._own(shard), self.dataset.remote, self.dataset.shards[shard]
        if not (self._seal or behind or f"{name}.index.json" in names):
            return f"{self.path(shard, 'index')}: missing"
        if shard in self._whole and ("url" in record or behind or own in names):
            return None
        path = self._place(shard, record)
        size = records.size_of(path) if "url" in record or own in names else None
        if size is None and behind:
            size = behind.size_of(remote.relative(path, self.dataset.root, self.dataset.place))
        if (why := records.fault(record, size)) is not None:
            return f"{path}: {why}"
        self._whole.add(shard)
        return None

    def _forget(self, shard: int) -> None:
        self._records.pop(shard, None)
        self._whole.discard(shard)

    def missing(self) -> list[int]:
        """The shards that are not finished, ascending."""
        done = self.finished()
        return [i for i in range(len(self.dataset.shards)) if i not in done]

    @property
    def remedy(self) -> str:
        """The command that makes the missing shards of this column, as far as is known."""
        if self.dataset.remote and self.dataset.remote.mirror and not self._made_in_store():
            return f"ccr-dist shards push FOLDER {self.dataset.place}"
        if "indexed" in self.plan:
            return str(self.provenance.get("command", "ccr-dist shards index"))
        return str(self.provenance.get("command", maker(self.name, self.dataset.place)))

    def _made_in_store(self) -> bool:
        """Whether the column's command names the URL of the dataset, or of a folder above it."""
        urls = (as_url(word) for word in str(self.provenance.get("command")).split())
        return any(f"{self.dataset.place}/".startswith(f"{url}/") for url in urls if url)

    def require_complete(self) -> None:
        """Requires all shards, made from the present content of other columns.

        Raises:
            DataError: Shards are missing (names them and the command that makes them), or a column has changed since
                this one was made from it.
        """
        self._require_shards()
        if stale := self.stale():
            what = f"{self.dataset.place}/{self.name}: made from {stale}, whose content has changed since"
            raise DataError(
                f"{what}. Make the column again: remove {self.folder} (or choose another name) and run `{self.remedy}`"
            )

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The columns of this dataset that this one was made from, with their digests at that time."""
        inputs = self.plan.get("inputs")
        if not isinstance(inputs, dict):
            return {}
        return {name: text for name, text in inputs.items() if _SHA256.fullmatch(str(text))}

    def stale(self) -> str | None:
        """The name of a column that is complete and has changed since this one was made from it; None if none has."""
        there = self.dataset.columns() if self.inputs else ()
        sources = ((name, self.dataset.column(name), digest) for name, digest in self.inputs.items() if name in there)
        return next(
            (name for name, source, digest in sources if not source.missing() and source.digest != digest), None
        )

    def _require_shards(self) -> None:
        if missing := self.missing():
            lost = self.lost()
            names = ", ".join(self.dataset.shards[i] for i in missing[:8]) + (", ..." if len(missing) > 8 else "")
            what = (
                f"{self.dataset.place}/{self.name}: {len(missing)} of {len(self.dataset.shards)} shards are missing"
                f" ({names}); "
            )
            if lost:
                what += f"{len(lost)} with a lost payload or record: {next(iter(lost.values()))}; "
            raise DataError(
                f"{what}run the command that makes the column (usually `{self.remedy}`) again, it makes only the"
                " missing ones"
            )

    def record(self, shard: int) -> dict[str, Any]:
        """The commit record of a shard.

        Raises:
            DataError: The shard is not finished, or its record is damaged or belongs to other rows or another plan.
        """
        if shard not in self._records:
            self._records[shard] = self._seal.record(shard) if self._seal else self._read_record(shard)
        return self._records[shard]

    def damaged(self, shard: int) -> bool:
        """Whether the commit record exists but is damaged."""
        path = self.path(shard, "record")
        try:
            records.check(store.read_json(path), path)
        except DataError:
            return path.exists()
        return False

    def _read_record(self, shard: int) -> dict[str, Any]:
        path = self.path(shard, "record")
        try:
            record = store.read_json(path)
        except DataError:
            if path.exists():
                raise
            raise DataError(f"{path}: this shard is not finished; `{self.remedy}` makes such columns") from None
        records.check(record, path)
        expected = {
            "rows": self.dataset.shard_rows[shard],
            "keys": self.dataset.shard_keys[shard],
            "plan": self.plan_digest,
        }
        store.require_same(
            path, {k: record.get(k) for k in expected}, expected, "the record belongs to other rows or another plan"
        )
        return record

    @property
    def digest(self) -> str:
        """Digest of the content: dataset, plan and every payload. Raises DataError while shards are missing."""
        self._require_shards()
        shas = [self.record(i)["sha256"] for i in range(len(self.dataset.shards))]
        how = {"kind": self.kind, "extension": self.extension, "plan": self.plan_digest, "field": self.field}
        return store.digest_json({"dataset": self.dataset.digest, **how, "shards": shas})

    def nulls(self) -> np.ndarray:
        """(shards,) int64: null rows of each shard, from the commit records. Raises DataError if one is missing."""
        return np.array([self.record(shard)["nulls"] for shard in range(len(self.dataset.shards))], np.int64)

    def present(self, shard: int) -> np.ndarray:
        """(rows,) bool: whether the row has a value that is not null and not empty."""
        if self._seal:
            return self._seal.present(shard)
        record = self.record(shard)
        return present_rows(self.path(shard, "index"), record.get("index"), record["rows"])

    def index(self, shard: int) -> dict[str, Any]:
        """The content of the index file of a finished shard. Raises DataError if it is damaged."""
        return read_index(self.path(shard, "index"), self.record(shard).get("index"))

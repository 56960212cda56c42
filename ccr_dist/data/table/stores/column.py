"""A column of a dataset in an object store, to which shards are committed there, without a folder that workers share.

A shard is made in a folder of this process by the code that makes every shard (`column.py`), so its bytes are the same.
Then its files are created in the store, payload, index and record in this order, each only if it is absent. A payload
is final once it exists: whoever finds one records that one. Who may begin to commit is decided by the caller
(`generate/traces/objects.py`).
"""

from __future__ import annotations

import contextlib
import copy
import secrets
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.data.storage import remote, store
from ccr_dist.data.storage.cache_folder import cache_folder
from ccr_dist.data.storage.object_store import Store
from ccr_dist.data.storage.payload_cache import abandoned, claimed
from ccr_dist.data.table import records
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset_rows import DatasetRows
from ccr_dist.errors import DataError

_MADE = "remote/made"  # in the cache: folders in which shards are made


def create_in_store(dataset: DatasetRows, name: str, content: bytes) -> bool:
    """Create a column.json in the store behind a mirror, unless there is one, and mirror it.

    Args:
        dataset: The dataset, opened by its URL.
        name: Name of the column.
        content: The content of column.json.

    Returns:
        Whether the store's column.json has this content.
    """
    assert dataset.remote is not None
    created = Store(dataset.remote.url).create(f"{name}/column.json", content)
    dataset.remote.update(f"{name}/column.json")
    return created


class StoreColumn(Column):
    """A column in a store that can be read and committed to, shard by shard. `folder` is its mirror.

    Whatever asks for the state of a shard gets it from a fresh listing of the store.
    """

    def __init__(self, dataset: DatasetRows, name: str) -> None:
        super().__init__(dataset, name)
        assert dataset.remote is not None
        self._behind = dataset.remote
        self._store = Store(f"{dataset.remote.url}/{name}")
        self._sizes: dict[str, int] = {}  # of the objects that the last listings had, by name in the column

    def _list(self, shard: int | None = None) -> None:
        """Bring the mirror up to date: records of all shards, or of one."""
        prefix = "" if shard is None else f"{self.dataset.shards[shard]}."
        there = self._behind.update(f"{self.name}/{prefix}")
        self._sizes = {name: size for name, size in self._sizes.items() if not name.startswith(prefix)}
        self._sizes |= {name.removeprefix(f"{self.name}/"): size for name, size in there.items()}

    def recorded(self) -> set[int]:
        """The shards with a commit record, from a fresh listing of the store."""
        self._list()
        return {i for i, shard in enumerate(self.dataset.shards) if f"{shard}.json" in self._sizes}

    def whole(self, shard: int) -> bool:
        """Whether one shard is finished, from a fresh listing of the store."""
        self._list(shard)
        return f"{self.dataset.shards[shard]}.json" in self._sizes and self._fault(shard, self._sizes) is None

    def _fault_of(self, shard: int, record: dict[str, Any], names: Container[str]) -> str | None:
        index = f"{self.dataset.shards[shard]}.index.json"
        if index not in self._sizes:
            return f"{self.place}/{index}: missing"
        name = remote.relative(self._place(shard, record), self.folder, self.place)
        why = records.fault(record, self._sizes.get(name))
        return None if why is None else f"{self.place}/{name}: {why}"

    def settled(self, shard: int) -> bool:
        """Whether a shard needs no new payload: it is finished, or its payload only lacks a record.

        Raises:
            DataError: It has a record, but what belongs to it is missing or damaged. Nothing in a store is removed or
                replaced by a job, since a worker that slept might do it to what is sound.
        """
        self._list(shard)
        name = self.dataset.shards[shard]
        if f"{name}.json" not in self._sizes:
            return self._own(shard) in self._sizes
        if why := self._fault(shard, self._sizes):
            raise DataError(
                f"{why}. When no worker is at it, remove {self.place}/{name}.json, {name}.index.json and"
                f" {self._own(shard)} there, and run the same command again: it makes the shard again"
            )
        return True

    def path(self, shard: int, what: str = "payload", *, fetch: bool = True) -> Path:
        """As in `Recorded.path`; of indexes, only this shard's is fetched: others are being made by others."""
        if what == "index" and fetch:
            path = super().path(shard, what, fetch=False)
            self._behind.bring(path, lambda: [f"{self.name}/{path.name}"])
            return path
        return super().path(shard, what, fetch=fetch)

    def commit(self, shard: int, values: Iterable[bytes | None]) -> bool:
        """As in `Column.commit`."""
        return self._commit(shard, lambda made: made.commit(shard, values))

    def commit_matrix(
        self, shard: int, array: np.ndarray, counts: Sequence[int] | None = None, nulls: Iterable[int] = ()
    ) -> bool:
        """As in `Column.commit_matrix`."""
        return self._commit(shard, lambda made: made.commit_matrix(shard, array, counts, nulls))

    def _commit(self, shard: int, make: Callable[[Column], object]) -> bool:
        """Commit a shard.

        Args:
            shard: Its number.
            make: Commits it to a column in a folder.

        Returns:
            Whether this call created the record.
        """
        if self.whole(shard):
            return False
        if not self.settled(shard):
            with self._folder(shard) as made:
                make(made)
                if self._store.create_file(self._own(shard), made.own_payload(shard)):
                    return self._record(shard, made)
        with self._folder(shard) as made:
            self._store.fetch(self._own(shard), made.own_payload(shard))
            made.commit_payload(shard)
            return self._record(shard, made)

    def _record(self, shard: int, made: Column) -> bool:
        """Create index and record of an existing payload, and mirror them."""
        index, name = made.path(shard, "index").read_bytes(), self.dataset.shards[shard]
        if not self._store.create(f"{name}.index.json", index):  # of a former payload
            self._store.write(f"{name}.index.json", index)
        record = made.path(shard, "record").read_bytes()
        created = self._store.create(f"{name}.json", record, unique=False)
        store.replace_atomic(self.folder / f"{name}.index.json", index)
        self._forget(shard)
        self._list(shard)
        return created

    @contextlib.contextmanager
    def _folder(self, shard: int) -> Iterator[Column]:
        """This column, with nothing in it but the keys of a shard, in a folder that is removed afterwards."""
        with _own_folder() as root:
            folder = str(root)
            for name in ("keys", self.name):
                (root / name).mkdir()
            keys = "".join(f"{key}\n" for key in self.dataset.keys(shard))
            (root / "keys" / f"{self.dataset.shards[shard]}.txt").write_text(keys, encoding="utf-8")
            shutil.copyfile(self.folder / "column.json", root / self.name / "column.json")
            rows = copy.copy(self.dataset)
            rows.root, rows.remote, rows.place = root, None, folder
            try:
                yield Column(rows, self.name)
            except DataError as e:  # it is to name what people can look at
                raise type(e)(str(e).replace(folder, self.dataset.place)) from e

    def has_stats(self, shard: int) -> bool:
        """Whether there is telemetry of a shard."""
        return self._store.has(f"{self.dataset.shards[shard]}.stats.json")

    def write_stats(self, shard: int, stats: dict[str, Any]) -> None:
        """Writes telemetry beside the shard, replacing earlier telemetry."""
        self._store.write(f"{self.dataset.shards[shard]}.stats.json", store.pretty_json(stats))

    def write_errors(self, shard: int, lines: bytes) -> None:
        """Writes what is wrong with rows of a shard, JSON lines, unless that was written before."""
        self._store.create(f"{self.dataset.shards[shard]}.errors.jsonl", lines)


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """A new folder in the cache for the time of the block. What killed processes have left there is removed: their
    locks are free, wherever they ran. Numbers of processes say nothing, since containers may share a host's name.
    """
    parent = cache_folder(_MADE)
    for path in parent.iterdir():
        name = path.name.removeprefix(store.TEMPORARY)
        lock = path.with_name(f"{store.TEMPORARY}{name}")
        with contextlib.suppress(FileNotFoundError):  # its process has just ended well
            if not lock.exists() or abandoned(lock):
                shutil.rmtree(path.with_name(name), ignore_errors=True)
    folder = parent / secrets.token_hex(8)
    with claimed(folder):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

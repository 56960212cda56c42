"""The rows of a dataset: which exist, in which shards, under which keys. Columns learn their rows from here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ccr_dist.data.storage import remote, store
from ccr_dist.data.storage.lru import Recent
from ccr_dist.data.storage.object_store import as_url
from ccr_dist.data.table.keys import Keys
from ccr_dist.data.table.names import is_column_name
from ccr_dist.errors import DataError

FORMAT = 1
_META = {"format": int, "name": str, "split": str, "shards": list}
_SHARD = {"id": str, "rows": int, "keys": str}
_KEYS_HELD = 1024  # shards


def check_meta(meta: Any, place: str) -> None:
    """Raises DataError unless the content of a dataset.json is complete and of a known format."""
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(
            f"{place}: expected format {FORMAT}, found"
            f" {repr(meta.get('format') if isinstance(meta, dict) else meta)[:80]}"
        )
    store.check_object(meta, _META, place)
    if "digest" not in meta:
        raise DataError(f"{place}: no digest: the file was edited or damaged")
    for number, shard in enumerate(meta["shards"]):
        about = store.check_object(shard, _SHARD, f"{place}, shard {number}")
        if about["id"] != f"{number:06d}":  # it becomes the name of files
            raise DataError(f"{place}: shard {number} has the id {repr(about['id'])[:80]}, expected {number:06d}")


class DatasetRows(ABC):
    """The rows of a dataset and their keys. Cheap to pickle; holds no open file.

    Attributes:
        root: The folder; for a URL, its local mirror.
        remote: The store behind the folder, if any.
        place: How messages name the dataset.
        name: Name of the dataset.
        split: train, val, test or another word.
        digest: Identifies the rows.
        shards: Ids, which are the stems of file names.
        shard_rows: Number of rows in each shard.
        shard_keys: Digest of the keys of each shard.
        rows: Number of rows in all.

    Raises:
        DataError: `root` is not a dataset, or its dataset.json is damaged.
    """

    def __init__(self, root: str | Path) -> None:
        url = as_url(root)
        self.root = remote.mirror(url) if url else Path(root)
        self.place = url or str(self.root)
        path = self.root / "dataset.json"
        if not path.exists():
            splits = sorted(p.parent.name for p in self.root.glob("*/dataset.json"))
            made = "`ccr-dist shards build` or `shards index` makes one"
            hint = f"; it holds the datasets {', '.join(splits)}: name one of them" if splits else f"; {made}"
            raise DataError(f"{self.root}: not a dataset (no dataset.json){hint}")
        try:
            meta = store.read_json(path)
            check_meta(meta, str(path))
        except DataError as error:
            raise DataError(
                f"{error}. Remove the file and run the command that made the dataset again (`ccr-dist shards build`,"
                " `shards index` or `shards pull`): what is finished is kept"
            ) from None
        self.remote = remote.behind(self.root)
        self.name: str = meta["name"]
        self.split: str = meta["split"]
        self.digest: str = meta["digest"]
        self.shards: tuple[str, ...] = tuple(s["id"] for s in meta["shards"])
        self.shard_rows: tuple[int, ...] = tuple(s["rows"] for s in meta["shards"])
        self.shard_keys: tuple[str, ...] = tuple(s["keys"] for s in meta["shards"])
        self.rows: int = sum(self.shard_rows)
        self._loaded: Recent[Keys] = Recent(_KEYS_HELD)
        self._names: Recent[tuple[str, ...]] = Recent(64)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.place!r}, {self.rows} rows in {len(self.shards)} shards)"

    def keys(self, shard: int) -> tuple[str, ...]:
        """The keys of a shard's rows, in order. For a single one, `key` is faster."""
        return self._names.made(shard, lambda: self._keys(shard).all())

    def key(self, shard: int, row: int) -> str:
        """The key of one row."""
        return self._keys(shard)[row]

    def _keys(self, shard: int) -> Keys:
        return self._loaded.made(shard, lambda: self.read_keys(shard))

    def read_keys(self, shard: int) -> Keys:
        """Reads the keys file of a shard now. Raises DataError where it is damaged."""
        path = self.root / "keys" / f"{self.shards[shard]}.txt"
        if self.remote:
            self.remote.bring(path, lambda: [f"keys/{name}.txt" for name in self.shards])
        return Keys(path, self.shard_keys[shard])

    def columns(self) -> list[str]:
        """The names of the columns that exist, complete or not, from a fresh look at the folder."""
        return [name for name in sorted(p.parent.name for p in self.root.glob("*/column.json")) if is_column_name(name)]

    @abstractmethod
    def column(self, name: str) -> Any:
        """A column of these rows. `Dataset` opens it: columns know their rows, rows do not know columns."""

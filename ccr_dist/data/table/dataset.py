"""A dataset is a table: rows in shards, columns as folders of shard files that are written once and never changed.

    ROOT/dataset.json               which rows there are (one split per dataset)
    ROOT/keys/000000.txt            the keys of a shard's rows, one per line
    ROOT/COLUMN/column.json         kind, extension, plan, provenance
    ROOT/COLUMN/000000.tar | .npy   payload: the values, in the order of the keys
    ROOT/COLUMN/000000.index.json   where the values are: a pure function of the payload
    ROOT/COLUMN/000000.json         commit record, written last: a pure function of the payload and the plan
    ROOT/COLUMN/000000.stats.json   telemetry, ignored in every comparison
    ROOT/COLUMN/sealed.json, .npy   all records and indexes of a complete column in two files (`seal.py`); optional

Every file but the telemetry and the seal is create-once. A crash can leave a payload without a record; the next
committer adopts it. This module has datasets; existing columns are in `column.py`. Columns are filled by recipes
(`corpora/build.py`), from tars made elsewhere (`corpora/index.py`) and by jobs (`generate/`).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccr_dist.data.media import decode
from ccr_dist.data.storage import remote, store
from ccr_dist.data.storage.lru import Recent
from ccr_dist.data.storage.object_store import as_url, require_local
from ccr_dist.data.storage.tar import is_key
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset_rows import FORMAT, DatasetRows, check_meta
from ccr_dist.data.table.keys import keys_digest
from ccr_dist.data.table.names import check_column_name, maker
from ccr_dist.data.table.splits import SPLITS
from ccr_dist.data.table.stores.column import StoreColumn, create_in_store
from ccr_dist.errors import DataError
from ccr_dist.places import folder_to_make

_EXTENSION = re.compile(r"^[a-z0-9][a-z0-9.]*(;[a-z0-9][a-z0-9.]*)*$")
_COLUMNS_HELD = 256


def create_dataset(root: str | Path, *, name: str, split: str, keys: Sequence[Sequence[str]]) -> Dataset:
    """Creates a dataset, or opens the equal one that already exists.

    Args:
        root: Its folder.
        name: Name of the dataset.
        split: train, val, test or another word.
        keys: For each shard, the keys of its rows.

    Raises:
        ConfigError: A file is where ROOT should be.
        DataError: Keys are unusable or repeated, or ROOT holds another dataset (the difference is shown).
    """
    require_local(root, "datasets are made")
    root = Path(root)
    folder_to_make(root)
    seen: set[str] = set()
    for key in (key for shard in keys for key in shard):
        if not is_key(key):
            raise DataError(f"{root}: key {key!r}: expected printable text, relative, with no dot in its last part")
        if key in seen:
            raise DataError(f"{root}: the key {key!r} occurs twice")
        seen.add(key)
    ids = [f"{i:06d}" for i in range(len(keys))]
    shards = [{"id": i, "rows": len(shard), "keys": keys_digest(shard)} for i, shard in zip(ids, keys, strict=True)]
    meta = {"format": FORMAT, "name": name, "split": split, "shards": shards}
    asked = {**meta, "digest": store.digest_json(meta)}
    path = root / "dataset.json"
    if not path.exists():
        (root / "keys").mkdir(parents=True, exist_ok=True)
        for i, shard in zip(ids, keys, strict=True):
            store.create_once(root / "keys" / f"{i}.txt", "".join(f"{key}\n" for key in shard).encode())
        store.create_once(path, store.pretty_json(asked))
    there = store.read_json(path)
    check_meta(there, str(path))
    store.require_same(path, there, asked, "another dataset already exists")
    return Dataset(root)


class Dataset(DatasetRows):
    """An open dataset: its rows (`DatasetRows`) and its columns."""

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._columns: Recent[Column] = Recent(_COLUMNS_HELD)

    @staticmethod
    def open(root: str | Path) -> Dataset:
        """Open a dataset. Raises DataError if `root` is not a dataset or its dataset.json is damaged."""
        return Dataset(root)

    def column(self, name: str) -> Column:
        """A column by name.

        Raises:
            ConfigError: No column can have this name.
            DataError: There is no such column; lists the columns and the command that makes one.
        """
        return self._columns.made(name, lambda: self._open_column(name))

    def forget(self, name: str) -> None:
        """Make the next `column(name)` open the column anew."""
        self._columns.pop(name)

    def _open_column(self, name: str) -> Column:
        check_column_name(name)
        if not (self.root / name / "column.json").exists():
            there = self.columns()
            near = difflib.get_close_matches(name, there, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise DataError(
                f"{self.place}: no column {name!r}{hint} There are: {', '.join(there) or 'none'}. Usually"
                f" `{maker(name, self.place)}` makes such a column"
            )
        return Column(self, name)


def create_column(
    dataset: Dataset,
    name: str,
    *,
    kind: str,
    extension: str,
    plan: dict[str, Any],
    provenance: dict[str, Any],
    view_of: str | None = None,
    field: str | None = None,
    dtype: str = "float16",
) -> Column:
    """Creates a column, or opens the existing one if it has the same kind, extension and plan.

    Args:
        dataset: The dataset that it belongs to.
        name: Name of the column.
        kind: Kind of its values, see `decode.KINDS`.
        extension: Extension of its members; `npy` for a matrix; several as in `jpg;png;webp`.
        plan: Everything that decides the bytes of the column.
        provenance: Versions, licences, dates; kept from the first call and never compared.
        view_of: The column whose tars also hold this one.
        field: See `decode.decode`.
        dtype: Type of the vectors of a matrix: float16 or float32.

    Raises:
        DataError: An unsuitable kind or extension; or the column exists under another plan (the difference is
            shown).
        ConfigError: An unsuitable name, a file is where its folder should be, or the dataset was opened by the URL of a
            store that cannot create an object only if it is absent.
    """
    check_column_name(name)
    if kind not in decode.KINDS:
        raise DataError(f"column {name!r}: unknown kind {kind!r}; expected one of {', '.join(decode.KINDS)}")
    if dtype not in decode.DTYPES or (dtype != "float16" and kind != "matrix"):
        raise DataError(f"column {name!r}: {dtype} values of kind {kind!r}; expected a matrix of float16 or float32")
    if not _EXTENSION.match(extension) or (kind == "matrix") != (extension == "npy"):
        rule = "lower case, no leading dot, npy for matrix only"
        raise DataError(f"column {name!r}: extension {extension!r} does not fit the kind {kind!r} ({rule})")
    asked: dict[str, Any] = {"kind": kind, "extension": extension, "plan": plan}
    further = (("view_of", view_of), ("field", field), ("dtype", None if dtype == "float16" else dtype))
    asked |= {k: v for k, v in further if v is not None}
    asked = json.loads(store.canonical_json(asked))  # tuples become lists, as they will be when read back
    path = dataset.root / name / "column.json"
    content = store.pretty_json(store.with_digest({**asked, "provenance": provenance}))
    if in_store := (dataset.remote and dataset.remote.mirror):
        created = create_in_store(dataset, name, content)
    else:
        folder_to_make(path.parent)
        path.parent.mkdir(exist_ok=True)
        created = store.create_once(path, content)
    kind_of = StoreColumn if in_store else Column
    if not created:
        kind_of(dataset, name)  # refuses a damaged column.json
        there = {k: v for k, v in store.read_json(path).items() if k not in ("provenance", "digest")}
        where = f"{dataset.place}/{name}/{path.name}" if in_store else path
        store.require_same(where, there, asked, "the column was made under another plan")
    return kind_of(dataset, name)


def open_all(path: str | Path) -> list[Dataset]:
    """The datasets of a folder or URL: itself, or its subfolders train/, val/, test/, ...

    Raises:
        DataError: There is none.
    """
    if url := as_url(path):
        path, roots = url, remote.datasets(url)
    else:
        path = Path(path)
        found = [path] if (path / "dataset.json").exists() else [p.parent for p in path.glob("*/dataset.json")]
        roots = [str(root) for root in found]
    if not roots:
        raise DataError(f"{path}: neither a dataset (dataset.json) nor a folder of datasets (train/, val/, test/)")
    names = {root.rsplit("/", 1)[-1]: root for root in roots}
    return [
        Dataset(names[name]) for name in sorted(names, key=lambda name: (*(name != split for split in SPLITS), name))
    ]

"""A dataset is a table: rows in shards, columns as folders of shard files that are written once and never changed.

    ROOT/dataset.json               which rows there are (one split a dataset)
    ROOT/keys/000000.txt            the keys of a shard's rows, one a line
    ROOT/COLUMN/column.json         kind, extension, plan, provenance
    ROOT/COLUMN/000000.tar | .npy   payload: the values, in the order of the keys
    ROOT/COLUMN/000000.index.json   where they lie: a pure function of the payload
    ROOT/COLUMN/000000.json         commit record, written last: a pure function of the payload and the plan
    ROOT/COLUMN/000000.stats.json   telemetry, no part of any equality

Every file but the telemetry is create-once. A crash can leave a payload without a record; the next committer adopts it. What fills
a column lives elsewhere: recipes (`build.py`), foreign tars (`index.py`), jobs (`generate/`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.data import decode, remote, store
from ccr_dist.data.payload import Places, load_matrix, load_places, open_matrix, pick
from ccr_dist.data.splits import SPLITS
from ccr_dist.data.tar import ShardIndex, TarWriter, read_at, split_name
from ccr_dist.errors import ConfigError, DataError

FORMAT = 1
_COLUMN = re.compile(r"^(image|video|(caption|description|feature|label)\.[A-Za-z0-9][A-Za-z0-9._-]*)$")
_EXTENSION = re.compile(r"^[a-z0-9][a-z0-9.]*(;[a-z0-9][a-z0-9.]*)*$")


def keys_digest(keys: Sequence[str]) -> str:
    """sha256 of the keys of a shard, joined by newlines."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def check_column_name(name: str) -> str:
    """The name itself. DataError unless it is `image`, `video`, `caption.<lang>[.<engine>]`, `description.*`, `feature.*` or `label.*`."""
    if not _COLUMN.match(name):
        raise DataError(
            f"column name {name!r}: expected image, video, caption.<lang>, caption.<lang>.<engine>, description.<source>, feature.<name> "
            "or label.<what>, of letters, digits and . _ -"
        )
    return name


def maker(name: str, dataset: str = "DATASET") -> str:
    """The command that usually makes a column of this name, with the options that the name tells; CAPITALS stand for what it does not."""
    kind, _, rest = name.partition(".")
    language, _, engine = rest.partition(".")
    if kind == "caption" and engine:
        if back := re.match(r"back-([a-z]{2,3}(?:[-_][A-Z][A-Za-z]+)?)-", engine):
            return f"ccr-dist translate {dataset} --engine ENGINE --to {back[1]} --back"
        source = " --from caption.LANG" if language == "en" else ""
        return f"ccr-dist translate {dataset} --engine ENGINE --to {language}{source} --column {name}"
    if kind == "feature":
        made_from = re.search(r"\.(image|video|caption\..+?)(\.tokens)?(-\d+)?$", name)
        source = (made_from[1] + (" --tokens" if made_from[2] else "")) if made_from else "COLUMN"
        return f"ccr-dist featurise {dataset} --config CONFIG.yaml --from {source} --column {name}"
    if kind == "description":
        return f"ccr-dist describe {dataset} --engine vllm --model MODEL --column {name}"
    return "ccr-dist shards build"


def _column_folders(root: Path) -> list[str]:
    return sorted(p.parent.name for p in root.glob("*/column.json"))


def _compare(path: Path, there: dict[str, Any], asked: dict[str, Any], what: str) -> None:
    lines = store.differences(there, asked)
    if lines:
        shown = "\n  ".join(lines[:20] + ([f"... {len(lines) - 20} more"] if len(lines) > 20 else []))
        raise DataError(f"{path}: {what}; the difference:\n  {shown}\nuse another output (or name), or remove what is there")


def create_dataset(root: str | Path, *, name: str, split: str, keys: Sequence[Sequence[str]]) -> Dataset:
    """A new dataset, or the equal one that is there. `keys`: per shard, the keys of its rows.

    DataError for bad or repeated keys and, with the difference shown, where ROOT holds another dataset.
    """
    remote.require_local(root, "datasets are made")
    root = Path(root)
    seen: set[str] = set()
    for key in (key for shard in keys for key in shard):
        if split_name(f"{key}.x") != (key, "x") or not key.isprintable() or key.startswith("/") or ".." in key.split("/"):
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
    _compare(path, store.read_json(path), asked, "another dataset is there already")
    return Dataset(root)


def check_meta(meta: Any, place: str) -> None:
    """DataError unless the content of a dataset.json is whole and of a format that is known."""
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"{place}: expected format {FORMAT}, found {meta.get('format') if isinstance(meta, dict) else meta!r}")
    if store.digest_json({k: v for k, v in meta.items() if k != "digest"}) != meta.get("digest"):
        raise DataError(f"{place}: the digest does not match the content: the file was edited or damaged")


class Dataset:
    """An opened dataset: `root`, `name`, `split`, `digest`, `shards` (ids), `shard_rows`, `rows`. Cheap to pickle; holds no open file.

    Of a URL, `root` is a local mirror and `remote` what lies behind it (`remote.py`); `place` is how messages name the dataset.
    """

    def __init__(self, root: str | Path) -> None:
        url = remote.as_url(root)
        self.root = remote.mirror(url) if url else Path(root)
        self.place = url or str(self.root)
        path = self.root / "dataset.json"
        if not path.exists():
            splits = sorted(p.parent.name for p in self.root.glob("*/dataset.json"))
            made = "`ccr-dist shards build` or `shards index` makes one"
            hint = f"; it holds the datasets {', '.join(splits)}: name one of them" if splits else f"; {made}"
            raise DataError(f"{self.root}: not a dataset (no dataset.json){hint}")
        meta = store.read_json(path)
        check_meta(meta, str(path))
        self.remote = remote.behind(self.root)
        self.name: str = meta["name"]
        self.split: str = meta["split"]
        self.digest: str = meta["digest"]
        self.shards: tuple[str, ...] = tuple(s["id"] for s in meta["shards"])
        self.shard_rows: tuple[int, ...] = tuple(s["rows"] for s in meta["shards"])
        self.shard_keys: tuple[str, ...] = tuple(s["keys"] for s in meta["shards"])
        self.rows: int = sum(self.shard_rows)

    @staticmethod
    def open(root: str | Path) -> Dataset:
        """DataError when ROOT is no dataset or its dataset.json is damaged."""
        return Dataset(root)

    def __repr__(self) -> str:
        return f"Dataset({self.place!r}, {self.rows} rows in {len(self.shards)} shards)"

    def keys(self, shard: int) -> tuple[str, ...]:
        """The keys of a shard's rows, in order."""
        path = self.root / "keys" / f"{self.shards[shard]}.txt"
        if self.remote:
            self.remote.bring(path, lambda: [f"keys/{name}.txt" for name in self.shards])
        return _load_keys(str(path), self.shard_keys[shard])

    def columns(self) -> list[str]:
        """The names of the columns that have been begun, found by looking."""
        return [name for name in _column_folders(self.root) if _COLUMN.match(name)]

    def column(self, name: str) -> Column:
        """DataError, listing what is there and what would make the column, when there is none of this name."""
        check_column_name(name)
        if not (self.root / name / "column.json").exists():
            there = self.columns()
            near = difflib.get_close_matches(name, there, 1)
            raise DataError(
                f"{self.place}: no column {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else ";")
                + f" There are: {', '.join(there) or 'none'}. Usually `{maker(name, self.place)}` makes such a column"
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
) -> Column:
    """A new column, or the one that is there if it has the same kind, extension and plan; else DataError with the difference shown.

    extension: of the tar members, `npy` for a matrix; several for files of mixed formats, `jpg;png;webp`. field: for views of
    img2dataset's `.json` members. Provenance (versions, licences, dates) is kept from the first call and never compared.
    """
    if dataset.remote and dataset.remote.mirror:
        url = dataset.place
        raise ConfigError(
            f"{url}: columns are made in a folder. `ccr-dist shards pull --lazy {url} FOLDER` makes one that fetches what is read; "
            f"run this there, then `ccr-dist shards push FOLDER {url}`"
        )
    check_column_name(name)
    if kind not in decode.KINDS:
        raise DataError(f"column {name!r}: unknown kind {kind!r}; expected one of {', '.join(decode.KINDS)}")
    if not _EXTENSION.match(extension) or (kind == "matrix") != (extension == "npy"):
        rule = "lower case, no leading dot, npy for matrix only"
        raise DataError(f"column {name!r}: extension {extension!r} does not fit the kind {kind!r} ({rule})")
    asked: dict[str, Any] = {"kind": kind, "extension": extension, "plan": plan}
    asked |= {k: v for k, v in (("view_of", view_of), ("field", field)) if v is not None}
    asked = json.loads(store.canonical_json(asked))  # tuples become lists, as they will be when read back
    path = dataset.root / name / "column.json"
    path.parent.mkdir(exist_ok=True)
    if not store.create_once(path, store.pretty_json({**asked, "provenance": provenance})):
        there = {k: v for k, v in store.read_json(path).items() if k != "provenance"}
        _compare(path, there, asked, "the column was made under another plan")
    return Column(dataset, name)


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

    def __repr__(self) -> str:
        return f"Column({str(self.folder)!r}, {self.kind})"

    # -- what is there

    def path(self, shard: int, what: str = "payload", *, fetch: bool = True) -> Path:
        """A file of a shard: payload, index, record or stats. The payload of an indexed shard is the foreign tar.

        Of a dataset with a store behind it, payload and index are fetched if they are not here, unless fetch=False.

        StorageError, ConfigError.
        """
        name, remote = self.dataset.shards[shard], self.dataset.remote
        if what in ("record", "stats"):
            return self.folder / (name + {"record": ".json", "stats": ".stats.json"}[what])
        recorded = shard in self._records or self.path(shard, "record").exists()
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
            path = self.path(shard, "record")
            try:
                record = store.read_json(path)
            except DataError:
                if path.exists():
                    raise
                raise DataError(
                    f"{path}: this shard is not finished; `{maker(self.name, self.dataset.place)}` makes such columns"
                ) from None
            expected = {"rows": self.dataset.shard_rows[shard], "keys": self.dataset.shard_keys[shard], "plan": self.plan_digest}
            if (there := {k: record.get(k) for k in expected}) != expected:
                _compare(path, there, expected, "the record belongs to other rows or another plan")
            self._records[shard] = record
        return self._records[shard]

    @property
    def digest(self) -> str:
        """Identity of the content: dataset, plan and every payload. DataError while shards are missing."""
        self.require_complete()
        shas = [self.record(i)["sha256"] for i in range(len(self.dataset.shards))]
        how = {"kind": self.kind, "extension": self.extension, "plan": self.plan_digest, "field": self.field}
        return store.digest_json({"dataset": self.dataset.digest, **how, "shards": shas})

    def present(self, shard: int) -> np.ndarray:
        """(rows,) bool: the row has a value that is not null and not empty."""
        return self._places(shard).present.copy()

    # -- reading

    def _places(self, shard: int) -> Places:
        record = self.record(shard)
        return load_places(str(self.path(shard, "index")), self.extension, record["rows"], record["sha256"])

    def where(self, shard: int, row: int) -> str:
        """How messages name a value."""
        return f"{self.folder.name}/{self.dataset.shards[shard]} item {self.dataset.keys(shard)[row]!r} of {self.dataset.place}"

    def read(self, shard: int, row: int) -> bytes | None:
        """The stored bytes of a value (not of a matrix); None when the row has no member or an empty one."""
        if self.kind == "matrix":
            raise DataError(f"{self.folder}: a matrix column has no bytes a row; use value() or matrix()")
        places = self._places(shard)
        size = int(places.sizes[row])
        if size <= 0:
            return None
        return read_at(self.path(shard), int(places.offsets[row]), size, self.record(shard)["sha256"])

    def value(self, shard: int, row: int) -> Any:
        """bytes (image, video), list[str] (texts), {"views": {...}} (views), str (label), (n, D) float16 (matrix); None for a null row."""
        if self.kind == "matrix":
            array, offsets = self.matrix(shard)
            start, end = int(offsets[row]), int(offsets[row + 1])
            return np.array(array[start:end]) if end > start else None
        data = self.read(shard, row)
        return None if data is None else self._decode(data, shard, row)

    def matrix(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """(memory-mapped (N, D) float16, offsets (rows + 1,) int64): row i has the vectors offsets[i]:offsets[i + 1]."""
        record = self.record(shard)
        return load_matrix(str(self.path(shard)), record["rows"], record["sha256"])

    def _decode(self, data: bytes, shard: int, row: int) -> Any:
        return decode.decode(self.kind, data, self.where(shard, row), extension=self.extension, field=self.field)

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
        return store.create_once(self.path(shard, "record"), store.pretty_json(record))

    def _present(self, path: Path, sha256: str, offset: int, size: int, key: str) -> bool:
        if size <= 0 or self.kind in decode.BINARY:
            return size > 0
        what = f"{path} item {key!r}"
        value = decode.decode(self.kind, read_at(path, offset, size, sha256), what, extension=self.extension, field=self.field)
        return decode.is_present(self.kind, value)


@lru_cache(maxsize=64)
def _load_keys(path: str, digest: str) -> tuple[str, ...]:
    try:
        keys = tuple(Path(path).read_text(encoding="utf-8").split("\n")[:-1])
    except FileNotFoundError:
        raise DataError(f"{path}: missing; the dataset is damaged") from None
    if keys_digest(keys) != digest:
        raise DataError(
            f"{path}: not the keys that dataset.json speaks of: damaged, or left by another build; remove {Path(path).parent.parent}"
        )
    return keys


def open_all(path: str | Path) -> list[Dataset]:
    """The datasets of a folder, or of a URL: itself, or its train/, val/, test/ ... subfolders. DataError when there is none."""
    if url := remote.as_url(path):
        path, roots = url, remote.datasets(url)
    else:
        path = Path(path)
        roots = [str(path)] if (path / "dataset.json").exists() else [str(p.parent) for p in path.glob("*/dataset.json")]
    if not roots:
        raise DataError(f"{path}: neither a dataset (dataset.json) nor a folder of datasets (train/, val/, test/)")
    names = {root.rsplit("/", 1)[-1]: root for root in roots}
    return [Dataset(names[name]) for name in sorted(names, key=lambda name: (*(name != split for split in SPLITS), name))]

"""Copying datasets between a folder and an object store: `shards push` and `shards pull`. `storage/remote.py` opens
datasets in a store.

Only what is missing is copied: payload and index first, the commit record last. So an interrupted copy can be continued
and is never taken for complete. What exists on both sides is compared before anything is copied, and a difference is
refused. An indexed tar becomes the payload of the column it belongs to; the records of its views then point there by a
relative `url`.

Not every store can create an object only if it is absent. Two people who push different datasets to one URL at the same
moment can therefore mix their files; readers notice by the digests in the records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ccr_dist.data.storage import store
from ccr_dist.data.storage.file_ranges import forget_files
from ccr_dist.data.storage.payload_cache import claimed, gb
from ccr_dist.data.storage.progress_bar import bar
from ccr_dist.data.storage.remote import (
    MARK,
    Store,
    as_url,
    checked_names,
    datasets,
    is_metadata,
    look_again,
    relative,
    require_local,
)
from ccr_dist.data.table import records
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset, open_all
from ccr_dist.data.table.dataset_rows import check_meta
from ccr_dist.data.table.payload import index_bytes
from ccr_dist.errors import ConfigError, DataError, folder_to_make

A = TypeVar("A")
B = TypeVar("B")
_THREADS = 8


@dataclass
class Transfer:
    """The copy of one dataset.

    Attributes:
        place: where the copy is.
        columns: how many columns it has.
        shards: column shards that this call copied.
        there: column shards that existed before.
        bytes: size of the payloads that this call copied.
    """

    place: str
    columns: int = 0
    shards: int = 0
    there: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        before = f", {self.there} already existed" if self.there else ""
        return f"{self.columns} columns; copied {self.shards} column shards ({gb(self.bytes)}){before}"


def push(path: str | Path, url: str, *, columns: Sequence[str] = (), progress: bool = False) -> list[Transfer]:
    """Copies the finished shards of a dataset, or of each dataset in a folder, to a store.

    What was copied stays, and the next call continues from there.

    Args:
        path: a dataset or a folder of them.
        url: a folder in a store.
        columns: names; default: all.
        progress: show a bar.

    Returns:
        One report per dataset.

    Raises:
        DataError: the store holds another dataset, plan or record (the difference is shown).
        ConfigError: the URL cannot be used.
        StorageError: the store or a disk keeps failing.
    """
    target = as_url(url)
    if target is None:
        raise ConfigError(f"{url}: expected the URL of a folder in a store (s3://bucket/folder, gs://..., file:///...)")
    found = open_all(path)
    alone = found[0].place == (as_url(path) or str(Path(path)))
    places = [target if alone else f"{target}/{dataset.place.rsplit('/', 1)[-1]}" for dataset in found]
    done = [_push(dataset, Store(place), columns, progress) for dataset, place in zip(found, places, strict=True)]
    look_again()
    return done


def _push(dataset: Dataset, target: Store, names: Sequence[str], progress: bool) -> Transfer:
    columns = [dataset.column(name) for name in names or dataset.columns()]
    ours: dict[str, Any] = {"dataset.json": store.read_json(dataset.root / "dataset.json")}
    for column in columns:
        ours[f"{column.name}/column.json"] = store.read_json(column.folder / "column.json")
        ours |= {_record_name(column, shard): record for shard, record in _published(column)}
    there = target.listing()
    _compare(target.url, _parsed(target, [name for name in ours if name in there]), ours)
    keys = {f"keys/{name}.txt": shard for shard, name in enumerate(dataset.shards)}
    todo = [name for name in keys if name not in there]
    list(
        _at_once(
            lambda name: target.write(name, "".join(f"{key}\n" for key in dataset.keys(keys[name])).encode()), todo
        )
    )
    for name in ("dataset.json", *(f"{column.name}/column.json" for column in columns)):
        if name not in there:
            target.write(name, store.pretty_json(ours[name]))
    summary = Transfer(target.url, len(columns))

    def is_there(column: Column, shard: int, record: dict[str, Any]) -> bool:
        """Whether record and payload exist, the payload in its recorded size: a lost payload is pushed again."""
        payload = _payload_name(column, shard, record)
        return _record_name(column, shard) in there and there.get(payload, (None,))[0] == record["bytes"]

    def copy(shard: int) -> tuple[int, int, int]:
        known = {column.name: _record_name(column, shard) for column in columns if _record_name(column, shard) in ours}
        todo = [
            column
            for column in columns
            if column.name in known and not is_there(column, shard, ours[known[column.name]])
        ]
        sent: dict[str, int] = {}
        for column in todo:
            record, stem = ours[known[column.name]], f"{column.name}/{dataset.shards[shard]}"
            payload = _payload_name(column, shard, record)
            # where a view's payload belongs to another column, that one's record
            owner = f"{payload.rsplit('.', 1)[0]}.json"
            if payload not in sent and (owner not in there or there.get(payload, (None,))[0] != record["bytes"]):
                target.upload(payload, column.path(shard))
                sent[payload] = record["bytes"]
            target.write(f"{stem}.index.json", index_bytes(column.path(shard, "index"), record.get("index")))
            if (stats := column.path(shard, "stats")).exists():
                target.write(f"{stem}.stats.json", stats.read_bytes())
        for column in todo:
            target.write(known[column.name], store.pretty_json(ours[known[column.name]]))
        return len(todo), len(known) - len(todo), sum(sent.values())

    _each_shard(dataset, copy, summary, "pushing", progress)
    return summary


def pull(
    url: str, folder: str | Path, *, columns: Sequence[str] = (), lazy: bool = False, progress: bool = False
) -> list[Transfer]:
    """Copies a dataset, or each dataset in a folder, from a store, and checks payloads against their records.

    Args:
        url: a dataset in a store, or a folder of them.
        folder: where to.
        columns: names; default: all.
        lazy: copy only metadata. Payloads are fetched through the cache when they are read, so that a job can work in
            the folder and push its new column.
        progress: show a bar.

    Returns:
        One report per dataset.

    Raises:
        DataError, ConfigError, StorageError: as for `push`.
    """
    source = as_url(url)
    if source is None:
        raise ConfigError(f"{url}: expected the URL of a dataset in a store, or of a folder of them")
    require_local(folder, "a dataset is pulled")
    if not (found := datasets(source)):
        raise DataError(f"{source}: neither a dataset (dataset.json) nor a folder of datasets (train/, val/, test/)")
    roots = [Path(folder) if there == source else Path(folder) / there.rsplit("/", 1)[-1] for there in found]
    return [_pull(Store(there), root, columns, lazy, progress) for there, root in zip(found, roots, strict=True)]


def _pull(source: Store, root: Path, names: Sequence[str], lazy: bool, progress: bool) -> Transfer:
    there = source.listing()
    begun = sorted(name.split("/")[0] for name in there if name.endswith("/column.json") and is_metadata(name))
    if unknown := sorted(set(names) - set(begun)):
        raise DataError(f"{source.url}: no column {unknown[0]!r}. There are: {', '.join(begun) or 'none'}")
    wanted = [
        name
        for name in there
        if is_metadata(name) and (name == "dataset.json" or name.split("/")[0] in (names or begun))
    ]
    if "dataset.json" not in wanted:
        raise DataError(f"{source.url}: not a dataset (no dataset.json)")
    theirs = _parsed(source, wanted)
    check_meta(theirs["dataset.json"], f"{source.url}/dataset.json")
    _compare(str(root), {name: store.read_json(root / name) for name in theirs if (root / name).exists()}, theirs)
    folder_to_make(root)
    (root / "keys").mkdir(parents=True, exist_ok=True)
    if lazy:
        store.create_once(root / MARK, store.pretty_json({"url": source.url, "mirror": False}))
    keys = {f"keys/{shard['id']}.txt": shard["keys"] for shard in theirs["dataset.json"]["shards"]}
    _create(source, root, keys, end=-1)  # the digest of keys is without the last line break
    for name in (name for name in theirs if name == "dataset.json" or name.endswith("/column.json")):
        (root / name).parent.mkdir(exist_ok=True)
        store.create_once(root / name, store.pretty_json(theirs[name]))
    dataset = Dataset(root)
    columns = [dataset.column(name) for name in names or begun]
    summary = Transfer(str(root), len(columns))

    def copy(shard: int) -> tuple[int, int, int]:
        copied = there_before = size = 0
        for column in columns:
            name, stem = _record_name(column, shard), f"{column.name}/{dataset.shards[shard]}"
            if name not in theirs:
                continue
            new, fetched = not (root / name).exists(), 0
            if not lazy:
                payload = _payload_name(column, shard, theirs[name])
                fetched = _fetch(source, payload, root / payload, theirs[name], check=new)
                _create(source, root, {f"{stem}.index.json": theirs[name].get("index")})
            _create(source, root, {part: None for part in (f"{stem}.stats.json",) if part in there})
            store.create_once(root / name, store.pretty_json(theirs[name]))
            size += fetched
            if new or fetched:
                copied += 1
            else:
                there_before += 1
        return copied, there_before, size

    _each_shard(dataset, copy, summary, "pulling", progress)
    return summary


def _fetch(source: Store, name: str, path: Path, record: dict[str, Any], *, check: bool) -> int:
    """Fetches a payload unless it is there; an existing one without a record (`check`) is compared with its digest.

    Returns:
        Bytes fetched.
    """
    path.parent.mkdir(exist_ok=True)
    with claimed(path) as (tmp, fd):
        there = records.size_of(path)
        if there is None:
            source.download(name, fd, record)
            store.publish_once(tmp, path)
            return int(record["bytes"])
        if there != record["bytes"] and not check:  # truncated since it was pulled
            source.download(name, fd, record)
            tmp.replace(path)
            forget_files()
            return int(record["bytes"])
    if check and (path.stat().st_size != record["bytes"] or store.sha256_file(path) != record["sha256"]):
        raise DataError(
            f"{path}: not the payload of {source.url}/{name}, left by another program; remove it and pull again"
        )
    return 0


def _create(source: Store, root: Path, digests: Mapping[str, str | None], end: int | None = None) -> None:
    """Fetches files that do not exist yet.

    Args:
        source: the store.
        root: of the dataset here.
        digests: what to fetch, and the sha256 that was recorded of its bytes up to `end`; None: nothing was.
        end: as in slices.

    Raises:
        DataError: the store does not hold what was recorded.
    """
    missing = checked_names([name for name in digests if not (root / name).exists()], source.url)
    for name, data in zip(missing, source.read(missing), strict=True):
        if digests[name] not in (None, hashlib.sha256(data[:end]).hexdigest()):
            raise DataError(
                f"{source.url}/{name}: damaged, not the sha256 that was recorded; push the dataset again from a folder"
                " that is sound"
            )
        store.create_once(root / name, data)


def _each_shard(
    dataset: Dataset, copy: Callable[[int], tuple[int, int, int]], summary: Transfer, what: str, progress: bool
) -> None:
    """Adds up the results of copy(shard): (column shards copied, column shards that existed, bytes)."""
    with bar(progress, f"{what} {dataset.split}", len(dataset.shards), "shards") as advance:
        for copied, there, size in _at_once(copy, range(len(dataset.shards))):
            summary.shards += copied
            summary.there += there
            summary.bytes += size
            advance()


def _at_once(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Works on several items at a time and yields the results in order; after an error nothing further is started."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield from pool.map(work, items)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _record_name(column: Column, shard: int) -> str:
    return f"{column.name}/{column.dataset.shards[shard]}.json"


def _published(column: Column) -> Iterator[tuple[int, dict[str, Any]]]:
    """(shard, record) as pushed: a tar made elsewhere becomes a payload of the column it belongs to, or of the view."""
    dataset = column.dataset
    owner = dataset.column(column.view_of) if column.view_of in dataset.columns() else None
    for shard in column.finished():
        record = column.record(shard)
        if "url" in record:
            record = {key: value for key, value in record.items() if key not in ("url", "mtime", "digest")}
            if owner and owner.path(shard, "record").exists() and owner.record(shard)["sha256"] == record["sha256"]:
                record["url"] = f"../{_payload_name(owner, shard, {})}"
            record = store.with_digest(record)
        yield shard, record


def _payload_name(column: Column, shard: int, record: dict[str, Any]) -> str:
    """The payload's name relative to the dataset's folder."""
    root, own = column.dataset.root, f"{column.dataset.shards[shard]}.{'npy' if column.kind == 'matrix' else 'tar'}"
    return relative(column.folder / record.get("url", own), root, column.dataset.place)


def _parsed(source: Store, names: list[str]) -> dict[str, Any]:
    """{name: JSON object}, commit records checked. Raises DataError, naming the object in the store that is damaged."""
    values = {}
    for name, data in zip(names, source.read(names), strict=True):
        place = f"{source.url}/{name}"
        try:
            values[name] = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{place}: not valid JSON ({e})") from e
        if not isinstance(values[name], dict):
            raise DataError(f"{place}: expected a JSON object, found {repr(values[name])[:80]}")
        if name.count("/") == 1 and not name.endswith("/column.json"):
            records.check(values[name], place)
    return values


def _compare(place: str, there: dict[str, Any], asked: dict[str, Any]) -> None:
    lines = list(_differences(there, asked))
    if lines:
        shown = "\n  ".join(lines[:20] + ([f"... {len(lines) - 20} more"] if len(lines) > 20 else []))
        raise DataError(
            f"{place}: already holds something else; the difference:\n  {shown}\nuse another place, or remove what is"
            " there"
        )


def _differences(there: dict[str, Any], asked: dict[str, Any]) -> Iterator[str]:
    for name, value in there.items():
        mine, other = (records.identity(one) for one in (asked[name], value))
        yield from (f"{name}: {line}" for line in store.differences(other, mine))

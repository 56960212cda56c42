"""`shards pull`: copies datasets from an object store into a folder, whole or only their metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_dist.data.storage import store
from ccr_dist.data.storage.file_ranges import forget_files
from ccr_dist.data.storage.object_store import Store, as_url, require_local
from ccr_dist.data.storage.payload_cache import claimed
from ccr_dist.data.storage.remote import MARK, behind, checked_names, datasets, is_metadata
from ccr_dist.data.table import records
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.dataset_rows import check_meta
from ccr_dist.data.table.stores.transfer import Transfer, compare, each_shard, parsed, payload_name, record_name
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.places import folder_to_make


def pull(
    url: str, folder: str | Path, *, columns: Sequence[str] = (), lazy: bool = False, progress: bool = False
) -> list[Transfer]:
    """Copy a dataset, or each dataset in a folder, from a store, and check payloads against their records.

    Args:
        url: A dataset in a store, or a folder of datasets.
        folder: The folder to copy into.
        columns: Names of columns; by default all.
        lazy: Whether to copy only metadata. Payloads are then fetched through the cache when they are read, so that a
            job can work in the folder and push its new column.
        progress: Whether to show a progress bar.

    Returns:
        One report per dataset.

    Raises:
        DataError: There is no dataset at the URL, its files are damaged, or the folder holds another dataset, plan or
            record (the difference is shown).
        ConfigError: The URL cannot be used, or `folder` is one, or it fetches what it lacks from another URL.
        StorageError: The store or a disk keeps failing.
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
    theirs = parsed(source, wanted)
    check_meta(theirs["dataset.json"], f"{source.url}/dataset.json")
    compare(str(root), {name: store.read_json(root / name) for name in theirs if (root / name).exists()}, theirs)
    if lazy and (before := behind(root)) and before.url != source.url:
        raise ConfigError(
            f"{root}: what it lacks is fetched from {before.url} ({MARK}), not from {source.url}: pull into another"
            " folder, or remove that file first"
        )
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
            name, stem = record_name(column, shard), f"{column.name}/{dataset.shards[shard]}"
            if name not in theirs:
                continue
            new, fetched = not (root / name).exists(), 0
            if not lazy:
                payload = payload_name(column, shard, theirs[name])
                fetched = _fetch(source, payload, root / payload, theirs[name], check=new)
                _create(source, root, {f"{stem}.index.json": theirs[name].get("index")})
            further = (f"{stem}.stats.json", f"{stem}.errors.jsonl")
            _create(source, root, {part: None for part in further if part in there})
            store.create_once(root / name, store.pretty_json(theirs[name]))
            size += fetched
            if new or fetched:
                copied += 1
            else:
                there_before += 1
        return copied, there_before, size

    each_shard(dataset, copy, summary, "pulling", progress)
    return summary


def _fetch(source: Store, name: str, path: Path, record: dict[str, Any], *, check: bool) -> int:
    """Fetch a payload unless it exists.

    Args:
        source: The store.
        name: Name of the payload in the store.
        path: The local file.
        record: Its commit record.
        check: Whether to compare an existing payload with its digest, since it has no record here.

    Returns:
        Bytes fetched.

    Raises:
        DataError: The existing payload is another one.
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
    """Fetch files that do not exist yet.

    Args:
        source: The store.
        root: The dataset's folder here.
        digests: Recorded sha256 of each file's bytes up to `end`, by name; None if none was recorded.
        end: End of a slice of the bytes.

    Raises:
        DataError: A file in the store is not what was recorded.
    """
    missing = checked_names([name for name in digests if not (root / name).exists()], source.url)
    for name, data in zip(missing, source.read(missing), strict=True):
        if digests[name] not in (None, hashlib.sha256(data[:end]).hexdigest()):
            raise DataError(
                f"{source.url}/{name}: damaged, not the sha256 that was recorded; push the dataset again from a folder"
                " that is sound"
            )
        store.create_once(root / name, data)

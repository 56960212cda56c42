"""`shards push`: copies finished shards of datasets to an object store.

A foreign tar becomes the payload of the column that it belongs to; the records of its views then point there by a
relative `url`.

Not every store can create an object only if it is absent. If two people push different datasets to one URL at the same
moment, their files can mix; readers notice by the digests in the records. A shard that a job in the store has leased
is not pushed. A job may also begin, or end, while a shard is pushed: where a job can make it, its payload is created
only if it is absent, as the job's is, and the leases are looked at once more before the record is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ccr_dist.data.storage import store
from ccr_dist.data.storage.object_store import Store, as_url
from ccr_dist.data.storage.remote import look_again
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset, open_all
from ccr_dist.data.table.names import JOBS
from ccr_dist.data.table.payload import index_bytes
from ccr_dist.data.table.stores.transfer import (
    Transfer,
    at_once,
    compare,
    each_shard,
    parsed,
    payload_name,
    record_name,
)
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.places import folder_to_make


def push(path: str | Path, url: str, *, columns: Sequence[str] = (), progress: bool = False) -> list[Transfer]:
    """Copy the finished shards of a dataset, or of each dataset in a folder, to a store.

    After an interruption, the next call continues with what is missing.

    Args:
        path: A dataset or a folder of datasets.
        url: A folder in a store.
        columns: Names of columns; by default all.
        progress: Whether to show a progress bar.

    Returns:
        One report per dataset.

    Raises:
        DataError: The store holds another dataset, plan or record (the difference is shown), or a job there makes a
            shard that is to be pushed.
        ConfigError: The URL cannot be used.
        StorageError: The store or a disk keeps failing.
    """
    target = as_url(url)
    if target is None:
        raise ConfigError(f"{url}: expected the URL of a folder in a store (s3://bucket/folder, gs://..., file:///...)")
    if target.startswith("file:"):
        folder_to_make(Path(target.removeprefix("file://")))
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
        ours |= {record_name(column, shard): record for shard, record in _published(column)}
    there = target.listing()
    compare(target.url, parsed(target, [name for name in ours if name in there]), ours)
    keys = {f"keys/{name}.txt": shard for shard, name in enumerate(dataset.shards)}
    todo = [name for name in keys if name not in there]
    list(
        at_once(lambda name: target.write(name, "".join(f"{key}\n" for key in dataset.keys(keys[name])).encode()), todo)
    )
    for name in ("dataset.json", *(f"{column.name}/column.json" for column in columns)):
        if name not in there:
            target.write(name, store.pretty_json(ours[name]))
    summary = Transfer(target.url, len(columns))

    def is_there(column: Column, shard: int, record: dict[str, Any]) -> bool:
        """Whether record and payload exist, the payload in its recorded size: a lost payload is pushed again."""
        payload = payload_name(column, shard, record)
        return record_name(column, shard) in there and there.get(payload, (None,))[0] == record["bytes"]

    def copy(shard: int) -> tuple[int, int, int]:
        known = {column.name: record_name(column, shard) for column in columns if record_name(column, shard) in ours}
        todo = [
            column
            for column in columns
            if column.name in known and not is_there(column, shard, ours[known[column.name]])
        ]
        for column in todo:
            _require_free(target, column, shard)
        sent: dict[str, int] = {}
        for column in todo:
            record, stem = ours[known[column.name]], f"{column.name}/{dataset.shards[shard]}"
            payload = payload_name(column, shard, record)
            # where a view's payload belongs to another column, that one's record
            owner = f"{payload.rsplit('.', 1)[0]}.json"
            if payload not in sent and (owner not in there or there.get(payload, (None,))[0] != record["bytes"]):
                _send(target, payload, column, shard, replaced=payload in there)
                sent[payload] = record["bytes"]
            target.write(f"{stem}.index.json", index_bytes(column.path(shard, "index"), record.get("index")))
            for further in (column.path(shard, "stats"), column.path(shard, "errors")):
                if further.exists():
                    target.write(f"{column.name}/{further.name}", further.read_bytes())
        for column in todo:
            _require_free(target, column, shard)
            target.write(known[column.name], store.pretty_json(ours[known[column.name]]))
        return len(todo), len(known) - len(todo), sum(sent.values())

    each_shard(dataset, copy, summary, "pushing", progress)
    return summary


def _send(target: Store, name: str, column: Column, shard: int, *, replaced: bool) -> None:
    """Upload a payload. One that jobs make is created, unless push has seen (`replaced`) that a former push, or a job
    that died, has left one. DataError if a job has made it since push looked.
    """
    path = column.path(shard)
    if replaced or "processor" not in column.plan:
        target.upload(name, path)
    elif not target.create_or_upload(name, path):
        raise DataError(
            f"{target.url}/{name}: a job in the store has made this payload since `push` began; let the job end"
            f" (`ccr-dist jobs status {target.url}`), then push again: what differs from here is shown then"
        )


def _require_free(target: Store, column: Column, shard: int) -> None:
    """Raises DataError if a job in the store holds a shard that is about to be written: two payloads could mix."""
    place = f"{column.name}/{JOBS}/{column.dataset.shards[shard]}.lease."
    if "processor" in column.plan and (leases := sorted(target.listing(place))):
        raise DataError(
            f"{target.url}/{leases[-1]}: a job in the store makes this shard, which is finished here: let the job end"
            f" (`ccr-dist jobs status {target.url}`; what a worker that died has left ends with the next one), then"
            " push again"
        )


def _published(column: Column) -> Iterator[tuple[int, dict[str, Any]]]:
    """(shard, record) as pushed: a foreign tar becomes the payload of the column that it belongs to, or of the view."""
    dataset = column.dataset
    owner = dataset.column(column.view_of) if column.view_of in dataset.columns() else None
    for shard in column.finished():
        record = column.record(shard)
        if "url" in record:
            record = {key: value for key, value in record.items() if key not in ("url", "mtime", "digest")}
            if owner and owner.path(shard, "record").exists() and owner.record(shard)["sha256"] == record["sha256"]:
                record["url"] = f"../{payload_name(owner, shard, {})}"
            record = store.with_digest(record)
        yield shard, record

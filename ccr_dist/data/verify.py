"""Whether a dataset is what its records say, down to every value, or (fast) as far as file sizes and indexes tell. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ccr_dist.data import remote, seal, store
from ccr_dist.data.bar import bar
from ccr_dist.data.decode import decode_image, is_present, texts_of
from ccr_dist.data.payload import pick
from ccr_dist.data.table import Column, Dataset, keys_digest, open_all
from ccr_dist.data.tar import ShardIndex
from ccr_dist.data.video import decode_video
from ccr_dist.errors import DataError


@dataclass(frozen=True)
class Problem:
    """Something that is not as recorded: which file, and what about it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(path: str | Path, *, decode: bool = True, fast: bool = False, progress: bool = False) -> list[Problem]:
    """Problems of a dataset, or of a folder of them; none: it is sound.

    Checked: digests, keys and indexes of every shard, that every value is of its column's kind, pictures and videos decode (unless
    decode=False), vectors are finite and of one width, translated captions are as many as those they were made from, nothing is unfinished.
    DataError only where PATH holds no dataset.

    fast: no payload is read. Checked are records and keys, that payloads are there and of the recorded size, and that the indexes have the
    keys and as many null rows as recorded.
    """
    problems: list[Problem] = []
    datasets = open_all(path)
    columns: list[Column] = []
    for dataset in datasets:
        if fast:
            problems += _keys(dataset)
        for name in dataset.columns():
            try:
                columns.append(dataset.column(name).unsealed())
            except DataError as e:
                problems.append(Problem(f"{dataset.root / name}", str(e)))
        if not dataset.columns():
            problems.append(Problem(str(dataset.root), "no columns"))
    with bar(progress, "verifying", sum(len(column.dataset.shards) for column in columns), "shards") as advance:
        for column in columns:
            widths: dict[int, str] = {}
            check = _fast(column) if fast else lambda shard, column=column, widths=widths: _shard(column, shard, decode, widths)
            problems += _column(column, check, advance)
            if len(widths) > 1:
                found = ", ".join(f"{d} in {where}" for d, where in widths.items())
                problems.append(Problem(str(column.folder), f"vectors of different widths: {found}"))
    return problems


def _column(column: Column, check: Callable[[int], Iterator[Problem]], advance: Callable[[], None]) -> Iterator[Problem]:
    done = column.finished()
    if missing := column.missing():
        names = ", ".join(column.dataset.shards[i] for i in missing[:8])
        yield Problem(str(column.folder), f"{len(missing)} of {len(column.dataset.shards)} shards are not finished: {names}")
    try:
        yield from (Problem(str(column.folder / seal.META), what) for what in seal.differences(column))
    except (DataError, OSError) as e:
        yield Problem(str(column.folder / seal.META), str(e))
    for shard in range(len(column.dataset.shards)):
        if shard in done:
            try:
                yield from check(shard)
            except (DataError, OSError) as e:
                yield Problem(str(column.path(shard, "record")), str(e))
        advance()


def _keys(dataset: Dataset) -> Iterator[Problem]:
    for shard in range(len(dataset.shards)):
        try:
            dataset.keys(shard)
        except DataError as e:
            yield Problem(str(dataset.root / "keys"), str(e))


def _fast(column: Column) -> Callable[[int], Iterator[Problem]]:
    dataset, suffix = column.dataset, ".npy" if column.kind == "matrix" else ".tar"

    @cache
    def stored() -> dict[str, tuple[int, int]]:
        """What the store behind the dataset has, so that nothing is fetched to know its size."""
        assert dataset.remote is not None
        return remote.Store(dataset.remote.url).listing()

    def size(payload: Path) -> int | None:
        try:
            return payload.stat().st_size
        except FileNotFoundError:
            there = dataset.remote and stored().get(remote.relative(payload, dataset.root, dataset.place))
            return there[0] if there else None

    def check(shard: int) -> Iterator[Problem]:
        record = column.record(shard)
        payload = column.folder / record.get("url", dataset.shards[shard] + suffix)
        if (found := size(payload)) != record["bytes"]:
            what = "missing" if found is None else f"{found} bytes"
            yield Problem(str(payload), f"{what}, the commit record says {record['bytes']} bytes; build or index it again")
        path = column.path(shard, "index")
        index = store.read_json(path)
        try:
            keys = index["keys"] if column.kind == "matrix" else keys_digest(index["keys"])
            nulls = len(index["nulls"])
        except (KeyError, TypeError) as e:
            raise DataError(f"{path}: damaged index ({e!r})") from e
        if keys != record["keys"] or nulls != record["nulls"]:
            yield Problem(str(path), f"{nulls} null rows{' and other keys' * (keys != record['keys'])}, the record says {record['nulls']}")

    return check


def _shard(column: Column, shard: int, decode: bool, widths: dict[int, str]) -> Iterator[Problem]:
    record = column.record(shard)
    payload = column.path(shard)
    if payload.stat().st_size != record["bytes"] or store.sha256_file(payload) != record["sha256"]:
        yield Problem(
            str(payload), "its bytes are not those of the commit record (size or sha256): damaged or changed; build or index it again"
        )
        return
    there = column.present(shard)
    if int((~there).sum()) != record["nulls"]:
        yield Problem(str(column.path(shard, "index")), f"{int((~there).sum())} null rows, the record says {record['nulls']}")
    if column.kind == "matrix":
        array, offsets = column.matrix(shard)
        widths.setdefault(array.shape[1], column.dataset.shards[shard])
        if not np.isfinite(array).all():
            yield Problem(str(payload), f"{int((~np.isfinite(array)).any(1).sum())} vectors are not finite")
        if not np.array_equal(np.diff(offsets) > 0, there):
            yield Problem(str(column.path(shard, "index")), "its null rows are not those of the payload")
        return
    yield from _index(column, shard)
    source = _source(column, shard)
    for row in range(record["rows"]):
        where = column.where(shard, row)
        try:
            value = column.value(shard, row)
            if is_present(column.kind, value) != there[row]:
                yield Problem(str(where), f"the index says {'a value' if there[row] else 'null'}, the payload another thing")
            if column.kind == "image" and value is not None and decode:
                decode_image(value, where)
            if column.kind == "video" and value is not None and decode:
                decode_video(value, where, frames=1)
            if source is not None and value is not None:
                made_from = texts_of(source.value(shard, row))
                if len(made_from) != len(value):
                    yield Problem(str(where), f"{len(value)} captions, but {len(made_from)} in {source.name}, which they were made from")
        except DataError as e:
            yield Problem(str(where), str(e))


def _index(column: Column, shard: int) -> Iterator[Problem]:
    stored = ShardIndex.from_json(store.read_json(column.path(shard, "index")))
    found = ShardIndex.scan(column.path(shard))
    if stored.keys != found.keys or not all(map(np.array_equal, pick(stored, column.extension), pick(found, column.extension))):
        yield Problem(str(column.path(shard, "index")), "does not fit the payload; remove it and the record and run again")


def _source(column: Column, shard: int) -> Column | None:
    """The caption or description column that a translated one was made from, where it has this shard."""
    inputs = column.plan.get("inputs")
    if column.kind != "texts" or not isinstance(inputs, dict) or len(inputs) != 1:
        return None
    name = next(iter(inputs))
    dataset: Dataset = column.dataset
    if name not in dataset.columns():
        return None
    source = dataset.column(name)
    return source if source.kind in ("texts", "views") and shard in source.finished() else None

"""Whether a dataset is what its records say, down to every value. Reads everything once; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccr_dist.data import store
from ccr_dist.data.bar import bar
from ccr_dist.data.decode import decode_image, is_present
from ccr_dist.data.payload import pick
from ccr_dist.data.table import Column, Dataset, open_all
from ccr_dist.data.tar import ShardIndex
from ccr_dist.errors import DataError


@dataclass(frozen=True)
class Problem:
    """Something that is not as recorded: which file, and what about it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(path: str | Path, *, decode: bool = True, progress: bool = False) -> list[Problem]:
    """Problems of a dataset, or of a folder of them; none: it is sound.

    Checked: digests, keys and indexes of every shard, that every value is of its column's kind, pictures decode (unless decode=False),
    vectors are finite and of one width, translated captions are as many as those they were made from, nothing is unfinished. DataError
    only where PATH holds no dataset.
    """
    problems: list[Problem] = []
    datasets = open_all(path)
    columns: list[Column] = []
    for dataset in datasets:
        for name in dataset.columns():
            try:
                columns.append(dataset.column(name))
            except DataError as e:
                problems.append(Problem(f"{dataset.root / name}", str(e)))
        if not dataset.columns():
            problems.append(Problem(str(dataset.root), "no columns"))
    with bar(progress, "verifying", sum(len(column.dataset.shards) for column in columns), "shards") as advance:
        for column in columns:
            problems += _column(column, decode, advance)
    return problems


def _column(column: Column, decode: bool, advance: object) -> Iterator[Problem]:
    done = column.finished()
    if missing := column.missing():
        names = ", ".join(column.dataset.shards[i] for i in missing[:8])
        yield Problem(str(column.folder), f"{len(missing)} of {len(column.dataset.shards)} shards are not finished: {names}")
    widths: dict[int, str] = {}
    for shard in range(len(column.dataset.shards)):
        if shard in done:
            try:
                yield from _shard(column, shard, decode, widths)
            except (DataError, OSError) as e:
                yield Problem(str(column.path(shard, "record")), str(e))
        assert callable(advance)
        advance()
    if len(widths) > 1:
        yield Problem(str(column.folder), f"vectors of different widths: {', '.join(f'{d} in {where}' for d, where in widths.items())}")


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
        try:
            value = column.value(shard, row)
            if is_present(column.kind, value) != there[row]:
                yield Problem(column.where(shard, row), f"the index says {'a value' if there[row] else 'null'}, the payload another thing")
            if column.kind == "image" and value is not None and decode:
                decode_image(value, column.where(shard, row))
            if source is not None and value is not None:
                made_from = source.value(shard, row) or []
                if len(made_from) != len(value):
                    yield Problem(
                        column.where(shard, row), f"{len(value)} captions, but {len(made_from)} in {source.name}, which they were made from"
                    )
        except DataError as e:
            yield Problem(column.where(shard, row), str(e))


def _index(column: Column, shard: int) -> Iterator[Problem]:
    stored = ShardIndex.from_json(store.read_json(column.path(shard, "index")))
    found = ShardIndex.scan(column.path(shard))
    if stored.keys != found.keys or not all(map(np.array_equal, pick(stored, column.extension), pick(found, column.extension))):
        yield Problem(str(column.path(shard, "index")), "does not fit the payload; remove it and the record and run again")


def _source(column: Column, shard: int) -> Column | None:
    """The caption column that a translated one was made from, where it has this shard."""
    inputs = column.plan.get("inputs")
    if column.kind != "texts" or not isinstance(inputs, dict) or len(inputs) != 1:
        return None
    name = next(iter(inputs))
    dataset: Dataset = column.dataset
    if name not in dataset.columns():
        return None
    source = dataset.column(name)
    return source if source.kind == "texts" and shard in source.finished() else None

"""Checks a dataset against its records, down to every value, or (fast) as far as file sizes and indexes show. Changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ccr_dist.data.media.decode import decode_image, is_present, texts_of
from ccr_dist.data.media.video import decode_video
from ccr_dist.data.storage import remote, store
from ccr_dist.data.storage.progress_bar import bar
from ccr_dist.data.storage.tar import ShardIndex
from ccr_dist.data.table import seal, sealing
from ccr_dist.data.table.dataset import Column, Dataset, keys_digest, open_all
from ccr_dist.data.table.dataset_rows import DatasetRows
from ccr_dist.data.table.payload import pick
from ccr_dist.errors import DataError, StorageError, failing


@dataclass(frozen=True)
class Problem:
    """Something that is not as recorded.

    Attributes:
        where: The file or value.
        what: What is wrong with it.
        damage: The part that `repair` can work on: `record`, `payload`, `index` or `keys` of a shard, or the `seal` of
            a column; empty for none.
        dataset: The dataset concerned.
        column: The column concerned, if any.
        shard: Its number; -1 for none.
        unread: Whether storage failed, so that nothing is known about the content.
    """

    where: str
    what: str
    damage: str = ""
    dataset: DatasetRows | None = field(default=None, repr=False, compare=False)
    column: Column | None = field(default=None, repr=False, compare=False)
    shard: int = -1
    unread: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(path: str | Path, *, decode: bool = True, fast: bool = False, progress: bool = False) -> list[Problem]:
    """Checks a dataset, or each dataset in a folder. `repair.py` repairs what can be repaired.

    Checked are digests, keys and indexes of every shard; that every value is of its column's kind, pictures and videos
    can be decoded, vectors are finite and of one width; that there are as many translations as captions they were made
    from; that columns were made from the present content of others; that nothing is unfinished.

    Args:
        path: A dataset or a folder of them.
        decode: Whether to decode every picture, and a frame of every video.
        fast: Whether to read no payload. Then only records and keys are checked, that payloads exist with the recorded
            size, and that the indexes are the recorded ones.
        progress: Whether to show a progress bar.

    Returns:
        The problems; without any, the dataset is sound.

    Raises:
        DataError: There is no dataset in `path`.
    """
    problems: list[Problem] = []
    remote.look_again()
    datasets = open_all(path)
    columns: list[Column] = []
    for dataset in datasets:
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
            check = _fast if fast else partial(_shard, decode=decode, widths=widths)
            problems += _column(column, check, advance)
            if len(widths) > 1:
                found = ", ".join(f"{d} in {where}" for d, where in widths.items())
                problems.append(Problem(str(column.folder), f"vectors of different widths: {found}"))
    return problems


def unusable(path: str | Path) -> list[str]:
    """Values that were found unusable, and tolerated, when tars were indexed, with the reason.

    They count as null. They are not problems, since the records say the same.
    """
    columns = [dataset.column(name) for dataset in open_all(path) for name in dataset.columns()]
    foreign = (
        (column, shard) for column in columns for shard in sorted(column.finished()) if "url" in column.record(shard)
    )
    return [
        f"{column.folder}: {why}" for column, shard in foreign for why in column.index(shard).get("bad", {}).values()
    ]


def _column(
    column: Column, check: Callable[[Column, int], Iterator[Problem]], advance: Callable[[], None]
) -> Iterator[Problem]:
    recorded, lost = column.recorded(), column.lost()
    repairable = partial(Problem, dataset=column.dataset, column=column)
    if missing := [i for i in range(len(column.dataset.shards)) if i not in recorded]:
        names = ", ".join(column.dataset.shards[i] for i in missing[:8])
        what = f"{len(missing)} of {len(column.dataset.shards)} shards are not finished: {names}"
        yield Problem(str(column.folder), f"{what}; to make them: {column.remedy}")
    try:
        yield from (repairable(str(column.folder / seal.META), what, "seal") for what in sealing.differences(column))
    except (DataError, OSError) as e:
        yield _unread(e, column.folder / seal.META) or repairable(str(column.folder / seal.META), str(e), "seal")
    for shard in sorted(recorded):
        record = column.path(shard, "record")
        try:
            column.record(shard)
            if shard in lost:
                part = "index" if lost[shard].startswith(str(column.path(shard, "index", fetch=False))) else "payload"
                again = f"; to make it again: {column.remedy}" if part == "payload" else ""
                yield repairable(str(record), f"{lost[shard]}{again}", part, shard=shard)
            else:
                yield from check(column, shard)
        except (DataError, OSError) as e:
            part = "record" if not isinstance(e, StorageError) and str(e).startswith(str(record)) else ""
            part = part or ("index" if str(e).startswith(str(column.path(shard, "index", fetch=False))) else "")
            yield _unread(e, record) or repairable(str(record), str(e), part, shard=shard)
        advance()
    yield from _inputs(column)


def _unread(error: DataError | OSError, place: Path) -> Problem | None:
    failure = failing(error, place)
    if failure is None:
        return None
    return Problem(
        str(failure.filename), f"could not be read ({failure.strerror}): nothing is known about it", unread=True
    )


def _inputs(column: Column) -> Iterator[Problem]:
    """Yields a problem where the column that a job made this one from has other content now."""
    try:
        name = column.stale()
    except (DataError, OSError) as e:
        if failed := _unread(e, column.folder):
            yield failed
        return  # other errors are reported where the other column itself is checked
    if name:
        what = f"made from {name}, whose content has changed since"
        remedy = f"make {column.name} again, under another name or after removing {column.folder}"
        yield Problem(str(column.folder), f"{what}; {remedy}")


def _keys(dataset: Dataset) -> Iterator[Problem]:
    for shard in range(len(dataset.shards)):
        try:
            dataset.read_keys(shard)
        except DataError as e:
            yield Problem(str(dataset.root / "keys"), str(e), "keys", dataset=dataset, shard=shard)


def _fast(column: Column, shard: int) -> Iterator[Problem]:
    record, path, index = column.record(shard), column.path(shard, "index"), column.index(shard)
    try:
        keys = index["keys"] if column.kind == "matrix" else keys_digest(index["keys"])
        nulls = len(index["nulls"])
    except (KeyError, TypeError) as e:
        raise DataError(f"{path}: damaged index ({e!r})") from e
    if keys != record["keys"] or nulls != record["nulls"]:
        other = " and other keys" if keys != record["keys"] else ""
        what = f"{nulls} null rows{other}, the record says {record['nulls']}"
        yield Problem(str(path), what, "index", column.dataset, column, shard)


def _shard(column: Column, shard: int, *, decode: bool, widths: dict[int, str]) -> Iterator[Problem]:
    record = column.record(shard)
    payload = column.path(shard)
    if store.sha256_file(payload) != record["sha256"]:
        if "indexed" in column.plan:
            remedy = f"index it again: {column.remedy}"
        else:
            remedy = f"`shards verify --repair`, then {column.remedy}"
        what = f"its sha256 is not that of the commit record: damaged or changed; to make it again: {remedy}"
        yield Problem(str(payload), what, "payload", column.dataset, column, shard)
        return
    there = column.present(shard)
    if int((~there).sum()) != record["nulls"]:
        what = f"{int((~there).sum())} null rows, the record says {record['nulls']}"
        yield Problem(str(column.path(shard, "index")), what, "index", column.dataset, column, shard)
    if column.kind == "matrix":
        array, offsets = column.matrix(shard)
        widths.setdefault(array.shape[1], column.dataset.shards[shard])
        if not np.isfinite(array).all():
            yield Problem(str(payload), f"{int((~np.isfinite(array)).any(1).sum())} vectors are not finite")
        if not np.array_equal(np.diff(offsets) > 0, there):
            what = "its null rows are not those of the payload"
            yield Problem(str(column.path(shard, "index")), what, "index", column.dataset, column, shard)
        return
    yield from _index(column, shard)
    source = _source(column, shard)
    for row in range(record["rows"]):
        where = column.where(shard, row)
        try:
            value = column.value(shard, row)
            if is_present(column.kind, value) != there[row]:
                said, found = ("a value", "null") if there[row] else ("null", "a value")
                yield Problem(str(where), f"the index says {said}, the payload has {found}")
            if column.kind == "image" and value is not None and decode:
                decode_image(value, where)
            if column.kind == "video" and value is not None and decode:
                decode_video(value, where, frames=1)
            if source is not None and value is not None:
                made_from = texts_of(source.value(shard, row))
                if len(made_from) != len(value):
                    yield Problem(
                        str(where),
                        f"{len(value)} captions, but {len(made_from)} in {source.name}, from which they were made",
                    )
        except DataError as e:
            yield Problem(str(where), str(e))


def _index(column: Column, shard: int) -> Iterator[Problem]:
    path, content = column.path(shard, "index"), column.index(shard)
    try:
        stored = ShardIndex.from_json(content)
        found = ShardIndex.scan(column.path(shard), prefix=str(content.get("prefix", "")), usable=True)
        same = stored.keys == found.keys and all(
            map(np.array_equal, pick(stored, column.extension), pick(found, column.extension))
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as e:
        if isinstance(e, DataError):
            raise
        raise DataError(f"{path}: damaged index ({e!r})") from e
    if not same:
        yield Problem(
            str(path),
            "does not fit the payload; `verify --repair` makes it again",
            "index",
            column.dataset,
            column,
            shard,
        )


def _source(column: Column, shard: int) -> Column | None:
    """The caption or description column from which a translated one was made, if it has this shard."""
    inputs = column.plan.get("inputs")
    if column.kind != "texts" or not isinstance(inputs, dict) or len(inputs) != 1:
        return None
    name = next(iter(inputs))
    dataset = column.dataset
    if name not in dataset.columns():
        return None
    source = dataset.column(name)
    return source if source.kind in ("texts", "views") and shard in source.finished() else None

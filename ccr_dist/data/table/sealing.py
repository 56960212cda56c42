"""Makes the seals of columns, and compares them with records and indexes. `seal.py` defines what a seal is."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from ccr_dist.data.storage import store
from ccr_dist.data.storage.progress_bar import bar
from ccr_dist.data.table import records, seal
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError


def seal_columns(dataset: Dataset, *, progress: bool = False) -> tuple[list[str], list[str]]:
    """Seals the complete columns. Existing seals are kept unless they are damaged.

    Args:
        dataset: A dataset with all its files in a folder.
        progress: Whether to show a progress bar.

    Returns:
        Names of (columns sealed now, columns left out because shards are missing).

    Raises:
        ConfigError: The dataset is backed by a store.
        DataError: A record or index is damaged.
    """
    if dataset.remote:
        raise ConfigError(
            f"{dataset.place}: sealing needs all files in a folder; `ccr-dist shards pull` the dataset first"
        )
    for folder in (dataset.root / name for name in dataset.columns()):
        store.tidy(folder)
    columns = [column for name in dataset.columns() if not _sealed(column := dataset.column(name).unsealed())]
    left = [column.name for column in columns if column.missing()]
    todo = [column for column in columns if column.name not in left]
    with bar(progress, "sealing", len(todo) * len(dataset.shards), "shards") as advance:
        for column in todo:
            for _ in _write(column):
                advance()
            dataset.forget(column.name)
    return [column.name for column in todo], left


def _sealed(column: Column) -> bool:
    """Whether there is a seal; a damaged one is removed."""
    try:
        return _seal_of(column) is not None
    except DataError:
        seal.remove(column.folder)
        return False


def _write(column: Column) -> Iterator[None]:
    shards = range(len(column.dataset.shards))
    said = [column.record(shard) for shard in shards]
    some = any(record["nulls"] for record in said)
    if some:
        masks = [np.packbits(column.present(shard)) for shard in shards]
    else:
        masks = [np.zeros(0, np.uint8)] * len(shards)
    checks = []
    widths: dict[int, str] = {}
    path = column.folder / seal.PLACES
    with store.staged(path) as tmp:
        with tmp.open("wb") as file:
            np.save(store.Plain(file), np.concatenate([*masks, np.zeros(0, np.uint8)]))
            header = {"descr": "<i8", "fortran_order": False, "shape": (column.dataset.rows, 2)}
            np.lib.format.write_array_header_1_0(file, header)
            for shard in shards:
                places = column.places(shard)
                widths.setdefault(places.width, column.dataset.shards[shard])
                data = np.stack([places.offsets, places.sizes], axis=1).astype("<i8").tobytes()
                checks.append(seal.check_of(masks[shard].tobytes(), data))
                file.write(data)
                yield
            file.flush()
            os.fsync(file.fileno())
        if len(widths) > 1:
            found = ", ".join(f"{width} in {shard}" for width, shard in widths.items())
            raise DataError(f"{column.folder}: vectors of different widths ({found}); the column cannot be used")
        sha256, size = store.sha256_file(tmp), tmp.stat().st_size
        tmp.replace(path)  # the file of a removed seal may still be there
        store.sync_folder(column.folder)
    kept = [
        {**{key: value for key, value in record.items() if key not in records.OF_THE_DATASET}, "check": check}
        for record, check in zip(said, checks, strict=True)
    ]
    about = {
        "format": seal.FORMAT,
        "dataset": column.dataset.digest,
        "plan": column.plan_digest,
        "width": next(iter(widths), 0),
    }
    content = store.with_digest({**about, "places": {"bytes": size, "sha256": sha256}, "shards": kept})
    store.create_once(column.folder / seal.META, store.canonical_json(content))


def differences(column: Column) -> Iterator[str]:
    """Compares the seal of a column, if there is one, with its records and indexes.

    Args:
        column: Opened without its seal.

    Yields:
        A phrase about each shard that differs.
    """
    if (sealed := _seal_of(column)) is None:
        return
    for shard in range(len(column.dataset.shards)):
        record, mine, bits = sealed.record(shard), sealed.places(shard), sealed.present(shard)
        try:
            theirs, same = column.places(shard), record == column.record(shard)
            same = same and np.array_equal(mine.offsets, theirs.offsets) and np.array_equal(mine.sizes, theirs.sizes)
            same = same and mine.width == theirs.width and np.array_equal(bits, column.present(shard))
        except (DataError, OSError):
            if column.path(shard, "record").exists():
                continue  # reported where the shard itself is checked
            same = False
        if not same:
            yield f"differs from the record and index of shard {column.dataset.shards[shard]}; remove it, or seal again"


def _seal_of(column: Column) -> seal.Seal | None:
    return seal.load(column.dataset, column.folder, column.plan_digest)

"""What an earlier `shards index` left in a dataset, compared with the tars as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ccr_dist.data.corpora import foreign_tars
from ccr_dist.data.storage import store
from ccr_dist.data.storage.tar import ShardIndex
from ccr_dist.data.table.column import Foreign
from ccr_dist.data.table.dataset import Column, Dataset
from ccr_dist.errors import ConfigError, DataError

_SHOWN = 10


def indexed_columns(out: Path) -> list[Column]:
    """The indexed columns of the dataset at `out`, if there is one."""
    if not (out / "dataset.json").exists():
        return []
    dataset = Dataset(out)
    return [column for name in dataset.columns() if "indexed" in (column := dataset.column(name).unsealed()).plan]


def key_rule(keys: str, known: Sequence[Column], scans: Sequence[ShardIndex], paths: Sequence[Path]) -> str:
    """Decide how keys are made.

    Args:
        keys: `own`, `tar` or `auto`, as asked for.
        known: Columns that were indexed before; their rule stays.
        scans: What is in each tar.
        paths: The tars.

    Returns:
        `own` or `tar`.

    Raises:
        ConfigError: The dataset was indexed by the other rule.
        DataError: `own`, but a key is in two tars.
    """
    if known:  # a dataset keeps its rule
        before = known[0].plan["indexed"].get("keys", "own")
        if keys not in ("auto", before):
            raise ConfigError(f"{known[0].dataset.root}: was indexed with --keys {before}; index into another --out")
        keys = before
    twice = foreign_tars.repeated(scans, paths) if keys != "tar" else None
    if twice and keys == "own":
        key, one, other = twice
        raise DataError(
            f"the key {key!r} is in {one} and in {other}: keys must be unique in a dataset; --keys tar puts the tar's"
            " name first"
        )
    return "tar" if twice or keys == "tar" else "own"


def require_same_rows(out: Path, scans: Sequence[ShardIndex], paths: Sequence[Path]) -> None:
    """Refuse to index other rows into an existing dataset.

    Args:
        out: Folder of the dataset.
        scans: What is in each tar, with final keys.
        paths: The tars.

    Raises:
        DataError: `out` is a dataset of other rows; names the rows that differ.
    """
    if not (out / "dataset.json").exists():
        return
    dataset = Dataset(out)
    if len(scans) != len(dataset.shards):
        what = f"{out}: is a dataset of {len(dataset.shards)} tars, and {len(scans)} are given"
        if len(scans) < len(dataset.shards):
            raise DataError(f"{what}; to leave some out, index into another --out")
        raise DataError(
            f"{what}. A dataset does not grow, since columns made from it would no longer fit: index the new tars into"
            " an --out of their own, and name both datasets in the run's `data.train`"
        )
    for shard, (scan, path) in enumerate(zip(scans, paths, strict=True)):
        mine, theirs = set(scan.keys), set(dataset.keys(shard))
        if scan.keys == dataset.keys(shard):
            continue
        parts = []
        if gone := sorted(theirs - mine):
            parts.append(f"{len(gone)} are gone ({some(gone)})")
        if new := sorted(mine - theirs):
            parts.append(f"{len(new)} are new ({some(new)})")
        raise DataError(
            f"{path}: its rows differ from those of shard {dataset.shards[shard]} of {out}:"
            f" {'; '.join(parts) or 'they are in another order'}. Columns made from the old rows do not fit the new"
            " ones: restore the former tar, or index into another --out"
        )


def is_recorded(column: Column | None, shard: int, path: Path) -> bool:
    """Whether a column has a record of this tar, unchanged since, judging by path, size and time."""
    if column is None or not column.whole(shard):
        return False
    record, found = column.record(shard), path.stat()
    try:
        column.index(shard)
    except DataError:  # damaged: indexed again
        return False
    same = (record.get("url"), record["bytes"], record.get("mtime")) == (str(path), found.st_size, found.st_mtime_ns)
    return same or (
        "mtime" not in record and record.get("url") == str(path) and record["sha256"] == store.sha256_file(path)
    )


def stale_columns(dataset: Dataset, columns: Sequence[Column], paths: Sequence[Path]) -> list[str]:
    """Notes on columns that were indexed before and can no longer be read.

    Args:
        dataset: The dataset.
        columns: The columns that are indexed now.
        paths: The tars.
    """
    notes, asked = [], {column.name for column in columns}
    for column in indexed_columns(dataset.root):
        if column.name not in asked and any(not is_recorded(column, shard, path) for shard, path in enumerate(paths)):
            notes.append(
                f"{column.name}: was made from the former tars, and can no longer be read; index it again as well"
            )
    return notes


def changed_rows(column: Column, shard: int, own: ShardIndex, found: Foreign) -> list[str]:
    """Keys of the rows whose value has changed since the tar was recorded; all keys if the record does not show it.

    Args:
        column: The column, as recorded before.
        shard: Number of the tar.
        own: What is in the tar now.
        found: What was read from it now.
    """
    try:
        if column.record(shard)["sha256"] == found.sha256:
            return []
        before = np.asarray(column.index(shard)["crc"], np.uint32)
        return [own.keys[row] for row in np.flatnonzero(before != found.crc)]
    except (DataError, KeyError, TypeError, ValueError, OverflowError):
        return list(own.keys)


def some(keys: Sequence[str]) -> str:
    """The first keys, for messages."""
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")

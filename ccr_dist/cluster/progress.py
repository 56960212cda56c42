"""The progress of a step's command, by what it has committed: checkpoints of runs, shards of columns. From files
only; no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ccr_dist.data.table.dataset import open_all
from ccr_dist.declare import Table, Uses
from ccr_dist.errors import DataError


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units; `partial`: rows kept of unfinished units. Without a unit: unknown."""

    unit: str = ""
    done: int = 0
    total: int = 0
    partial: int = 0

    def beyond(self, before: Progress) -> bool:
        return (self.done, self.partial) > (before.done, before.partial)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**values)


def progress(uses: Uses, share: tuple[int, int] = (0, 1)) -> Progress:
    """The progress of a command; with the share (i, n) only of the shards i, i + n, ..."""
    if uses.steps:
        return Progress("steps", sum(map(_saved, uses.runs)), uses.steps)
    return Progress() if uses.fills is None else _column(uses.fills, share)


def _saved(run: Path) -> int:
    """The newest committed step. Not `train.checkpoint.steps`: that imports torch."""
    return max(
        (int(path.name[5:]) for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()), default=0
    )


def _column(table: Table, share: tuple[int, int]) -> Progress:
    folder, column = table.path, table.column
    assert column is not None
    done = total = partial = 0
    try:
        datasets = open_all(Path(folder))
    except DataError:
        return Progress("shards")
    for dataset in datasets:
        mine = set(dataset.shards[share[0] :: share[1]])
        total += len(mine)
        try:
            names = os.listdir(dataset.root / column)  # noqa: PTH208 (thousands of files)
        except FileNotFoundError:
            continue
        done += sum(name.removesuffix(".json") in mine for name in names if name.endswith(".json"))
        partial += _rows(dataset.root / column, names, mine)
    return Progress("shards", done, total, partial)


def _rows(folder: Path, names: Iterable[str], shards: set[str]) -> int:
    """In the journals of shards: of each the longest one, since a new one begins with what older ones have."""
    rows: dict[str, int] = {}
    for name in names:
        shard, _, rest = name.partition(".")
        if rest.startswith("journal.") and shard in shards:
            rows[shard] = max(rows.get(shard, 0), _lines(folder / name) - 1)  # the first line is a header
    return sum(rows.values())


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0

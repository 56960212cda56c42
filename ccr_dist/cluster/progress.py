"""The progress of a step's command, by what it has committed: checkpoints of runs, shards of columns. Read from files,
without torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from ccr_dist.data.storage import remote
from ccr_dist.data.storage.json_lines import has_types
from ccr_dist.data.storage.object_store import as_url
from ccr_dist.data.table.dataset import open_all
from ccr_dist.declare import Table, Uses
from ccr_dist.errors import DataError
from ccr_dist.generate.traces.base import Traces, WorkPlace
from ccr_dist.generate.traces.place import work_place


@dataclass(frozen=True)
class Progress:
    """Progress in units.

    Attributes:
        unit: "steps" or "shards"; "" if progress is unknown.
        done: Units that are committed.
        total: Units in all.
        partial: Rows kept of units that are not committed.
    """

    unit: str = ""
    done: int = 0
    total: int = 0
    partial: int = 0

    def beyond(self, before: Progress) -> bool:
        """Whether there is more than before."""
        return (self.done, self.partial) > (before.done, before.partial)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def fits(cls, values: dict[str, Any]) -> bool:
        """Whether `from_json` takes the values."""
        types = {field.name: type(field.default) for field in fields(cls)}
        return values.keys() <= types.keys() and has_types(values, types)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """From a JSON object."""
        return cls(**values)


def progress(uses: Uses, share: tuple[int, int] = (0, 1)) -> Progress:
    """The progress of a command.

    Args:
        uses: What it reads and makes.
        share: (i, n): count only the shards i, i + n, ...
    """
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
        if as_url(folder):
            remote.look_again()
        datasets = open_all(Path(folder))
    except DataError:
        return Progress("shards")
    for dataset in datasets:
        mine = set(dataset.shards[share[0] :: share[1]])
        total += len(mine)
        place = work_place(dataset, column)
        try:
            names = place.names()
        except FileNotFoundError:
            continue
        done += sum(name.removesuffix(".json") in mine for name in names if name.endswith(".json"))
        partial += sum(_rows(place, shard, traces) for shard, traces in place.look().items() if shard in mine)
    return Progress("shards", done, total, partial)


def _rows(place: WorkPlace, shard: str, traces: Traces) -> int:
    """Rows in the journals of a shard. The longest journal counts, since a new one repeats the older ones."""
    try:
        # the first line is a header
        return max((data.count(b"\n") - 1 for _, data in place.journals(shard, traces)), default=0)
    except FileNotFoundError:  # its owner commits it just now
        return 0

"""GPU-hours of a job from a sample: some rows, evenly spaced, go through the real job, and the rest takes as long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.errors import ConfigError, DataError

RESAMPLES, LEVEL = 2000, 0.9
LEAST = 4  # batches of results below which nothing is said of how sure a rate is


@dataclass(frozen=True)
class Rate:
    """How fast a job is.

    Attributes:
        rows: of the sample that were made.
        start_s: seconds until the first result, the loading of models included.
        rows_per_s: after that.
        low, high: ends of its interval, 90 % of resamples of batches of results; None: too few of them.
    """

    rows: int
    start_s: float
    rows_per_s: float
    low: float | None
    high: float | None


@dataclass
class Stopwatch:
    """Listens to a job: when were how many rows kept."""

    clock: Callable[[], float] = time.perf_counter
    kept: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begun = self.clock()

    def __call__(self, name: str, details: dict[str, Any]) -> None:
        """An event of the job."""
        if name == "kept" and details["rows"]:
            self.kept.append((self.clock() - self._begun, details["rows"]))

    def rate(self) -> Rate:
        """What was heard.

        Raises:
            DataError: no row was made, or all of them at once.
        """
        if not self.kept:
            raise DataError("the sample gave no rows, so that nothing can be said of the job; see its messages above")
        start, end = self.kept[0][0], self.kept[-1][0]
        made = sum(rows for _, rows in self.kept)
        if len(self.kept) < 2:
            raise DataError(
                f"all {made} rows of the sample came in one batch, after {start:.1f} s, so that loading and work cannot"
                " be told apart: take a larger --sample, or a smaller --batch"
            )
        spans = [(rows, now - before) for (before, _), (now, rows) in pairwise(self.kept)]
        low, high = _interval(spans) if len(spans) >= LEAST else (None, None)
        return Rate(made, start, sum(rows for rows, _ in spans) / max(end - start, 1e-9), low, high)


def _interval(spans: Sequence[tuple[int, float]]) -> tuple[float, float]:
    dice = random.Random(0)
    rates = sorted(
        sum(rows for rows, _ in drawn) / max(sum(span for _, span in drawn), 1e-9)
        for drawn in (dice.choices(spans, k=len(spans)) for _ in range(RESAMPLES))
    )
    cut = int((1 - LEVEL) / 2 * RESAMPLES)
    return rates[cut], rates[-1 - cut]


@dataclass(frozen=True)
class JobPlan:
    """A job on so many workers, one GPU each.

    Attributes:
        gpus: number of workers.
        rows: to be made.
        hours: on the clock.
        gpu_hours: of all workers.
        low, high: ends of the interval of GPU-hours; None: too few batches of results.
    """

    gpus: int
    rows: int
    hours: float
    gpu_hours: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def extrapolated(rate: Rate, rows: int, gpus: int) -> JobPlan:
    """The whole job.

    Args:
        rate: of one worker.
        rows: to be made.
        gpus: workers, one GPU each; every one of them loads its models.
    """

    def hours(rows_per_s: float) -> float:
        return (rate.start_s + rows / rows_per_s / gpus) / 3600

    ends = (None, None) if rate.low is None or rate.high is None else (gpus * hours(rate.high), gpus * hours(rate.low))
    return JobPlan(gpus, rows, hours(rate.rows_per_s), gpus * hours(rate.rows_per_s), *ends)


def sampled(dataset: Dataset, columns: Sequence[str], rows: int, root: Path) -> Dataset:
    """A dataset of some rows of another one, evenly spaced over all of its shards.

    Args:
        dataset: the other one.
        columns: that it gets.
        rows: how many; all of them if there are fewer.
        root: its folder.

    Raises:
        DataError: a column is not there, or not complete.
    """
    if rows < 2:
        raise ConfigError(f"--sample {rows}: expected at least 2 rows")
    every = [(shard, row) for shard, count in enumerate(dataset.shard_rows) for row in range(count)]
    count = min(rows, len(every))
    taken = [every[number * len(every) // count] for number in range(count)]
    keys = [dataset.keys(shard)[row] for shard, row in taken]
    made = create_dataset(root, name=dataset.name, split=dataset.split, keys=[keys])
    for name in columns:
        _copy(dataset.column(name), taken, made)
    return made


def _copy(column: Column, taken: Sequence[tuple[int, int]], made: Dataset) -> None:
    if column.kind == "matrix":
        raise ConfigError(f"{column.folder}: a sample is made of pictures, videos or texts, not of vectors")
    column.require_complete()
    copy = create_column(
        made, column.name, kind=column.kind, extension=column.extension, plan=column.plan, provenance={}
    )
    copy.commit(0, [column.read(shard, row) for shard, row in taken])

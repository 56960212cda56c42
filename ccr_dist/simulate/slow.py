"""When a job has at least one slow node, which slows every step."""

from __future__ import annotations

import numpy as np

from ccr_dist.simulate.schema import DAY, Job

Array = np.ndarray


class Slow:
    """The times with a slow node, of every repetition.

    Nodes become slow independently, also while the job stands still; whether they are replaced meanwhile is not
    followed: `stragglers.lasts` says how long one stays.
    """

    def __init__(self, job: Job, repetitions: int, dice: np.random.Generator) -> None:
        assert job.stragglers is not None
        self._length = job.days * DAY
        starts, ends = [], []
        for row in range(repetitions):
            count = dice.poisson(job.nodes * job.stragglers.per_day * job.days)
            begin = np.sort(dice.random(count) * self._length)
            end = np.maximum.accumulate(begin + job.stragglers.lasts.draw(dice, count))
            # intervals that overlap are one: a new one begins where none before it lasts
            new = np.flatnonzero(np.append(True, begin[1:] > end[:-1])) if count else np.zeros(0, dtype=np.int64)
            starts.append(begin[new] + row * self._length)
            last = np.append(new[1:] - 1, count - 1) if count else new
            ends.append(np.minimum(end[last], self._length) + row * self._length)
        self._starts, self._ends = np.concatenate(starts), np.concatenate(ends)
        self._sums = np.append(0.0, np.cumsum(self._ends - self._starts))

    def between(self, rows: Array, begin: Array, end: Array) -> Array:
        """Seconds with a slow node between two times; all of shape (n,)."""
        return self._until(rows, end) - self._until(rows, begin)

    def _until(self, rows: Array, time: Array) -> Array:
        """Seconds with a slow node in all rows before, and in this one until a time."""
        if not len(self._starts):
            return np.zeros(len(rows))
        key = rows * self._length + np.minimum(time, self._length)
        place = np.searchsorted(self._starts, key, side="right")
        past = np.maximum(0.0, self._ends[place - 1] - key)
        return self._sums[place] - np.where(place > 0, past, 0.0)

"""When things fail: for every unit of a cause (GPU, node, group, job) the time of its next failure.

A unit that fails is renewed: it, or what replaces it, begins a new life. At the start units have been running for long,
so that the mean rate is that of the cause from the first second on, whatever the shape of the distribution.
"""

from __future__ import annotations

import math

import numpy as np

from ccr_dist.simulate.schema import DAY, Cause, Job

Array = np.ndarray


class Clocks:
    """The units of one cause in several repetitions of a simulation.

    Times lie in blocks of about sqrt(units), and of each block the least is known: the first failure of thousands of
    units is found among a few numbers.

    Attributes:
        cause: The cause.
    """

    def __init__(self, cause: Cause, job: Job, repetitions: int, dice: np.random.Generator) -> None:
        self.cause, self._job, self._dice = cause, job, dice
        self._later: Array | None = None
        if cause.at is not None:
            times = np.array(sorted(cause.at))
            self._later = np.append(times[1:], math.inf)
            self._place = np.zeros(repetitions, dtype=np.int64)
            drawn = np.full((repetitions, 1), times[0])
        else:
            assert cause.per_day is not None
            mean, shape = DAY / cause.per_day, (repetitions, job.units(cause.scope))
            self._scale = mean / math.gamma(1 + 1 / cause.shape)
            if cause.shape == 1:
                drawn = dice.exponential(mean, shape)
            else:  # what is left of a life that one looks into at random: a uniform part of one weighted by its length
                lives = self._scale * dice.gamma(1 + 1 / cause.shape, 1.0, shape) ** (1 / cause.shape)
                drawn = dice.random(shape) * lives
        self._width = math.isqrt(drawn.shape[1] - 1) + 1
        blocks = -(-drawn.shape[1] // self._width)
        whole = np.full((repetitions, blocks * self._width), math.inf)
        whole[:, : drawn.shape[1]] = drawn
        self._next = whole.reshape(repetitions, blocks, self._width)
        self._least = self._next.min(axis=2)

    def first(self) -> tuple[Array, Array]:
        """The unit that fails next, and when (seconds from the start): two arrays of shape (repetitions,)."""
        rows = np.arange(len(self._least))
        blocks = self._least.argmin(axis=1)
        return blocks * self._width + self._next[rows, blocks].argmin(axis=1), self._least[rows, blocks]

    def renew(self, rows: Array, units: Array, now: Array) -> None:
        """Begin new lives.

        Args:
            rows, units: Pairs of repetition and unit, integers of shape (n,).
            now: When, seconds of shape (n,).
        """
        if self._later is not None:
            self._set(rows, units, self._later[self._place[rows]])
            self._place[rows] += 1
            return
        life = self._dice.standard_exponential(len(rows))
        self._set(rows, units, now + self._scale * (life if self.cause.shape == 1 else life ** (1 / self.cause.shape)))

    def _set(self, rows: Array, units: Array, times: Array | float) -> None:
        blocks, places = np.divmod(units, self._width)
        self._next[rows, blocks, places] = times
        self._least[rows, blocks] = self._next[rows, blocks].min(axis=1)

    def hit(self, rows: Array, units: Array) -> tuple[Array, Array]:
        """The nodes that a failure takes.

        Args:
            rows, units: As of `renew`; a row once.

        Returns:
            Pairs of repetition and node.
        """
        job, scope = self._job, self.cause.scope
        if self._later is not None and scope in ("gpu", "node"):
            return rows, self._dice.integers(0, job.nodes, len(rows))
        if self._later is not None and scope == "group":
            units = self._dice.integers(0, job.units("group"), len(rows))
        if scope == "gpu":
            return rows, units // job.per_node
        if scope == "node":
            return rows, units
        nodes = units[:, None] * job.group_nodes + np.arange(job.group_nodes)
        inside = nodes < job.nodes
        return np.broadcast_to(rows[:, None], nodes.shape)[inside], nodes[inside]

    def replace(self, rows: Array, nodes: Array, now: Array | None) -> None:
        """Renew what is in nodes that were replaced; or stop it, where nodes are gone.

        Args:
            rows, nodes: Pairs of repetition and node, of shape (n,).
            now: When, seconds of shape (n,); None: they are gone.
        """
        scope = self.cause.scope
        if self._later is not None or scope in ("group", "job") or not len(rows):
            return
        units = nodes
        if scope == "gpu":
            width = min(self._job.per_node, self._job.gpus)
            units = (nodes[:, None] * width + np.arange(width)).ravel()
            rows = np.repeat(rows, width)
            now = None if now is None else np.repeat(now, width)
        if now is None:
            self._set(rows, units, math.inf)
        else:
            self.renew(rows, units, now)

"""Useful training against the checkpoint interval: simulated, by the closed form, and where the optima lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ccr_dist.errors import ConfigError
from ccr_dist.simulate import closed
from ccr_dist.simulate.advise import outlook, ratio
from ccr_dist.simulate.events import interval_of, simulate
from ccr_dist.simulate.outcome import Outcome
from ccr_dist.simulate.schema import Job

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1 / 2**0.5, 1, 2**0.5, 2, 4, 8)


@dataclass(frozen=True)
class Point:
    """One interval.

    Attributes:
        outcome: What the simulation gave.
        closed: The closed form's effective training time ratio: constant rates, nodes always at hand.
    """

    outcome: Outcome
    closed: float


@dataclass(frozen=True)
class Curve:
    """A curve.

    Attributes:
        points: By interval, rising.
        optima: Seconds by name: what Young, Daly, arXiv 2410.18124 and the exact closed form advise.
    """

    points: tuple[Point, ...]
    optima: dict[str, float]

    @property
    def best(self) -> Point:
        """The simulated point with the most goodput."""
        return max(self.points, key=lambda point: point.outcome.goodput.mean)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "points": [point.outcome.to_json() | {"closed_form_ettr": point.closed} for point in self.points],
            "optima_s": self.optima,
            "best_simulated_s": self.best.outcome.interval,
        }


def curve(job: Job, intervals: Sequence[float] | None = None) -> Curve:
    """Simulate a job at several intervals, with the same failures where the model allows.

    Args:
        job: The job.
        intervals: Seconds of training between saves; default: an eighth to eight times the job's.

    Returns:
        The curve.

    Raises:
        ConfigError: An interval of 0 or less, unknown rates, or no interval is the best.
    """
    chosen = sorted({interval_of(job) * factor for factor in FACTORS} if intervals is None else set(intervals))
    if not all(math.isfinite(each) and each > 0 for each in chosen) or not chosen:
        raise ConfigError("intervals: expected more than 0 seconds")
    return Curve(tuple(Point(simulate(job, interval=each), closed_form(job, each)) for each in chosen), optima(job))


def closed_form(job: Job, interval: float) -> float:
    """The expected effective training time ratio by the closed form. ConfigError for unknown rates."""
    saves = job.checkpoint
    found = outlook(job, saves.stall + saves.write)
    return ratio(found, interval, save=saves.stall, write=saves.write)


def optima(job: Job) -> dict[str, float]:
    """The advised intervals by name, in seconds; none where nothing fails without warning, or a save does not stall.
    ConfigError.
    """
    saves = job.checkpoint
    found = outlook(job, saves.stall + saves.write)
    if not found.rate or found.warned == 1 or not saves.stall:
        return {}
    return {
        "Young": closed.young(saves.stall, 1 / found.rate),
        "Daly": closed.daly(saves.stall, 1 / found.rate),
        "arXiv 2410.18124": closed.availability_optimal(saves.stall, 1 / found.rate, found.down),
        "exact": closed.optimal(save=saves.stall, rate=found.rate, write=saves.write, warned=found.warned),
    }

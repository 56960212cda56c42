"""What came out of a simulation: where the time went, how much training was kept, how often it was interrupted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ccr_dist.simulate.schema import DAY, Job

STATES = ("training", "lost", "saving", "detecting", "waiting", "restarting")
MEANING = {
    "training": "training whose result is kept",
    "lost": "training lost by failures",
    "saving": "training stands still for a save",
    "detecting": "until a failure is noticed",
    "waiting": "for a node",
    "restarting": "until training goes on",
}


@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions.

    Attributes:
        mean: The mean.
        low, high: Its 95 % interval: how well these repetitions know it.
        least, most: The 5 % and 95 % quantiles of single repetitions: what one run may see.
    """

    mean: float
    low: float
    high: float
    least: float
    most: float

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """Of one value a repetition."""
        mean = float(values.mean())
        half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        least, most = (float(each) for each in np.quantile(values, (0.05, 0.95)))
        return cls(mean, mean - half, mean + half, least, most)

    def to_json(self) -> dict[str, float | None]:
        """As a JSON object; null where one repetition tells no interval."""
        return {name: None if math.isnan(value) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Outcome:
    """The repetitions of a simulation; arrays have the shape (repetitions,).

    Attributes:
        job: What was simulated.
        interval: Seconds of training between saves.
        seconds: Seconds by state (STATES), which sum to the length of the job.
        work: Training that was kept, in seconds of the whole job at full speed.
        interruptions: Stops of a running job: failures, and announced stops.
        again: Failures while the job recovered.
        regrown: Restarts to take a node in again.
        fewest: The smallest number of nodes that trained.
    """

    job: Job
    interval: float
    seconds: dict[str, np.ndarray]
    work: np.ndarray
    interruptions: np.ndarray
    again: np.ndarray
    regrown: np.ndarray
    fewest: np.ndarray

    @property
    def length(self) -> float:
        """Seconds of the simulated job."""
        return self.job.days * DAY

    @property
    def ettr(self) -> Estimate:
        """Effective training time ratio: time of training that is kept, in the whole time."""
        return Estimate.of(self.seconds["training"] / self.length)

    @property
    def goodput(self) -> Estimate:
        """Work that is kept, as a part of what all nodes at full speed would do; also slow and missing nodes count."""
        return Estimate.of(self.work / self.length)

    @property
    def goodput_of_all(self) -> Estimate:
        """As `goodput`, where spare nodes count as nodes."""
        return Estimate.of(self.work / self.length * self.job.nodes / (self.job.nodes + self.job.spares))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "checkpoint_every_s": self.interval,
            "ettr": self.ettr.to_json(),
            "goodput": self.goodput.to_json(),
            "goodput_with_spares": self.goodput_of_all.to_json(),
            "lost_gpu_hours": Estimate.of(self.seconds["lost"] * self.job.gpus / 3600).to_json(),
            "interruptions": Estimate.of(self.interruptions.astype(float)).to_json(),
            "failures_while_recovering": Estimate.of(self.again.astype(float)).to_json(),
            "restarts_to_grow": Estimate.of(self.regrown.astype(float)).to_json(),
            "fewest_nodes": int(self.fewest.min()),
            "seconds": {state: Estimate.of(self.seconds[state]).to_json() for state in STATES},
        }

"""Ratios that were published, simulated from the rates and times that stand beside them in `rates/`.

Nothing is fitted: what a paper does not give is assumed in the rates' file, with the place where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ccr_dist.resources import RATES
from ccr_dist.simulate.curve import closed_form
from ccr_dist.simulate.events import simulate
from ccr_dist.simulate.outcome import Estimate
from ccr_dist.simulate.schema import Checkpoint, Job, Rates, Report, load_rates
from ccr_dist.simulate.times import Times

WITHIN = 0.03  # of a reported ratio


@dataclass(frozen=True)
class Again:
    """A published ratio, made again.

    Attributes:
        name: Of the rates.
        report: What was reported.
        job: What was simulated.
        interval: Seconds of training between saves.
        found: The simulated ratio.
        closed: The closed form's.
        assumed: What had to be assumed, and where it comes from.
    """

    name: str
    report: Report
    job: Job
    interval: float
    found: Estimate
    closed: float
    assumed: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether it is what was reported, within three points; or above a reported bound."""
        if self.report.above:
            return self.found.mean >= self.report.ettr
        return abs(self.found.mean - self.report.ettr) <= WITHIN

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "rates": self.name,
            "says": self.report.says,
            "gpus": self.job.gpus,
            "days": self.job.days,
            "checkpoint_every_s": self.interval,
            "reported": self.report.ettr,
            "above": self.report.above,
            "simulated": self.found.to_json(),
            "closed_form": self.closed,
            "agrees": self.agrees,
            "assumed": list(self.assumed),
        }


def published(names: Iterable[str] | None = None, *, repetitions: int = 40, seed: int = 0) -> list[Again]:
    """Simulate what was reported.

    Args:
        names: Rates by name; default: all that come with the package.
        repetitions: How often each is simulated.
        seed: Of the random numbers.

    Returns:
        One result a reported ratio.

    Raises:
        ConfigError: Unknown rates.
    """
    made = []
    for name in names or RATES.files():
        rates = load_rates(name)
        for report in rates.reported:
            job = job_of(rates, report, repetitions=repetitions, seed=seed)
            outcome = simulate(job)
            made.append(
                Again(
                    name,
                    report,
                    job,
                    outcome.interval,
                    outcome.ettr,
                    closed_form(job, outcome.interval),
                    rates.assumed,
                )
            )
    return made


def job_of(rates: Rates, report: Report, *, repetitions: int = 40, seed: int = 0) -> Job:
    """The job that a report is about. Arguments as of `published`."""
    gpus, days = report.gpus or rates.gpus, report.days or rates.days
    assert gpus is not None and days is not None, "rates with a report say whose it is"
    saves = rates.checkpoint or Checkpoint()
    return Job(
        causes=rates.causes,
        gpus=gpus,
        per_node=rates.per_node,
        days=days,
        checkpoint=saves if report.every is None else saves.model_copy(update={"every": report.every}),
        detection=rates.detection or Times(mean=0.0),
        restart=report.restart or rates.restart or Times(mean=300.0),
        repetitions=repetitions,
        seed=seed,
    )

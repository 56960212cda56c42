"""How often to save: the interval with the most useful training, what it costs, and what a finer or coarser one would.

Closed forms only: failures at a constant rate, a replacement for a lost node always at hand. `ccr_dist.simulate.events`
knows more, and takes longer.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccr_dist.errors import ConfigError
from ccr_dist.simulate import closed
from ccr_dist.simulate.schema import DAY, Cause, Job, Rates, all_causes, job_rate, load_rates, require_gpus
from ccr_dist.simulate.times import Times, seconds


@dataclass(frozen=True)
class Outlook:
    """The interruptions of a job, as closed forms see them.

    Attributes:
        rate: Interruptions a second.
        warned: Which part of them is announced.
        survives: Probability that a recovery is not interrupted.
        down: Mean seconds of a recovery.
    """

    rate: float
    warned: float
    survives: float
    down: float


@dataclass(frozen=True)
class Advice:
    """The best checkpoint interval of a job.

    Attributes:
        interval_s: Seconds of training between saves.
        ettr: Expected part of the time that is training whose result is kept.
        saving: Part of the time in which training stands still for saves.
        lost: Part of the time that is training lost by failures.
        recovering: Part of the time from failures until training goes on.
        mtbf_s: Mean seconds between interruptions; infinite if there are none.
        interruptions_per_day: Their number.
        young_s: Young's optimum.
        daly_s: Daly's higher-order optimum.
        availability_s: The optimum of arXiv 2410.18124.
        every_steps: `interval_s` in steps, where a step's length was given.
        failures: Whose rates.
    """

    interval_s: float
    ettr: float
    saving: float
    lost: float
    recovering: float
    mtbf_s: float
    interruptions_per_day: float
    young_s: float
    daly_s: float
    availability_s: float
    every_steps: int | None
    failures: str

    @property
    def override(self) -> str | None:
        """The override of a run config that sets it, where a step's length was given."""
        return None if self.every_steps is None else f"runtime.checkpoint_every={self.every_steps}"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self) | {"override": self.override}

    def sentence(self) -> str:
        """For people: the interval, what it costs, and how to set it."""
        return (
            f"an interruption every {shown(self.mtbf_s)} ({self.failures}); save every {shown(self.interval_s)} of"
            f" training: {self.ettr:.1%} of the time is useful training, {self.saving:.1%} saves, {self.lost:.1%} is"
            f" lost by failures, {self.recovering:.1%} recovers" + (f"; set {self.override}" if self.override else "")
        )


def advise(
    failures: str | Path | Rates,
    *,
    gpus: int,
    stall: float | str,
    restart: float | str | Times,
    write: float | str = 0.0,
    detection: float | str | Times = 0.0,
    per_node: int | None = None,
    step: float | None = None,
) -> Advice:
    """How often a training should save.

    Causes of the rates that have recovery times of their own keep these.

    Args:
        failures: Published rates by name, a YAML file of rates, or rates.
        gpus: GPUs of the job.
        stall: Seconds (or `10s`, `2m`) that training stands still for a save.
        restart: From noticing a failure until training goes on.
        write: Seconds for which a checkpoint is then written beside training.
        detection: Until a failure is noticed.
        per_node: GPUs of a node; default: that of the rates.
        step: Seconds of a training step, for the interval in steps.

    Returns:
        The advice.

    Raises:
        ConfigError: Unknown rates (names the nearest), or a number that cannot be.
    """
    require_gpus(gpus)
    rates = failures if isinstance(failures, Rates) else load_rates(failures)
    save, beside = seconds(stall, "stall"), seconds(write, "write")
    if step is not None and not (math.isfinite(step) and step > 0):
        raise ConfigError(f"step: {step:g} s: expected more than 0")
    per_node = rates.per_node if per_node is None else per_node
    if per_node < 1:
        raise ConfigError(f"per_node: {per_node}: expected at least 1")
    if gpus > per_node and gpus % per_node:
        raise ConfigError(f"gpus: {gpus} is no multiple of the GPUs of a node, {per_node}")
    job = Job(
        causes=rates.causes,
        gpus=gpus,
        per_node=per_node,
        restart=_times(restart, "restart"),
        detection=_times(detection, "detection"),
    )
    name = rates.title if isinstance(failures, Rates) else str(failures)
    return advised(outlook(job, save + beside), save=save, write=beside, step=step, failures=name)


def outlook(job: Job, save: float) -> Outlook:
    """What closed forms need to know of a job's interruptions.

    Args:
        job: The job.
        save: Seconds of a whole save, which comes before an announced stop.

    Raises:
        ConfigError: Unknown rates.
    """
    causes = list(all_causes(job).values())
    each = [job_rate(job, cause) for cause in causes]
    rate = sum(each)
    if not rate:
        return Outlook(0.0, 0.0, 1.0, 0.0)
    survives = down = 0.0
    queue = Times(mean=0.0) if job.queue is None or job.spares else job.queue
    for cause, own in zip(causes, each, strict=True):
        parts = _recovery(job, cause, save) + ([queue] if cause.takes_nodes else [])
        survives += own / rate * math.prod(part.survives(rate) for part in parts)
        down += own / rate * sum(part.average for part in parts)
    warned = sum(own for cause, own in zip(causes, each, strict=True) if cause.warned) / rate
    return Outlook(rate, warned, survives, down)


def advised(found: Outlook, *, save: float, write: float, step: float | None, failures: str) -> Advice:
    """The best interval for an outlook. Arguments as of `advise`. ConfigError where a save costs nothing."""
    least = max(write, step or 0.0)
    if found.rate == 0:
        raise ConfigError("nothing interrupts this job: no interval is the best; name failures, or give one")
    if found.warned == 1:
        raise ConfigError(
            "every interruption of this job is announced, and it saves then: no interval is the best; give one"
        )
    if save == 0 and least == 0:
        raise ConfigError(
            "a checkpoint that costs nothing is best saved at every step: give what one costs (stall, write), or the"
            " length of a step"
        )
    interval = least
    if save > 0:
        interval = max(least, closed.optimal(save=save, rate=found.rate, write=write, warned=found.warned))
    steps = None if step is None else every_steps(interval, step, write)
    if steps is not None and step is not None:
        interval = steps * step
    ettr = ratio(found, interval, save=save, write=write)
    # of the time that is not spent recovering, a constant part stands still for saves
    recovering = 1 - found.survives
    saving = (1 - recovering) * _saving(found, interval, save=save)
    return Advice(
        interval_s=interval,
        ettr=ettr,
        saving=saving,
        lost=max(0.0, 1 - ettr - saving - recovering),
        recovering=recovering,
        mtbf_s=1 / found.rate,
        interruptions_per_day=found.rate * DAY,
        young_s=closed.young(save, 1 / found.rate),
        daly_s=closed.daly(save, 1 / found.rate),
        availability_s=closed.availability_optimal(save, 1 / found.rate, found.down),
        every_steps=steps,
        failures=failures,
    )


def every_steps(interval: float, step: float, write: float = 0.0) -> int:
    """An interval in whole steps, at least one, and no less than a checkpoint takes to be written.

    Args:
        interval: Seconds of training between saves.
        step: Seconds of a step.
        write: Seconds for which a checkpoint is written beside training.
    """
    steps = max(1, round(interval / step))
    return max(steps, math.ceil(write / step - 1e-9))


def ratio(found: Outlook, interval: float, *, save: float, write: float) -> float:
    """The expected effective training time ratio at an interval, in seconds of training."""
    return closed.ettr(interval, save=save, rate=found.rate, survives=found.survives, write=write, warned=found.warned)


def _saving(found: Outlook, interval: float, *, save: float) -> float:
    """Which part of the time between a start and an interruption stands still: of Exp(rate), what falls on saves."""
    period = interval + save
    return 1 - math.expm1(-found.rate * interval) / math.expm1(-found.rate * period)


def _recovery(job: Job, cause: Cause, save: float) -> list[Times]:
    """What passes one after the other until training goes on, but for the wait for nodes."""
    if cause.warned:  # nobody has to notice it
        return [Times(mean=save), cause.restart or job.restart]
    return [cause.detection or job.detection, cause.restart or job.restart]


def _times(given: float | str | Times, what: str) -> Times:
    return given if isinstance(given, Times) else Times(mean=seconds(given, what))


def shown(duration: float) -> str:
    """A duration for people: `45 s`, `12 min`, `2.8 h`, `4.1 days`."""
    if not math.isfinite(duration):
        return "never"
    for limit, unit, of_unit in ((100, "s", 1), (6000, "min", 60), (360_000, "h", 3600)):
        if duration < limit:
            return f"{duration / of_unit:.3g} {unit}"
    return f"{duration / DAY:.3g} days"

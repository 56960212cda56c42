"""What a simulation is told, as typed YAML: rates of failures with their source, and the job that they hit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ccr_dist import yamlfile
from ccr_dist.errors import ConfigError
from ccr_dist.resources import RATES
from ccr_dist.simulate.times import Frozen, PositiveSeconds, Seconds, Times

DAY = 86400.0
MOST_GPUS = 1_000_000
Scope = Literal["gpu", "node", "group", "job"]
At = Annotated[tuple[PositiveSeconds, ...], Field(min_length=1)]


class Cause(Frozen):
    """Something that interrupts the job."""

    scope: Scope = Field(
        "node", description="what fails: a GPU, a node, a group of nodes (a rack, a switch) at once, or the job itself"
    )
    per_day: float | None = Field(None, gt=0, description="failures a day of one of them")
    at: At | None = Field(None, description="instead of per_day: seconds from the start, of the whole job")
    shape: float = Field(
        1.0, ge=0.2, le=10, description="of a Weibull distribution; 1: exponential, less: those that failed fail again"
    )
    takes: bool | None = Field(
        None, description="whether its nodes leave for repair; default: yes, but not where the scope is the job"
    )
    warned: bool = Field(False, description="announced: the job saves first, and loses no work")
    detection: Times | None = Field(None, description="until it is noticed; default: the job's")
    restart: Times | None = Field(None, description="from then until training goes on; default: the job's")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.per_day is None) == (self.at is None):
            raise ValueError("expected per_day or at, one of them")
        if self.takes and self.scope == "job":
            raise ValueError("a failure of the job takes no node: choose another scope, or leave out `takes`")
        return self

    @property
    def takes_nodes(self) -> bool:
        """Whether its nodes leave for repair."""
        return self.scope != "job" if self.takes is None else self.takes


class Checkpoint(Frozen):
    """How the job saves."""

    every: PositiveSeconds | None = Field(None, description="seconds of training between saves; default: the best")
    stall: Seconds = Field(30.0, description="seconds that training stands still for a save")
    write: Seconds = Field(
        0.0, description="seconds for which it is then written beside training; until then a failure loses it"
    )


class Stragglers(Frozen):
    """Nodes that are slow for a while. One of them slows every step."""

    per_day: float = Field(gt=0, description="how often a day a node becomes slow")
    lasts: Times = Field(description="how long it stays so")
    slows: float = Field(gt=1, description="how many times as long a step takes")


class Report(Frozen):
    """A ratio that somebody reported, and the job that had it; what is not given is that of the rates."""

    says: str = Field(description="what is said, and where")
    ettr: float = Field(gt=0, le=1, description="the effective training time ratio")
    above: bool = Field(False, description="reported as a lower bound")
    gpus: int | None = Field(None, gt=0, description="GPUs of the job")
    days: float | None = Field(None, gt=0, description="its length")
    every: PositiveSeconds | None = Field(None, description="seconds between checkpoints")
    restart: Times | None = Field(None, description="from a failure until training goes on")


class Rates(Frozen):
    """Rates of failures that somebody measured, and what they reported beside."""

    title: str = Field(description="whose, and of what")
    source: str = Field(description="where each figure stands")
    gpus: int | None = Field(None, gt=0, description="GPUs of the job, or of the cluster")
    days: float | None = Field(None, gt=0, description="how long it was watched")
    per_node: int = Field(8, gt=0, description="GPUs of a node")
    causes: dict[str, Cause] = Field(min_length=1, description="what fails, by any name")
    checkpoint: Checkpoint | None = Field(None, description="how that job saved")
    detection: Times | None = Field(None, description="its time until a failure is noticed")
    restart: Times | None = Field(None, description="its time from then until training goes on")
    reported: tuple[Report, ...] = Field((), description="ratios that were reported for these rates")
    assumed: tuple[str, ...] = Field((), description="what of the above was not reported, and where it comes from")


class Job(Frozen):
    """A training job, what fails, and how it goes on."""

    failures: str | None = Field(None, description="published rates by name, or a YAML file of rates")
    causes: dict[str, Cause] = Field(default_factory=dict, description="what else fails, or instead of `failures`")
    gpus: int = Field(gt=0, le=MOST_GPUS, description="GPUs of the job")
    per_node: int = Field(
        8, gt=0, description="GPUs of a node; default: that of `failures`, whose rates are those of such nodes"
    )
    days: float = Field(30.0, gt=0, le=3650, description="wall-clock days")
    checkpoint: Checkpoint = Field(Checkpoint(), description="how it saves")
    detection: Times = Field(Times(mean=0.0), description="until a failure is noticed")
    restart: Times = Field(Times(mean=300.0), description="from then until training goes on, without waiting for nodes")
    spares: int = Field(0, ge=0, description="nodes that stand ready, beside those of the job")
    queue: Times | None = Field(
        None,
        description=(
            "wait for a node from outside when no spare is left; default: no wait without spares and least_nodes,"
            " otherwise no such node comes, and the job waits for a repair"
        ),
    )
    repair: Times | None = Field(None, description="until a node that left comes back; needed with spares, least_nodes")
    least_nodes: int | None = Field(
        None, gt=0, description="goes on with fewer nodes, in proportion slower, down to this number; default: it waits"
    )
    regrow: bool = Field(True, description="saves and restarts when a node comes back; false: at the next interruption")
    group_nodes: int = Field(16, gt=0, description="nodes of a group, which fail together")
    stragglers: Stragglers | None = Field(None, description="slow nodes; default: none")
    repetitions: int = Field(100, gt=0, le=10_000, description="how often it is simulated")
    seed: int = Field(0, ge=0, description="of the random numbers")

    @model_validator(mode="before")
    @classmethod
    def _nodes_of_the_rates(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(name := values.get("failures"), str):
            return {"per_node": load_rates(name).per_node} | values
        return values

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.gpus > self.per_node and self.gpus % self.per_node:
            raise ValueError(f"gpus ({self.gpus}) is no multiple of the GPUs of a node ({self.per_node})")
        if self.spares > self.nodes:
            raise ValueError(f"spares ({self.spares}) is more than the nodes of the job ({self.nodes})")
        if self.least_nodes is not None and self.least_nodes > self.nodes:
            raise ValueError(f"least_nodes ({self.least_nodes}) is more than the nodes of the job ({self.nodes})")
        if self.pooled and self.repair is None:
            raise ValueError("repair: say how long a node is away; spares and least_nodes depend on it")
        if self.least_nodes is not None and self.queue is not None:
            raise ValueError("least_nodes and queue: a job that goes on with fewer nodes waits for none; leave one out")
        if not self.failures and not self.causes and self.stragglers is None:
            raise ValueError("nothing fails: name `failures`, or list `causes`")
        return self

    @property
    def nodes(self) -> int:
        """Nodes of the job."""
        return max(1, self.gpus // self.per_node)

    @property
    def pooled(self) -> bool:
        """Whether nodes that come back from a repair are counted."""
        return self.spares > 0 or self.least_nodes is not None

    def units(self, scope: Scope) -> int:
        """How many of what fails the job has."""
        groups = -(-self.nodes // self.group_nodes)
        return {"gpu": self.gpus, "node": self.nodes, "group": groups, "job": 1}[scope]


def load_rates(given: str | Path) -> Rates:
    """Rates by name, or from a YAML file.

    Raises:
        ConfigError: None of that name (names the nearest), or a file that is missing or wrong.
    """
    return yamlfile.validate(Rates, yamlfile.load(RATES.find(given)))


def all_causes(job: Job) -> dict[str, Cause]:
    """The causes of a job: of its `failures`, and its own, which replace those of the same name. ConfigError."""
    return {**(load_rates(job.failures).causes if job.failures else {}), **job.causes}


def job_rate(job: Job, cause: Cause) -> float:
    """Failures of the whole job a second, on average over its length."""
    if cause.at is not None:
        return sum(time < job.days * DAY for time in cause.at) / (job.days * DAY)
    assert cause.per_day is not None
    return cause.per_day * job.units(cause.scope) / DAY


def in_repair(job: Job) -> float:
    """How many nodes are in repair at a time, on average over a long job; 0 where no repair is given. ConfigError."""
    if job.repair is None:
        return 0.0
    taken = {name: cause for name, cause in all_causes(job).items() if cause.takes_nodes}
    nodes = {"gpu": 1, "node": 1, "group": min(job.group_nodes, job.nodes), "job": 0}
    return sum(job_rate(job, cause) * nodes[cause.scope] for cause in taken.values()) * job.repair.average


def require_gpus(gpus: int) -> None:
    """Raises ConfigError for a number of GPUs that no job has."""
    if not 0 < gpus <= MOST_GPUS:
        raise ConfigError(f"gpus: {gpus}: expected 1 to {MOST_GPUS}")

"""Pipelines: the `ccr-dist` commands of an experiment, their order, and the resources of each. Typed YAML; nothing runs
here.

A step's command is written as on the command line; `$name` is replaced by an entry of `values`. Steps run one after
another unless they have `after`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ccr_dist import yamlfile
from ccr_dist.cluster.elsewhere.words import Line, one_line
from ccr_dist.cluster.profile import TimeLimit
from ccr_dist.config import Frozen
from ccr_dist.errors import ConfigError

Kind = Literal["describe", "translate", "featurise", "task", "train", "evaluate"]
SHARED = ("describe", "translate", "featurise")  # kinds whose work an array of tasks shares
RANKS = ("train", "evaluate")  # kinds that a launcher starts, on one or more nodes


class Step(Frozen):
    """A command and its resources. For an array, nodes, GPUs, CPUs and memory are per task."""

    command: str = Field(
        min_length=1, description="a ccr-dist command, without the word ccr-dist; $name is an entry of `values`"
    )
    after: tuple[str, ...] | None = Field(None, description="steps that must finish before it; default: the step above")
    kind: Kind | None = Field(
        None, description="the script, slurm/KIND.sbatch; default: chosen by the command's first word"
    )
    tasks: int = Field(1, gt=0, description="array size: workers that share the shards")
    nodes: str = Field("1", description="number of nodes, or an elastic range such as 2-4")
    ranks: int | None = Field(None, gt=0, description="processes per node; default: one per GPU of the node, or 1")
    gpus: int = Field(0, ge=0, description="GPUs per node")
    cpus: int = Field(2, gt=0, description="CPUs per node")
    memory: str | None = Field(None, pattern=r"^\d+[KMGT]?$", description="memory per node; default: the site's")
    time: TimeLimit | None = Field(None, description="time limit; default: the profile's")
    launch: Line = Field(
        "ddp", description="launch profile of ranks: a YAML file, or the name of one that comes with ccr-dist"
    )

    @field_validator("nodes", mode="before")
    @classmethod
    def _nodes(cls, value: object) -> object:
        text = str(value)
        low, _, high = text.partition("-")
        if not (low.isdecimal() and int(low) and (text == low or (high.isdecimal() and int(high) >= int(low)))):
            raise ValueError("expected a number of nodes, or a range like 2-4")
        return text

    @property
    def least_nodes(self) -> int:
        """The lowest number of nodes that is acceptable."""
        return int(self.nodes.partition("-")[0])


class Pipeline(Frozen):
    """An experiment: its steps, and where its state is kept."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="letters, digits, dots, dashes")
    folder: Line = Field("runs/pipelines", description="state lies in FOLDER/NAME")
    values: dict[str, str | int | float] = Field(default_factory=dict, description="values of $name in commands")
    steps: dict[str, Step] = Field(min_length=1)

    @field_validator("folder")
    @classmethod
    def _folder(cls, value: str) -> str:
        if set(":\\") & set(value):  # colons separate paths in lists, and sbatch removes backslashes
            raise ValueError("expected a path without colons and backslashes")
        return value

    @model_validator(mode="after")
    def _sound(self) -> Self:
        known: list[str] = []
        for name, step in self.steps.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"step {name!r}: expected letters (a-z), digits, dots, dashes")
            for before in step.after or ():
                if before not in known:
                    raise ValueError(
                        f"step {name!r} comes after {before!r}, no step above it; there are:"
                        f" {', '.join(known) or 'none'}"
                    )
            known.append(name)
        return self


@dataclass(frozen=True)
class Job:
    """A step that is ready to run.

    Attributes:
        name: Name of the step.
        command: Words of its command.
        kind: Its script.
        after: Steps that must finish before it.
        step: Its settings.
    """

    name: str
    command: tuple[str, ...]
    kind: Kind
    after: tuple[str, ...]
    step: Step


@dataclass(frozen=True)
class Plan:
    """A checked pipeline with all values filled in.

    Attributes:
        pipeline: The pipeline as written.
        jobs: Its steps by name, in order.
        document: The YAML document, which knows the line of each key.
    """

    pipeline: Pipeline
    jobs: dict[str, Job]
    document: yamlfile.Document

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.pipeline.folder) / self.pipeline.name

    def place(self, step: str) -> str:
        """Where a step is written, for messages."""
        return self.document.place(("steps", step))


def load_plan(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """Read and check a pipeline. Raises ConfigError naming file, line, key and the nearest valid key."""
    return plan_of(yamlfile.load(path, overrides))


def plan_of(document: yamlfile.Document) -> Plan:
    """Check a pipeline. Raises ConfigError naming file, line and key."""
    pipeline = yamlfile.validate(Pipeline, document)
    jobs: dict[str, Job] = {}
    above: tuple[str, ...] = ()
    for name, step in pipeline.steps.items():
        place = document.place(("steps", name, "command"))
        command = _words(step.command, pipeline.values, f"{place}: steps.{name}.command")
        first = command[0]
        kind: Kind = step.kind or (first if first in (*SHARED, *RANKS) else "task")  # type: ignore[assignment]
        if step.tasks > 1 and kind not in SHARED:
            raise ConfigError(
                f"{place}: steps.{name}.tasks: only {', '.join(SHARED)} are shared by several tasks, and this is {kind}"
            )
        if step.nodes != "1" and kind not in RANKS:
            raise ConfigError(
                f"{place}: steps.{name}.nodes: only {', '.join(RANKS)} run on several nodes, and this is {kind}; use"
                " `tasks`"
            )
        jobs[name] = Job(name, command, kind, above if step.after is None else step.after, step)
        above = (name,)
    return Plan(pipeline, jobs, document)


def _words(command: str, values: Mapping[str, object], place: str) -> tuple[str, ...]:
    """Split a command as a shell would, then fill in `$name`; a value with spaces stays one word."""
    try:
        words = tuple(one_line(Template(word).substitute(values)) for word in shlex.split(command))
    except KeyError as error:
        raise ConfigError(
            f"{place}: ${error.args[0]} is no entry of `values`; there are {', '.join(values) or 'none'}"
        ) from None
    except ValueError as error:
        hint = "; write $$ for a dollar sign" if "placeholder" in str(error) else ""
        raise ConfigError(f"{place}: {error}{hint}") from None
    if not words:
        raise ConfigError(f"{place}: expected a command")
    return words

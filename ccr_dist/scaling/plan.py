"""What a scaling study is: one run config, and the points at which it is trained for a few steps. Typed and strict;
imports no torch.

As in run configs, errors name file and line, and a file may have a `base:`. `runner.py` and `jobs.py` carry a study
out, `report.py` says what it showed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ccr_dist.config import FitConfig, Frozen, RunConfig, as_dict
from ccr_dist.devices import named, network
from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import load_config
from ccr_dist.places import folder_to_make
from ccr_dist.yamldoc.nodes import KeyPath
from ccr_dist.yamlfile import Document, load, validate

StrategyName = Literal["ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"]
Precision = Literal["fp32", "bf16", "fp16"]
Contrastive = Literal["auto", "gathered", "tiled", "ring"]
Kind = Literal["weak", "strong", "batch"]
UNDECISIVE = ("name", "label", "out")  # of a run config: they change no number
FORMAT = 1  # of study.json and of records


class Settings(Frozen):
    """One point: how the run is spread and fed."""

    world: PositiveInt = Field(description="processes")
    batch: PositiveInt = Field(description="weak: rows of a process; strong, batch: of the global batch")
    strategy: StrategyName = Field("ddp", description="also the name of the launch profile")
    precision: Precision = Field("fp32", description="runtime.precision")
    micro_batch: PositiveInt | None = Field(None, description="runtime.micro_batch")
    gradient_checkpointing: bool = Field(False, description="runtime.gradient_checkpointing")
    contrastive: Contrastive = Field("auto", description="runtime.contrastive: how the loss is computed")


class Grid(Frozen):
    """Every combination of these values is a point."""

    world: tuple[PositiveInt, ...] = Field(min_length=1, description="numbers of processes")
    batch: tuple[PositiveInt, ...] = Field(
        min_length=1, description="weak: rows of a process; strong, batch: of the global batch"
    )
    strategy: tuple[StrategyName, ...] = Field(("ddp",), min_length=1, description="also names of launch profiles")
    precision: tuple[Precision, ...] = Field(("fp32",), min_length=1, description="of runtime.precision")
    micro_batch: tuple[PositiveInt | None, ...] = Field((None,), min_length=1, description="of runtime.micro_batch")
    gradient_checkpointing: tuple[bool, ...] = Field(
        (False,), min_length=1, description="of runtime.gradient_checkpointing"
    )
    contrastive: tuple[Contrastive, ...] = Field(("auto",), min_length=1, description="of runtime.contrastive")

    def settings(self) -> list[Settings]:
        names = list(type(self).model_fields)
        values = [getattr(self, name) for name in names]
        return [Settings(**dict(zip(names, each, strict=True))) for each in itertools.product(*values)]


class ScalingStudy(Frozen):
    """The same run at several points, each for a few steps, each several times."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="letters, digits, dots, dashes")
    title: str = Field(description="of the report")
    notes: tuple[str, ...] = Field((), description="paragraphs of the report")
    out: str = Field(description="run folders, logs, records and the report go below it")
    config: str = Field(description="run config, relative to the study's file")
    overrides: tuple[str, ...] = Field((), description="key.sub=value for every point")
    kind: Kind = Field(
        description=(
            "strong: the global batch stays the same over processes; weak: the rows of a process do; batch: the batch"
            " itself is what varies"
        )
    )
    where: Literal["local", "slurm"] = Field(
        "local", description="processes of this machine, one point after the other; or a pipeline of SLURM jobs"
    )
    grid: Grid | None = Field(None, description="all combinations of these values are points")
    points: tuple[Settings, ...] = Field((), description="points of their own, with or without a grid")
    steps: int = Field(20, gt=1, description="measured steps of each stage")
    samples: PositiveInt | None = Field(
        None,
        description=(
            "samples that each stage sees at every point, instead of `steps`: where the quality of different batches is"
            " compared"
        ),
    )
    warmup: NonNegativeInt = Field(5, description="steps before them that are not measured")
    repeats: PositiveInt = Field(3, description="trainings of each point; all points are measured once, then again")
    seed: NonNegativeInt = Field(0, description="of every training")
    lr: Literal["same", "linear", "sqrt"] = Field(
        "same", description="how learning rates follow the global batch, from that of the run config"
    )
    test: bool = Field(False, description="also measure the selected weights of each point on the test split")
    per_node: PositiveInt | None = Field(None, description="processes of a node; default: all on one node")
    gpus: bool = Field(False, description="every process has a GPU")
    cpus: PositiveInt = Field(1, description="slurm: CPUs of a process")
    memory: str | None = Field(
        None, pattern=r"^\d+[KMGT]?$", description="slurm: memory of a node; default: the site's"
    )
    time: str | None = Field(None, pattern=r"^(\d+-)?\d+(:\d\d){0,2}$", description="slurm: time limit of a point")
    profile: str = Field("default", description="slurm: site profile, a YAML file or the name of a shipped one")
    device: str | None = Field(
        None, description="name of the device in the planner's table, for the planner's curve; default: no curve"
    )
    tokens: PositiveInt | None = Field(
        None,
        description=(
            "tokens of a caption with start and end, without prompt, for the planner's curve; default: as many as the"
            " text tower reads, which takes longer than shorter captions"
        ),
    )
    network: str | None = Field(
        None, description="link between nodes, for the planner's curve; default: that of the device's usual node"
    )
    calibration: str | None = Field(
        None,
        description="file of `ccr-dist plan --measure` on the points' machine: its speeds, for the planner's curve",
    )
    measure: Literal["wall", "cpu"] | None = Field(
        None,
        description=(
            "local: measure this machine before the first training, for the planner's curve: on the clock; or in"
            " processor time, which other work on the machine changes little"
        ),
    )

    @model_validator(mode="after")
    def _has_points(self) -> Self:
        if self.grid is None and not self.points:
            raise ValueError("a study needs `grid` or `points`, and has neither")
        return self

    @model_validator(mode="after")
    def _measures_its_own_machine(self) -> Self:
        if self.measure is None:
            return self
        if self.where != "local":
            raise ValueError(
                "measure: this machine is not the nodes that train; run `ccr-dist plan CONFIG --measure --calibration"
                " FILE` on one of them, and name FILE as `calibration`"
            )
        if self.calibration is not None:
            raise ValueError(
                "measure and calibration: the machine's speeds are measured, or read from a file; keep one"
            )
        if self.measure == "cpu" and self.gpus:
            raise ValueError("measure: cpu with gpus: true: processor time says nothing of a GPU; take wall")
        return self


@dataclass(frozen=True)
class Point:
    """A point of a study, with its checked config."""

    study: ScalingStudy
    settings: Settings
    config: RunConfig
    file: Path
    given: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of every value that decides it, so that it stays the same when a study grows."""
        s = self.settings
        parts = [f"w{s.world}", s.strategy, s.precision, f"b{s.batch}"]
        parts += [f"m{s.micro_batch}"] if s.micro_batch else []
        parts += ["gc"] if s.gradient_checkpointing else []
        parts += [s.contrastive] if s.contrastive != "auto" else []
        return "-".join(parts).replace("_", "-")

    @property
    def global_batch(self) -> int:
        return self.settings.batch * (self.settings.world if self.study.kind == "weak" else 1)

    @property
    def per_node(self) -> int:
        return min(self.study.per_node or self.settings.world, self.settings.world)

    @property
    def nodes(self) -> int:
        return self.settings.world // self.per_node

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers of the point, as JSON."""
        config = {key: value for key, value in as_dict(self.config).items() if key not in UNDECISIVE}
        asked = {key: getattr(self.study, key) for key in ("kind", "where", "warmup", "test", "gpus")}
        return {
            "settings": self.settings.model_dump(mode="json"), **asked, "batch": self.global_batch,
            "per_node": self.per_node, "nodes": self.nodes, "config": config,
        }  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One of the trainings of a point."""

    point: Point
    repeat: int

    @property
    def name(self) -> str:
        return f"{self.point.name}.r{self.repeat}"

    @property
    def out(self) -> Path:
        return Path(self.point.study.out)

    @property
    def folder(self) -> Path:
        """Of the training."""
        return self.out / "runs" / f"{self.name}-s{self.point.study.seed}"

    @property
    def record(self) -> Path:
        return self.out / "points" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.out / "logs" / f"{self.name}.log"

    @property
    def command(self) -> tuple[str, ...]:
        """Arguments of `ccr-dist`."""
        point = self.point
        own = (f"name={self.name}", f"out={self.out / 'runs'}")
        test = ("--test",) if point.study.test else ()
        strategy = point.settings.strategy.partition("_")[0]  # zero3_offload is zero3 under another launch profile
        return ("train", str(point.file), *point.given, *own, *test, "--strategy", strategy)


@dataclass(frozen=True)
class ScalingPlan:
    """A study with its points, in the order in which they are written."""

    study: ScalingStudy
    file: Path
    points: tuple[Point, ...]

    @property
    def trials(self) -> list[Trial]:
        """All points once, then all of them again: a slow moment of the machine does not meet one point alone."""
        return [Trial(point, repeat) for repeat in range(self.study.repeats) for point in self.points]


def load_plan(path: str | Path) -> ScalingPlan:
    """Reads a study and checks the config of every point.

    Raises:
        ConfigError: The file is wrong (names file and line of the first fault), or its `out` is a file.
    """
    path = Path(path)
    document = load(path)
    study = validate(ScalingStudy, document)
    folder_to_make(Path(study.out))
    for key, known in (("device", named), ("network", network)):
        try:
            if (value := getattr(study, key)) is not None:
                known(value)
        except ConfigError as error:
            raise ConfigError(f"{document.place((key,))}: {error}") from None
    asked: list[tuple[Settings, KeyPath]] = [
        (settings, ("grid",)) for settings in (study.grid.settings() if study.grid else ())
    ]
    asked += [(settings, ("points", n)) for n, settings in enumerate(study.points)]
    points: dict[str, Point] = {}
    for settings, at in asked:
        place = document.place(at)
        point = _point(study, settings, path, document, place)
        if point.name in points:
            raise ConfigError(f"{place}: the point {point.name} is there twice; take one of them out")
        points[point.name] = point
    return ScalingPlan(study, path, tuple(points.values()))


def _point(study: ScalingStudy, settings: Settings, path: Path, document: Document, place: str) -> Point:
    if study.per_node and settings.world > study.per_node and settings.world % study.per_node:
        raise ConfigError(
            f"{place}: world {settings.world}: expected a multiple of per_node, {study.per_node}, or less than it:"
            " nodes have the same number of processes"
        )
    if study.where == "local" and study.per_node and settings.world > study.per_node:
        raise ConfigError(
            f"{document.place(('per_node',))}: per_node {study.per_node} with where: local and world {settings.world}:"
            " one machine is one node; leave per_node out"
        )
    file = path.parent / study.config
    try:
        base = load_config(file, study.overrides)
        given = (*study.overrides, *_given(study, settings, base))
        config = load_config(file, given)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    return Point(study, settings, config, file, given)


def _given(study: ScalingStudy, settings: Settings, base: RunConfig) -> Sequence[str]:
    """The overrides that make a point of the run config."""
    batch = settings.batch * (settings.world if study.kind == "weak" else 1)
    stages = {name: stage for name, stage in base.stages.items() if not isinstance(stage, FitConfig)}
    if not stages:
        raise ConfigError(f"config {study.config}: method {base.method.name!r} has no stage of steps to measure")
    steps = study.warmup + study.steps if study.samples is None else study.samples // batch
    if steps < study.warmup + 2:
        raise ConfigError(
            f"samples {study.samples}: {steps} steps of {batch}, of which {study.warmup} are warm-up, and at least two"
            " are to be measured; expected more samples, or fewer warm-up steps"
        )
    given = []
    for name, stage in stages.items():
        factor = {"same": 1.0, "linear": batch / stage.batch, "sqrt": (batch / stage.batch) ** 0.5}[study.lr]
        given += [f"stages.{name}.steps={steps}", f"stages.{name}.batch={batch}"]
        given += [f"stages.{name}.lr={stage.lr * factor!r}"] if factor != 1 else []
        given += [f"stages.{name}.validate_every=null"] if stage.validate_every else []
        given += [f"stages.{name}.schedule_steps=null"] if stage.schedule_steps else []
    runtime = {
        "precision": settings.precision,
        "micro_batch": settings.micro_batch,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "contrastive": settings.contrastive,
        "log_every": 1,
        "checkpoint_every": steps * len(base.stages) + 1,  # at the ends of stages there is one anyway
        "keep": 1,
    }
    return [*given, *(f"runtime.{key}={json.dumps(value)}" for key, value in runtime.items()), f"seed={study.seed}"]

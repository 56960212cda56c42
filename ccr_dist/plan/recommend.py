"""Every way to train a run on so many GPUs, which of them to take, why, and the command for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ccr_dist.config import RunConfig
from ccr_dist.devices import Device
from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost.calibration import Calibration
from ccr_dist.plan.predict import Prediction, Traces, predict, steps_of

# Simplest first: of two that take nearly the same time, the first is taken.
SIMPLEST = ("single", "ddp", "zero1", "zero2", "fsdp2", "zero3")
NEARLY = 0.03
# A rank's rows are cut into so many parts where they do not fit whole. Each part is traced, so that more take long.
PARTS = (2, 4, 8, 16, 32, 64)
WHAT = {
    "compute": "arithmetic",
    "memory_traffic": "traffic to the GPU's memory",
    "overhead": "starting kernels",
    "collectives": "communication",
    "data": "waiting for data",
    "solve": "solving on one process",
}
Ways = tuple[Prediction, ...]


@dataclass(frozen=True)
class Option:
    """One way to train the run on so many GPUs.

    Attributes:
        gpus: number of GPUs.
        strategy: as `predict`.
        precision: fp32, bf16 or fp16.
        micro_batch: rows a rank at a time; None: whole.
        stages: predictions for its stages.
        refused: why it cannot be; None: it can.
        largest: the most rows a rank at a time with which every stage of steps fits, as many as it has at most; None:
            nothing that was tried fits, or no stage is of steps.
    """

    gpus: int
    strategy: str
    precision: str
    micro_batch: int | None
    stages: Ways
    refused: str | None = None
    largest: int | None = None

    @property
    def fits(self) -> bool:
        """Whether it can be, and every stage fits."""
        return self.refused is None and all(each.fits for each in self.stages)

    @property
    def total_s(self) -> float:
        """Seconds of all steps of all stages."""
        return sum(each.total_s for each in self.stages)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all steps of all stages."""
        return sum(each.gpu_hours for each in self.stages)

    @property
    def peak_bytes(self) -> int:
        """The highest peak of its stages."""
        return max((each.peak_bytes for each in self.stages), default=0)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "gpus": self.gpus,
            "strategy": self.strategy,
            "precision": self.precision,
            "micro_batch": self.micro_batch,
            "largest_micro_batch": self.largest,
            "fits": self.fits,
            "refused": self.refused,
            "total_s": self.total_s,
            "gpu_hours": self.gpu_hours,
            "stages": [each.to_json() for each in self.stages],
        }


@dataclass(frozen=True)
class Recommendation:
    """What to take on so many GPUs.

    Attributes:
        gpus: number of GPUs.
        option: None: nothing fits.
        reason: in sentences.
        command: what starts it; "" where nothing fits.
        step: a step of a pipeline for `ccr-dist submit`, for several nodes; "" otherwise.
    """

    gpus: int
    option: Option | None
    reason: str
    command: str = ""
    step: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        chosen = self.option
        return {
            "gpus": self.gpus,
            "strategy": chosen and chosen.strategy,
            "precision": chosen and chosen.precision,
            "micro_batch": chosen and chosen.micro_batch,
            "reason": self.reason,
            "command": self.command,
            "pipeline_step": self.step,
        }


def options(
    config: RunConfig,
    *,
    gpus: int,
    per_node: int,
    device: Device | None,
    strategies: Sequence[str],
    precisions: Sequence[str],
    calibration: Calibration | None = None,
    network: str | None = None,
    rows_per_s: float | None = None,
    traces: Traces | None = None,
) -> list[Option]:
    """Every strategy and precision on so many GPUs. Where the config does not cut batches and a rank's rows do not
    fit, the largest parts of them that do.

    Args: as for `predict`.

    Raises:
        ConfigError: the run cannot be planned at all.
    """
    traces = traces or Traces(config)
    rows = max((-(-stage.batch // gpus) for stage in steps_of(config).values()), default=0)
    found: list[Option] = []
    for precision in precisions:
        for strategy in dict.fromkeys("single" if gpus == 1 and name == "ddp" else name for name in strategies):

            def made(size: int | None, strategy: str = strategy, precision: str = precision) -> Ways:
                return tuple(
                    predict(
                        config, gpus=gpus, per_node=per_node, device=device, strategy=strategy, calibration=calibration,
                        precision=precision, micro_batch=size, network=network, rows_per_s=rows_per_s, traces=traces,
                    )
                )  # fmt: skip

            if refused := refusal(config, strategy, precision, gpus):
                found.append(Option(gpus, strategy, precision, None, (), refused))
                continue
            size = config.runtime.micro_batch if rows else None  # stages in closed form cut no batches
            stages = made(size)
            largest, ways = largest_micro_batch(made, rows) if rows else (None, stages)
            if size is None and largest is not None:
                size, stages = None if largest == rows else largest, ways
            found.append(Option(gpus, strategy, precision, size, stages, largest=largest))
    return found


def largest_micro_batch(made: Callable[[int], Ways], rows: int) -> tuple[int | None, Ways]:
    """The most rows at a time with which every stage fits: all, or a part of `PARTS`, or one between two of those.

    Args:
        made: predictions for so many rows at a time; 0: for all of them.
        rows: of the rank that has most.

    Returns:
        Rows, and the predictions for them; None and those for all rows where nothing fits.
    """
    whole = made(0)
    if _fit(whole):
        return rows, whole
    before = 1
    for parts in PARTS:
        if rows < parts:
            break
        if any(_least(each, parts) > each.room_bytes for each in whole):
            before = parts
            continue
        try:
            ways = made(-(-rows // parts))
        except ConfigError:  # a method whose rows meet in the forward cannot be cut
            break
        if not _fit(ways):
            before = parts
            continue
        between = (before + parts) // 2
        if between > before:
            more = made(-(-rows // between))
            if _fit(more):
                return -(-rows // between), more
        return -(-rows // parts), ways
    return None, whole


def _fit(ways: Ways) -> bool:
    return all(each.fits for each in ways)


def _least(whole: Prediction, parts: int) -> float:
    """Bytes of a rank, had it to hold that part of its activations."""
    return whole.peak_bytes - (1 - 1 / parts) * whole.memory.get("activations", 0)


def refusal(config: RunConfig, strategy: str, precision: str, gpus: int) -> str | None:
    """Why the engines would refuse it; None: they do not."""
    if gpus == 1 and strategy not in ("single", "ddp"):
        return "it shards nothing on one GPU"
    stages = steps_of(config)
    if not stages and strategy not in ("single", "ddp"):
        return "every process holds the whole of a stage in closed form, so that it shards nothing"
    if strategy.startswith("zero") and any(stage.ema for stage in stages.values()):
        return "stages.*.ema needs the weights between steps, which zero keeps in parts"
    if strategy.startswith("zero") and precision == "fp16":
        return "fp16 needs a loss scale, which zero does not have here"
    if strategy not in ("single", "ddp"):
        if any(stage.lazy_tables for stage in stages.values()):
            return "stages.*.lazy_tables needs whole tables on every process"
        if any(stage.clip == "tensor" and stage.clip_norm is not None for stage in stages.values()):
            return "stages.*.clip: tensor needs whole gradients"
    return None


def recommend(
    config: RunConfig, found: Sequence[Option], *, per_node: int, path: str, gpu: bool = True
) -> Recommendation:
    """The option to take among those on the same number of GPUs.

    Args:
        config: of the run.
        found: its options.
        per_node: GPUs of a node.
        path: the run config's file and its overrides, quoted for a shell.
        gpu: whether it is planned for GPUs, and not for CPUs.
    """
    gpus = found[0].gpus
    fitting = [each for each in found if each.fits]
    if not fitting:
        return Recommendation(gpus, None, _nothing_fits(found))
    fastest = min(fitting, key=lambda each: each.total_s)
    near = [each for each in fitting if each.total_s <= (1 + NEARLY) * fastest.total_s]
    chosen = min(near, key=lambda each: (SIMPLEST.index(each.strategy), each.total_s))
    return Recommendation(
        gpus,
        chosen,
        _reason(chosen, fastest, found),
        command=_command(config, chosen, per_node, path, gpu),
        step=_pipeline_step(config, chosen, per_node, path, gpu) if gpus > per_node else "",
    )


def _nothing_fits(found: Sequence[Option]) -> str:
    able = [each for each in found if each.refused is None]
    if not able:
        return "nothing can be: " + "; ".join(f"{each.strategy}: {each.refused}" for each in found)
    best = min(able, key=lambda each: each.peak_bytes)
    stage = max(best.stages, key=lambda each: each.peak_bytes)
    part = max(stage.memory, key=lambda name: stage.memory[name])
    closed = "sums" in stage.memory
    remedy = (
        f"a GPU with more memory, a smaller stages.{stage.stage}.batch, or, of a kernel, fewer method.landmarks"
        if closed
        else "more GPUs, a GPU with more memory, a smaller batch, or runtime.gradient_checkpointing=true"
    )
    return (
        f"nothing fits: {best.strategy} in {best.precision} needs least, {_gib(best.peak_bytes)} of"
        f" {_gib(stage.room_bytes)}, most of it {part}; take {remedy}"
    )


def _reason(chosen: Option, fastest: Option, found: Sequence[Option]) -> str:
    said = []
    if chosen is fastest:
        said.append("it is the fastest that fits")
    else:
        said.append(f"it is within {NEARLY:.0%} of the fastest that fits ({fastest.strategy}), and simpler")
    stage = max(chosen.stages, key=lambda each: each.total_s)
    parts = {name: stage.seconds.get(name, 0.0) for name in WHAT}
    most = max(parts, key=lambda name: parts[name])
    one = "stage" if "solve" in stage.seconds else "a step of"
    said.append(f"{one} '{stage.stage}' is mostly {WHAT[most]} ({parts[most] / stage.seconds['step']:.0%})")
    said.append(f"its peak is {_gib(chosen.peak_bytes)} of {_gib(stage.room_bytes)}")
    if chosen.micro_batch is not None:
        said.append(f"parts of {chosen.micro_batch} rows, with a second forward, since the whole batch does not fit")
    if large := sorted({each.strategy for each in found if each.refused is None and not each.fits}):
        said.append(f"{', '.join(large)} would not fit")
    return "; ".join(said)


def profile(strategy: str, gpu: bool) -> str:
    """Name of the launch profile of a strategy."""
    return {"single": "ddp"}.get(strategy, strategy) if gpu else {"single": "cpu", "ddp": "cpu"}.get(strategy, strategy)


def _command(config: RunConfig, chosen: Option, per_node: int, path: str, gpu: bool) -> str:
    words = _changed(config, chosen)
    train = " ".join(["train", path, *words])
    if chosen.gpus == 1:
        return f"ccr-dist {train}"
    nodes = chosen.gpus // per_node if chosen.gpus > per_node else 1
    several = (
        f" --num_machines {nodes} --machine_rank $RANK_OF_THIS_ONE --main_process_ip $FIRST_MACHINE"
        " --main_process_port 29500"
        if nodes > 1
        else ""
    )
    return (
        f"accelerate launch --config_file launch/accelerate/{profile(chosen.strategy, gpu)}.yaml"
        f" --num_processes {chosen.gpus}{several} -m ccr_dist {train} --world {chosen.gpus}"
    )


def _changed(config: RunConfig, chosen: Option) -> list[str]:
    changed: Mapping[str, Any] = {"precision": chosen.precision, "micro_batch": chosen.micro_batch}
    return [
        f"runtime.{key}={value}"
        for key, value in changed.items()
        if value is not None and value != getattr(config.runtime, key)
    ]


def _pipeline_step(config: RunConfig, chosen: Option, per_node: int, path: str, gpu: bool) -> str:
    step = {
        "command": " ".join(["train", path, *_changed(config, chosen)]),
        "nodes": chosen.gpus // per_node,
        "gpus" if gpu else "ranks": per_node,
        "launch": profile(chosen.strategy, gpu),
    }
    return yaml.safe_dump({"steps": {"train": step}}, sort_keys=False, width=math.inf).rstrip()


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"

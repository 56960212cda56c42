"""What a run would need and take on hardware that is not at hand: memory, time and GPU-hours of each of its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ccr_dist.config import FitConfig, RunConfig, StageConfig
from ccr_dist.devices import Device
from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost.calibration import Calibration
from ccr_dist.plan.cost.fit import fit_memory, fit_time
from ccr_dist.plan.cost.machine import CORE, Machine, machine_of
from ccr_dist.plan.cost.memory import disagreement, memory
from ccr_dist.plan.cost.seconds import step_time
from ccr_dist.plan.step.fit import FitTrace, trace_fit
from ccr_dist.plan.step.trace import Trace, trace

# what a process holds on a GPU before it holds a tensor: CUDA's context with torch's kernels, NCCL's channels
PROCESS = 3 * 2**28
THREADS = 8  # of a rank on a GPU's host, where the config does not say
SECONDS = ("compute", "memory_traffic", "overhead", "collectives", "data", "solve", "step")


@dataclass(frozen=True)
class Prediction:
    """A stage of a run on so many GPUs.

    Attributes:
        stage: name of the stage.
        world: number of GPUs, one rank each.
        nodes: number of nodes.
        strategy: ddp, zero1, zero2, zero3 or fsdp2; "single" on one GPU.
        precision: fp32, bf16 or fp16.
        batch: rows of the global batch; of a stage in closed form, all captions that it sums up.
        micro_batch: rows a rank at a time; None: the batch is not cut.
        memory: bytes of a rank by part (`memory.PARTS`, or those of `fit.fit_memory`).
        peak_bytes: their sum.
        room_bytes: what the device offers.
        seconds: of a step, by `SECONDS`: the parts add up to `step`. Collectives and data: what is not hidden behind
            the rest. A stage in closed form is one step; only it has `solve`.
        hidden: seconds of collectives and data that are hidden.
        sent: bytes that a rank sends in a step, by collective.
        steps: optimiser steps of the stage.
        notes: what was assumed, a sentence each.
        host_bytes: of the CPU's memory that rank 0 takes to solve a stage in closed form on a GPU's host.
    """

    stage: str
    world: int
    nodes: int
    strategy: str
    precision: str
    batch: int
    micro_batch: int | None
    memory: dict[str, int]
    peak_bytes: int
    room_bytes: int
    seconds: dict[str, float]
    hidden: dict[str, float]
    sent: dict[str, int]
    steps: int
    notes: tuple[str, ...] = ()
    host_bytes: int = 0

    @property
    def samples_per_s(self) -> float:
        """Rows of the global batch a second."""
        return self.batch / self.seconds["step"]

    @property
    def fits(self) -> bool:
        """Whether a rank's peak is within what the device offers."""
        return self.peak_bytes <= self.room_bytes

    @property
    def total_s(self) -> float:
        """Seconds of all steps of the stage; validation, checkpoints and starts not included."""
        return self.steps * self.seconds["step"]

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all steps of the stage."""
        return self.total_s * self.world / 3600

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        derived = ("samples_per_s", "fits", "total_s", "gpu_hours")
        return asdict(self) | {name: getattr(self, name) for name in derived}


class Traces:
    """Traces of a run's stages, each made once: strategies and devices share them. For the first one of a stage torch
    is asked for its opinion on the peak of memory, too.

    Args:
        config: of the run.
        make: makes one; `trace.trace`.
        tokens: of a caption, as for `trace.trace`.
        opinion: whether torch is asked, which takes about as long again.
        captions: that stages in closed form sum up; None: they are counted.

    Attributes:
        doubts: stage -> sentence for people, where torch's opinion is another one.
    """

    def __init__(
        self,
        config: RunConfig,
        make: Callable[..., Trace] = trace,
        tokens: int | None = None,
        opinion: bool = True,
        captions: int | None = None,
    ) -> None:
        self.config, self._make, self._tokens, self._opinion = config, make, tokens, opinion
        self._captions = captions
        self.doubts: dict[str, str | None] = {}
        self._known: dict[tuple[str, int, str, int], Trace] = {}
        self._fits: dict[str, FitTrace] = {}

    def of(self, stage: str, world: int, precision: str | None = None, micro_batch: int | None = None) -> Trace:
        """The trace of a stage; arguments as for `trace.trace`."""
        runtime = self.config.runtime
        size = (runtime.micro_batch or 0) if micro_batch is None else micro_batch
        key = stage, world, precision or runtime.precision, size
        if key not in self._known:
            made = self._make(
                self.config, stage, world=world, precision=key[2], micro_batch=size, tokens=self._tokens,
                opinion=self._opinion and stage not in self.doubts,
            )  # fmt: skip
            self.doubts.setdefault(stage, disagreement(made))
            self._known[key] = made
        return self._known[key]

    def fit(self, stage: str) -> FitTrace:
        """The trace of a stage in closed form."""
        if stage not in self._fits:
            self._fits[stage] = trace_fit(self.config, stage, captions=self._captions)
        return self._fits[stage]


def predict(
    config: RunConfig,
    *,
    gpus: int,
    per_node: int,
    device: Device | None,
    strategy: str,
    calibration: Calibration | None = None,
    precision: str | None = None,
    micro_batch: int | None = None,
    network: str | None = None,
    rows_per_s: float | None = None,
    traces: Traces | None = None,
) -> list[Prediction]:
    """Memory and time of each trained stage of a run.

    Args:
        config: of the run; its weights need not be there.
        gpus: number of GPUs, one rank each.
        per_node: GPUs of a node.
        device: the GPU; None: the machine of the calibration.
        strategy: single, ddp, zero1, zero2, zero3 or fsdp2; ddp on one GPU is single.
        calibration: measured speeds that stand in for the table's.
        precision: None: the config's.
        micro_batch: rows a rank at a time; None: the config's; 0: the batch is not cut.
        network: name of the link between nodes; None: that of the device's usual node.
        rows_per_s: that a loader process makes ready; None: reading is taken to be fast enough.
        traces: of the same config, to be shared between calls.

    Returns:
        A prediction for each stage. A stage in closed form is the same under every strategy.

    Raises:
        ConfigError: `gpus` is not a multiple of `per_node` where there are several nodes, the batch has fewer rows than
            there are GPUs, the device has no units for the precision, the run cannot be traced, or it has no stage.
    """
    traces = traces or Traces(config)
    asked = precision or config.runtime.precision
    machine = machine_of(
        device, gpus=gpus, per_node=per_node, precision=asked, network=network, calibration=calibration
    )
    if strategy == "ddp" and gpus == 1:
        strategy = "single"
    room = calibration.memory_bytes // machine.ranks.per_node if calibration is not None and not machine.queued else 0
    if not room:
        room = int(device.memory_bytes) if device is not None else calibration.memory_bytes  # type: ignore[union-attr]
    found = []
    require_rows(config, gpus)
    for name, stage in stages_of(config).items():
        if isinstance(stage, FitConfig):
            found.append(_fit(config, traces.fit(name), machine, strategy, asked, room, rows_per_s))
            continue
        made = traces.of(name, gpus, asked, micro_batch)
        parts = memory(
            made,
            strategy=strategy,
            world=gpus,
            precision=asked,
            optimizer=stage,
            process=PROCESS if machine.queued else 0,
        )
        time = step_time(
            made, strategy=strategy, machine=machine, workers=config.runtime.workers, rows_per_s=rows_per_s
        )
        found.append(
            Prediction(
                stage=name,
                world=gpus,
                nodes=machine.ranks.nodes,
                strategy=strategy,
                precision=asked,
                batch=stage.batch,
                micro_batch=None if made.micro_batches == 1 else -(-made.rows // made.micro_batches),
                memory=parts,
                peak_bytes=sum(parts.values()),
                room_bytes=room,
                seconds={**time.parts, "step": time.step},
                hidden=time.hidden,
                sent=time.sent,
                steps=stage.steps,
                notes=(*made.notes, *filter(None, [traces.doubts[name], _unmeasured(machine, strategy)])),
            )
        )
    return found


def _unmeasured(machine: Machine, strategy: str) -> str | None:
    """What a calibration does not know of an engine."""
    if machine.calibration is None or machine.ranks.world == 1 or machine.engine(strategy) is not None:
        return None
    return (
        f"the engine of {strategy} was not measured (over several processes, with its library installed): its own work"
        " on the host is planned as starts of its copies"
    )


def require_rows(config: RunConfig, gpus: int) -> None:
    """Check that every rank has rows of every batch.

    Raises:
        ConfigError: a stage has fewer rows a batch than there are GPUs.
    """
    for name, stage in steps_of(config).items():
        if stage.batch < gpus:
            raise ConfigError(
                f"{config.name}: --gpus {gpus}: stage '{name}' has {stage.batch} rows a batch, fewer than GPUs; plan at"
                f" most {stage.batch}, or a larger stages.{name}.batch"
            )


def _fit(
    config: RunConfig,
    made: FitTrace,
    machine: Machine,
    strategy: str,
    precision: str,
    room: int,
    rows_per_s: float | None,
) -> Prediction:
    """A stage in closed form."""
    world = machine.ranks.world
    known = machine.calibration.threads if machine.calibration is not None and not machine.queued else THREADS
    threads = config.runtime.threads or known
    time = fit_time(made, machine, threads=threads, rows_per_s=rows_per_s)
    parts, host = fit_memory(
        made, world=world, saves=time.saves, host=not machine.queued, process=PROCESS if machine.queued else 0
    )
    notes = list(made.notes)
    runtime = config.runtime
    unused = {"micro_batch": runtime.micro_batch, "gradient_checkpointing": runtime.gradient_checkpointing}
    if set_ := [f"runtime.{key}" for key, value in unused.items() if value]:
        notes.append(f"{' and '.join(set_)} change nothing in stage '{made.stage}', which has no gradients")
    if machine.queued:
        notes.append(
            f"stage '{made.stage}' is solved on the CPU of one process, in {host / 2**30:.1f} GiB of the machine's"
            f" memory; {threads} threads at {CORE / 1e9:.0f} GFLOP/s in float64 are assumed (runtime.threads)"
        )
    return Prediction(
        stage=made.stage,
        world=world,
        nodes=machine.ranks.nodes,
        strategy=strategy,
        precision=precision,
        batch=made.captions.total,
        micro_batch=None,
        memory=parts,
        peak_bytes=sum(parts.values()),
        room_bytes=room,
        seconds={**time.parts, "step": time.total},
        hidden={},
        sent=time.sent,
        steps=1,
        notes=tuple(notes),
        host_bytes=host,
    )


def stages_of(config: RunConfig) -> dict[str, StageConfig | FitConfig]:
    """The stages that are trained.

    Raises:
        ConfigError: there is none.
    """
    if not config.stages:
        raise ConfigError(
            f"{config.name}: method {config.method.name!r} has nothing to train, so that there is nothing to plan; plan"
            " the run that its weights come from, or jobs with `ccr-dist plan featurise`"
        )
    return dict(config.stages)


def steps_of(config: RunConfig) -> dict[str, StageConfig]:
    """The stages that are trained in steps; all others are in closed form."""
    return {name: stage for name, stage in stages_of(config).items() if isinstance(stage, StageConfig)}

"""What a run would need and take on hardware that is not at hand: memory, time and GPU-hours of each of its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ccr_dist.config import RunConfig, StageConfig
from ccr_dist.devices import Device
from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost.calibration import Calibration
from ccr_dist.plan.cost.machine import machine_of
from ccr_dist.plan.cost.memory import disagreement, memory
from ccr_dist.plan.cost.seconds import step_time
from ccr_dist.plan.step.trace import Trace, trace

# what a process holds on a GPU before it holds a tensor: CUDA's context with torch's kernels, NCCL's channels
PROCESS = 3 * 2**28
SECONDS = ("compute", "memory_traffic", "overhead", "collectives", "data", "step")


@dataclass(frozen=True)
class Prediction:
    """A stage of a run on so many GPUs.

    Attributes:
        stage: name of the stage.
        world: number of GPUs, one rank each.
        nodes: number of nodes.
        strategy: ddp, zero1, zero2, zero3 or fsdp2; "single" on one GPU.
        precision: fp32, bf16 or fp16.
        batch: rows of the global batch.
        micro_batch: rows a rank at a time; None: the batch is not cut.
        memory: bytes of a rank by part (`memory.PARTS`).
        peak_bytes: their sum.
        room_bytes: what the device offers.
        seconds: of a step, by `SECONDS`: the parts add up to `step`. Collectives and data: what is not hidden behind
            the rest.
        hidden: seconds of collectives and data that are hidden.
        sent: bytes that a rank sends in a step, by collective.
        steps: optimiser steps of the stage.
        notes: what was assumed, a sentence each.
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

    Attributes:
        doubts: stage -> sentence for people, where torch's opinion is another one.
    """

    def __init__(
        self, config: RunConfig, make: Callable[..., Trace] = trace, tokens: int | None = None, opinion: bool = True
    ) -> None:
        self.config, self._make, self._tokens, self._opinion = config, make, tokens, opinion
        self.doubts: dict[str, str | None] = {}
        self._known: dict[tuple[str, int, str, int], Trace] = {}

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
        A prediction for each stage of steps; none for stages in closed form.

    Raises:
        ConfigError: `gpus` is not a multiple of `per_node` where there are several nodes, the batch has fewer rows than
            there are GPUs, the device has no units for the precision, or the run cannot be traced.
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
                notes=(*made.notes, *filter(None, [traces.doubts[name]])),
            )
        )
    return found


def require_rows(config: RunConfig, gpus: int) -> None:
    """Check that every rank has rows of every batch.

    Raises:
        ConfigError: a stage has fewer rows a batch than there are GPUs.
    """
    for name, stage in stages_of(config).items():
        if stage.batch < gpus:
            raise ConfigError(
                f"{config.name}: --gpus {gpus}: stage '{name}' has {stage.batch} rows a batch, fewer than GPUs; plan at"
                f" most {stage.batch}, or a larger stages.{name}.batch"
            )


def stages_of(config: RunConfig) -> dict[str, StageConfig]:
    """The stages that are trained in steps.

    Raises:
        ConfigError: there is none.
    """
    found = {name: stage for name, stage in config.stages.items() if isinstance(stage, StageConfig)}
    if not found:
        what = "is trained in closed form, whose one step" if config.stages else "has nothing to train, so it"
        raise ConfigError(
            f"{config.name}: method {config.method.name!r} {what} cannot be planned: its time is that of reading the"
            " data once"
        )
    return found

"""What a run would need and take on hardware that is not at hand: memory, time and GPU-hours of each of its stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ccr_dist.config import RunConfig
from ccr_dist.devices import Device
from ccr_dist.plan.calibration import Calibration

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
) -> list[Prediction]:
    """Memory and time of each trained stage of a run.

    Args:
        config: of the run; its weights need not be there.
        gpus: number of GPUs, one rank each.
        per_node: GPUs of a node.
        device: the GPU; None: the machine of the calibration.
        strategy: single, ddp, zero1, zero2, zero3 or fsdp2.
        calibration: measured speeds that stand in for the table's.
        precision: None: the config's.
        micro_batch: rows a rank at a time; None: the config's; 0: the batch is not cut.
        network: name of the link between nodes; None: that of the device's usual node.

    Returns:
        A prediction for each stage of steps; none for stages in closed form.

    Raises:
        ConfigError: `gpus` is not a multiple of `per_node` where there are several nodes, the batch has fewer rows than
            there are GPUs, the device has no units for the precision, or the run cannot be traced.
    """
    raise NotImplementedError

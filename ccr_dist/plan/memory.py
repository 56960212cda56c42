"""Bytes that a rank holds at the peak of a step, by part, from a trace and what each strategy keeps."""

from __future__ import annotations

from collections.abc import Callable

from ccr_dist.config import StageConfig
from ccr_dist.plan.trace import Trace

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
PARTS = (
    "frozen",
    "trained",
    "gradients",
    "optimizer",
    "activations",
    "loss",
    "gathered",
    "workspace",
    "fragmentation",
    "process",
)


def memory(
    trace: Trace,
    *,
    strategy: str,
    world: int,
    precision: str,
    optimizer: StageConfig | str,
    process: int = 0,
    fragmentation: float = 0.0,
    bucket: int | None = None,
) -> dict[str, int]:
    """Bytes of a rank by part, at the moment of the step at which their sum is highest.

    Args:
        trace: of the stage, for this world.
        strategy: one of `STRATEGIES`.
        world: number of ranks, as in the trace.
        precision: as in the trace.
        optimizer: the stage's settings, or the name of its optimiser.
        process: bytes of a process before it holds a tensor (interpreter, libraries, a GPU's context).
        fragmentation: part of all tensors' bytes that the allocator loses.
        bucket: elements of DeepSpeed's buckets; None: those of the profiles that come with ccr-dist.

    Returns:
        Bytes by each of `PARTS`, zeros included; the peak is their sum.

    Raises:
        ConfigError: unknown strategy, or a trace of another world or precision.
    """
    raise NotImplementedError


def largest_micro_batch(
    traced: Callable[[int], Trace],
    *,
    rows: int,
    room: int,
    strategy: str,
    optimizer: StageConfig | str,
    process: int = 0,
) -> int | None:
    """The largest `runtime.micro_batch` whose step fits.

    Args:
        traced: the trace for a size of micro-batch.
        rows: of the rank; this many means that the batch is not cut.
        room: bytes of a device.
        strategy: one of `STRATEGIES`.
        optimizer: as in `memory`.
        process: as in `memory`.

    Returns:
        Rows of a part; None: not even one row fits.
    """
    raise NotImplementedError

"""What engines do in a step beside what they send: bytes that they copy (gradients into buckets and out of them,
gathered weights to their places), as PyTorch's reducer and `fully_shard`, and DeepSpeed with the profiles that come
with ccr-dist; and the host's work on it, where that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ccr_dist.plan.cost.machine import Machine
from ccr_dist.plan.cost.messages import ELEMENTS, PERSIST, of_parameters
from ccr_dist.plan.step.operators import Kind
from ccr_dist.plan.step.trace import Trace

WAYS = 2  # a copy reads and writes
LAYER = 12  # tensors of a transformer's block: two norms, and four linear layers
FLOAT64 = 1.5  # of a copy's bytes: float32 is read, float64 written


@dataclass(frozen=True)
class Copy:
    """Calls that move bytes.

    Attributes:
        phase: one of `seconds.PHASES`.
        size: bytes that all calls together read and write.
        calls: how many.
        what: for people.
        new: bytes of memory that is asked for each time; 0: it is there. Its speed is that of a copy of so many bytes.
    """

    phase: str
    size: float
    calls: int
    what: str
    new: float = 0.0

    def seconds(self, machine: Machine) -> float:
        """Of all calls."""
        one = WAYS * self.new or self.size / self.calls
        return self.size / one * machine.seconds(Kind("clone" if self.new else "copy", 0, 0, 0, 1, 0.0, one))[1]


def copies(trace: Trace, strategy: str, world: int) -> list[Copy]:
    """The copies of a step; none on one process.

    Args:
        trace: of the stage.
        strategy: one of `messages.STRATEGIES`.
        world: number of ranks.
    """
    if world == 1 or strategy == "single" or not trace.trained:
        return []
    ways = {"ddp": _ddp, "zero1": _zero, "zero2": _zero, "zero3": _zero3, "fsdp2": _fsdp2}
    found = ways[strategy](trace, world, trace.micro_batches if strategy in ("zero2", "zero3") else 1)
    return [each for each in found if each.size > 0 and each.calls > 0]


def host_work(trace: Trace, strategy: str, phase: str, measured: Mapping[str, float]) -> float:
    """Seconds of an engine's own work on the host in a phase.

    Args:
        trace: of the stage, on several ranks.
        strategy: its engine.
        phase: one of `seconds.PHASES`.
        measured: of a tensor or frozen block, by `KIND PART` (`plan/engines.py`).
    """
    if phase not in ("forward", "backward", "update") or not trace.trained:
        return 0.0
    kept = [count for count in trace.tensors if strategy != "zero3" or count <= PERSIST]
    tensors = {"small": len(kept), "cut": len(trace.tensors) - len(kept)}
    parts = trace.micro_batches
    times = {"forward": 1 if parts == 1 else 2 * parts, "backward": parts, "update": 1}[phase]
    if strategy in ("ddp", "zero1") and phase == "backward":
        times = 1  # gradients are reduced in the last part
    spent = times * sum(count * measured.get(f"{kind} {phase}", 0.0) for kind, count in tensors.items())
    if strategy == "fsdp2":
        runs = [forward if phase == "forward" else backward for forward, backward in trace.block_runs]
        return float(spent + sum(runs) * measured.get(f"block {phase}", 0.0))
    return float(spent + times * len(trace.frozen_tensors) / LAYER * measured.get(f"frozen {phase}", 0.0))


def _ddp(trace: Trace, world: int, parts: int) -> list[Copy]:
    """Each gradient is scaled into its bucket, and copied back when the bucket is reduced."""
    number, size = len(trace.tensors), WAYS * trace.trained_bytes
    return [
        Copy("backward", size, number, "gradients into buckets"),
        Copy("backward", size, number, "gradients out of buckets"),
    ]


def _zero(trace: Trace, world: int, parts: int) -> list[Copy]:
    """Gradients are copied into a bucket, new for each step, which is scaled, and flattened to be reduced; a rank's own
    part is copied back, out of the bucket, and flattened for the update; the updated part goes back into the weights.
    """
    number, size = len(trace.tensors), WAYS * trace.trained_bytes
    own, part = max(1, number // world), size / world
    bucket, filled = 4.0 * ELEMENTS, min(4.0 * ELEMENTS, trace.trained_bytes)
    return [
        Copy("backward", parts * size, parts * number, "gradients into the bucket", new=bucket),
        Copy("backward", parts * size, parts, "the bucket, scaled"),
        Copy("backward", parts * size, parts, "the bucket, flattened", new=filled),
        Copy("backward", parts * part, parts * own, "a rank's part, back into the bucket"),
        Copy("backward", parts * part, parts * own, "a rank's part, out of the bucket", new=part / WAYS),
        Copy("backward", 1.5 * (parts - 1) * part, (parts - 1) * own, "parts of a batch, added up"),
        *_update(trace, part, own),
    ]


def _update(trace: Trace, part: float, own: int) -> list[Copy]:
    """DeepSpeed takes the norm of each gradient in float64, and flattens all of them for the optimiser."""
    groups = len(trace.groups)
    largest = max(trace.tensors, default=0)
    return [
        Copy("update", FLOAT64 * part, own, "a rank's part in float64", new=8.0 * largest),
        Copy("update", part, groups, "a rank's part, flattened", new=part / WAYS),
        Copy("update", part, groups, "a rank's part, back to the weights"),
    ]


def _zero3(trace: Trace, world: int, parts: int) -> list[Copy]:
    """As `_zero`, but that buckets stay, and that a rank's part is only added up, in memory that is cleared after the
    update. Each parameter is put together of what was gathered.
    """
    number, size = len(trace.tensors), WAYS * trace.trained_bytes
    own, part = max(1, number // world), size / world
    filled = min(4.0 * ELEMENTS, trace.trained_bytes)
    found = [
        Copy("backward", parts * size, parts * number, "gradients into the bucket"),
        Copy("backward", parts * size, parts, "the bucket, scaled"),
        Copy("backward", parts * size, parts, "the bucket, flattened", new=filled),
        Copy("backward", (1 + 1.5 * (parts - 1)) * part, parts * number, "a rank's part, added up"),
        *_update(trace, part, own),
        Copy("update", part / WAYS, own, "gradients, cleared"),
    ]
    return [*found, *_gathered(trace, "zero3", world)]


def _fsdp2(trace: Trace, world: int, parts: int) -> list[Copy]:
    """Gradients go into a buffer to be scattered, and what arrives to their shards. Buffers and gathered parameters are
    freed.
    """
    found = []
    for each in of_parameters(trace, "fsdp2"):
        if each.kind == "reduce_scatter":
            size = WAYS * each.count * each.size
            found.append(Copy(each.phase, size, each.count, "gradients, to be scattered", new=each.size))
            found.append(Copy(each.phase, size / world, each.count, "a rank's part, to its gradients"))
    return [*found, *_gathered(trace, "fsdp2", world)]


def _gathered(trace: Trace, strategy: str, world: int) -> list[Copy]:
    """Shards go into a buffer to be gathered, and the result to its parameters."""
    found = []
    for each in of_parameters(trace, strategy):
        if each.kind == "all_gather" and each.phase != "update":
            size = WAYS * each.count * each.size
            found.append(Copy(each.phase, size / world, each.count, "shards, to be gathered", new=each.size))
            found.append(Copy(each.phase, size, each.count, "what was gathered, to its place", new=each.size))
    return found

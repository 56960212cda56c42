"""What each strategy keeps on a rank, and what it needs at each moment of a step, in bytes.

Every formula is of what the engines of `train/strategies` really hold: weights, gradients and moments in fp32,
whatever the precision; DeepSpeed's flat copy of its partition and its buckets; DDP's buckets beside the gradients; the
group that FSDP2 keeps gathered.
"""

from __future__ import annotations

from dataclasses import dataclass

from ccr_dist.plan.step.trace import Live, Trace

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
FP32 = 4
MOMENTS = 2  # of every optimiser here: Adam's
BUCKET = 25_000_000  # elements, in the DeepSpeed configs that come with ccr-dist
PERSISTENT = 10_000  # elements of a parameter that zero3 keeps whole
REUSED = 100_000_000  # elements after which zero3 frees what it has gathered, if it is not needed sooner


@dataclass(frozen=True)
class Kept:
    """Bytes by part.

    Attributes:
        frozen, trained, gradients, optimizer: of the model.
        workspace: buffers of the strategy.
    """

    frozen: int = 0
    trained: int = 0
    gradients: int = 0
    optimizer: int = 0
    workspace: int = 0


def kept(trace: Trace, strategy: str, moment: Live, *, touched: bool) -> Kept:
    """What a rank holds of the model at a moment of a step.

    Args:
        trace: of the stage.
        strategy: one of `STRATEGIES`.
        moment: of the trace.
        touched: memory is taken when it is written to, as on a CPU; a GPU takes a buffer whole.
    """
    if strategy in ("single", "ddp"):
        return _replicated(trace, strategy, moment)
    if strategy in ("zero1", "zero2"):
        return _zero12(trace, moment, touched)
    if strategy == "fsdp2":
        return _fsdp2(trace, moment)
    return _zero3(trace, moment, touched, offload=strategy == "zero3_offload")


def _own(trace: Trace) -> tuple[int, int]:
    """Weights and optimiser state that every strategy replicates: of networks with optimisers of their own."""
    return trace.auxiliary, MOMENTS * trace.auxiliary


def _replicated(trace: Trace, strategy: str, moment: Live) -> Kept:
    weights, state = _own(trace)
    buckets = trace.trained_bytes if strategy == "ddp" else 0
    return Kept(
        frozen=trace.frozen_bytes,
        trained=trace.trained_bytes + weights,
        gradients=moment.gradients + buckets,
        optimizer=MOMENTS * trace.trained_bytes + state + trace.average,
    )


def _partition(elements: int, world: int) -> int:
    return FP32 * -(-elements // world)


def _zero12(trace: Trace, moment: Live, touched: bool) -> Kept:
    """Flat weights, of which a rank updates a copy of its part; gradients go through two buckets into the part that is
    kept.
    """
    weights, state = _own(trace)
    part = sum(_partition(group, trace.world) for group in trace.groups)
    bucket, gradients, workspace = FP32 * BUCKET, 0, 0
    flat = trace.trained_bytes
    if moment.phase in ("backward", "reduce"):
        filled = min(flat, 2 * bucket) if touched else 2 * bucket
        alone = max((FP32 * n for n in trace.tensors), default=0)  # one gradient on its way into the bucket
        gradients, workspace = (
            min(part, moment.gradients),
            (min(filled, moment.gradients) if touched else filled) + (alone if moment.gradients else 0),
        )
    elif moment.phase == "update":
        gradients, workspace = 2 * part, min(flat, bucket)
    return Kept(
        frozen=trace.frozen_bytes,
        trained=flat + weights,
        gradients=gradients,
        optimizer=(1 + MOMENTS) * part + state,
        workspace=workspace,
    )


def _fsdp2(trace: Trace, moment: Live) -> Kept:
    """Shards; beside them everything but frozen blocks, gathered from the forward to the end of the backward, and a
    block or two.
    """
    weights, state = _own(trace)
    world, blocks = trace.world, sum(trace.blocks)
    before_blocks = moment.phase == "opening" or (not trace.opened and moment.phase in ("losses", "backward"))
    cut = trace.frozen_bytes - trace.whole
    root = cut - blocks + trace.trained_bytes
    shard = sum(_partition(n, world) for n in trace.tensors)
    frozen = trace.whole + trace.shared + -(-cut // world)
    gathered_frozen = gathered_trained = gradients = workspace = 0
    largest = max(trace.blocks, default=0)
    if moment.phase in ("start", "opening", "forward", "losses", "backward"):
        gathered_frozen, gathered_trained = cut - blocks, trace.trained_bytes
        gradients = moment.gradients
        # torch keeps what it gathered into until the next group is gathered
        workspace = root if moment.phase == "start" or before_blocks else 2 * largest
    elif moment.phase == "reduce":
        gradients, workspace = moment.gradients, trace.trained_bytes + shard
    elif moment.phase == "update":
        gradients = shard
    return Kept(
        frozen=frozen + gathered_frozen,
        trained=shard + gathered_trained + weights,
        gradients=gradients,
        optimizer=MOMENTS * shard + state + -(-trace.average // world),
        workspace=workspace,
    )


def _zero3(trace: Trace, moment: Live, touched: bool, *, offload: bool) -> Kept:
    """Parts of weights, a flat copy of them, of gradients and moments, and one bucket, all the time; beside them what
    is gathered.
    """
    weights, state = _own(trace)
    world = trace.world
    part = sum(_partition(n, world) for n in trace.tensors)
    cut = trace.frozen_bytes - trace.whole
    small = FP32 * sum(n for n in (*trace.tensors, *trace.frozen_tensors) if n < PERSISTENT)
    bucket = min(FP32 * BUCKET, trace.trained_bytes) if touched else FP32 * BUCKET
    frozen = trace.whole + (0 if offload else -(-cut // world))
    # what is used again is kept; what is next, such as a frozen tower, is fetched ahead
    live, gradients = 0, 0 if offload else part
    if moment.phase in ("opening", "forward"):
        live = min(trace.used, FP32 * REUSED)
    elif moment.phase in ("losses", "backward"):
        live = min(trace.used, trace.trained_bytes, FP32 * REUSED)
    elif moment.phase == "update":
        gradients *= 2
    return Kept(
        frozen=frozen,
        trained=(0 if offload else 2 * part) + weights + small,
        gradients=gradients,
        optimizer=state + (0 if offload else MOMENTS * part),
        workspace=live + bucket,
    )

"""What ranks send each other in a step, by strategy: as the engines of `train/strategies` do, and the libraries that
they call.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from ccr_dist.errors import ConfigError
from ccr_dist.plan.step.trace import Trace

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")
BUCKET = 25 * 2**20  # bytes of DDP's buckets, but for the first
FIRST = 2**20  # bytes of that
ELEMENTS = 25_000_000  # of DeepSpeed's buckets in the profiles that come with ccr-dist
PERSIST = 10_000  # elements up to which ZeRO-3 keeps a parameter whole
LIVE = 100_000_000  # elements that ZeRO-3 keeps gathered from a forward to its backward
AGREEMENTS = 4  # small all-reduces around a step: rows of each rank, errors, sums for the log, norm of the gradient


@dataclass(frozen=True)
class Message:
    """A collective that a step makes.

    Attributes:
        phase: one of `seconds.PHASES`.
        kind: all_reduce, all_gather, reduce_scatter, or send (to the next rank of a ring).
        size: bytes of the whole buffer; of a send, those that are sent.
        count: how often.
        hides: it may run beside the computations of its phase, on devices that can.
        what: for people.
    """

    phase: str
    kind: str
    size: float
    count: int
    hides: bool
    what: str


def messages(trace: Trace, strategy: str, world: int) -> list[Message]:
    """The collectives of a step.

    Args:
        trace: of the stage.
        strategy: one of `STRATEGIES`.
        world: number of ranks.

    Raises:
        ConfigError: unknown strategy, or `single` with several ranks.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy {strategy!r}: expected one of {', '.join(STRATEGIES)}")
    if strategy == "single":
        if world > 1:
            raise ConfigError(f"strategy single is for one process, not {world}: plan ddp, zero or fsdp2")
        return []
    if world == 1:
        return []
    found = [Message("update", "all_reduce", 64, AGREEMENTS, False, "agreement")]
    found += _features(trace)
    if trace.trained:
        found += of_parameters(trace, strategy)
    return found


def of_parameters(trace: Trace, strategy: str) -> list[Message]:
    """Those of weights and their gradients, on several ranks."""
    if strategy in ("zero1", "zero2"):
        return _zero(trace, strategy)
    return {"ddp": _ddp, "zero3": _zero3, "fsdp2": _fsdp2}[strategy](trace)


def _features(trace: Trace) -> list[Message]:
    """Of the losses: features of all ranks, and their gradients back to the ranks that made them."""
    return [
        Message(phase, call.kind, call.size, count, False, "features and their gradients")
        for phase, calls in trace.sent.items()
        for call, count in calls.items()
    ]


def _ddp(trace: Trace) -> list[Message]:
    """Buckets are reduced while the backward goes on; the last one when it has ended."""
    size = trace.trained_bytes
    buckets = 1 + max(0, math.ceil((size - FIRST) / BUCKET))
    found = [Message("backward", "all_reduce", size / buckets, 1, False, "gradients, the last bucket")]
    if buckets > 1:
        found.append(Message("backward", "all_reduce", size / buckets, buckets - 1, True, "gradients"))
    found.append(Message("backward", "all_reduce", 4 * len(trace.tensors), 1, False, "which parameters were used"))
    return found


def _zero(trace: Trace, name: str) -> list[Message]:
    """DeepSpeed all-reduces its buckets (`use_multi_rank_bucket_allreduce`), ZeRO-2 after each part of a batch; updated
    parameters are gathered when all is done.
    """
    size, times = trace.trained_bytes, trace.micro_batches if name == "zero2" else 1
    buckets = math.ceil(size / (4 * ELEMENTS))
    return [
        Message("backward", "all_reduce", size / buckets, times, False, "gradients, the last bucket"),
        *([Message("backward", "all_reduce", size / buckets, times * (buckets - 1), True, "gradients")]
          if buckets > 1 else []),
        Message("update", "all_gather", size, 1, False, "updated parameters"),
    ]  # fmt: skip


def _zero3(trace: Trace) -> list[Message]:
    """Parameters are gathered for each forward, and for its backward again where they are too many to be kept: many at
    once, as far as DeepSpeed fetches ahead. Small ones are kept whole, and each is gathered after the update.
    """
    cut = [count for count in (*trace.tensors, *trace.frozen_tensors) if count > PERSIST]
    size, parts = 4.0 * sum(cut), trace.micro_batches
    once = 2 * sum(cut) <= LIVE
    forwards = 1 if parts == 1 else 2 * parts
    buckets = max(1, math.ceil(trace.trained_bytes / (4 * ELEMENTS)))
    found = [
        Message("backward", "reduce_scatter", trace.trained_bytes / buckets, parts * buckets, True, "gradients"),
    ]
    if small := [count for count in trace.tensors if count <= PERSIST]:
        mean = 4.0 * sum(small) / len(small)
        found.append(Message("update", "all_gather", mean, len(small), False, "small parameters"))
    if cut:
        fetches = min(len(cut), 1 + math.ceil(sum(cut) / ELEMENTS))
        found.append(Message("forward", "all_gather", size / fetches, forwards * fetches, True, "parameters"))
        if not once:
            found.append(Message("backward", "all_gather", size / fetches, parts * fetches, True, "parameters"))
    return [each for each in found if each.size > 0]


def _fsdp2(trace: Trace) -> list[Message]:
    """A frozen block is gathered whenever it runs, forward and backward; all else is one group, gathered once, whose
    gradients are scattered when the backward has ended.
    """
    rest = trace.trained_bytes + trace.frozen_bytes - sum(trace.blocks)
    found = [
        Message("forward", "all_gather", rest, 1, False, "parameters outside of frozen blocks"),
        Message("backward", "reduce_scatter", trace.trained_bytes, 1, False, "gradients"),
    ]
    often: Counter[tuple[str, int]] = Counter()
    for size, (forward, backward) in zip(trace.blocks, trace.block_runs, strict=True):
        often["forward", size] += forward
        often["backward", size] += backward
    for (phase, size), count in often.items():
        if count:
            found.append(Message(phase, "all_gather", size, count, True, "frozen blocks"))
    return found

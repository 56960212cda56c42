"""Memory and time of a stage in closed form, by part, from its trace.

Ranks sum up blocks in turn, each its own; the sums are reduced; rank 0 solves on its CPU and tells the others. Weights
are whole on every rank, whatever the strategy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ccr_dist.plan.cost.machine import Machine
from ccr_dist.plan.step.fit import ON_DEVICE, FitTrace
from ccr_dist.plan.step.operators import Kind
from ccr_dist.train.step.fit import SAVE_S

AGREEMENTS = 3  # small all-reduces after each turn: errors, a request to stop, whether it is time to save
FP32 = 4


@dataclass(frozen=True)
class FitTime:
    """Seconds of a stage in closed form.

    Attributes:
        parts: compute, memory_traffic, overhead (of summing up), collectives, data, and solve (on one rank).
        sent: bytes that a rank sends, by kind of collective.
        saves: whether summing up takes so long that sums are saved in between, and one more copy of them is held.
    """

    parts: dict[str, float]
    sent: dict[str, int]
    saves: bool

    @property
    def total(self) -> float:
        """Seconds of the whole stage."""
        return sum(self.parts.values())


def fit_time(trace: FitTrace, machine: Machine, *, threads: int, rows_per_s: float | None = None) -> FitTime:
    """Time a stage in closed form.

    Args:
        trace: of the stage.
        machine: what runs it.
        threads: of the rank that solves.
        rows_per_s: captions that a rank reads a second; None: reading takes no time.

    Raises:
        ConfigError: the machine's speed in float64 is not known.
    """
    ranks, captions = machine.ranks, trace.captions
    turns = -(-captions.blocks // ranks.world)
    # blocks at the end of a shard are smaller than the one that was traced
    share = turns / captions.blocks * captions.total / captions.block
    texts = captions.texts / captions.total
    often = {
        "begin": 1.0,
        "block": (1 - texts) * share,
        "texts": texts * share,
        "add": (1 - texts) * turns,
        "add_texts": texts * turns,
    }
    summing = [0.0, 0.0, 0.0]
    for phase, times in often.items():
        for at, seconds in enumerate(_computed(trace.operators.get(phase, {}), machine)):
            summing[at] += times * seconds
    messages = [("all_reduce", size, 1) for size in trace.sums]
    messages.append(("all_reduce", FP32, AGREEMENTS * turns * (2 if trace.drawn else 1)))
    # sent as rank 0's to all others: as many bytes as a gather leaves on each
    messages += [("all_gather", size, 1) for size in (trace.found, trace.drawn) if size]
    reading = (2 if trace.drawn else 1) * turns * captions.total / captions.blocks / rows_per_s if rows_per_s else 0.0
    parts = dict(zip(("compute", "memory_traffic", "overhead"), summing, strict=True))
    crowd = machine.crowd if ranks.nodes == 1 else 1.0  # a network does not wait for a core
    sending = sum(n * ranks.seconds(kind, size) for kind, size, n in messages) if ranks.world > 1 else 0.0
    parts["collectives"] = crowd * sending
    parts["data"] = reading
    saves = sum(parts.values()) > SAVE_S
    parts["solve"] = sum(n * machine.solving(kind, threads) for kind, n in trace.operators.get("solve", {}).items())
    sent: dict[str, int] = {}
    for kind, size, n in messages if ranks.world > 1 else ():
        sent[kind] = sent.get(kind, 0) + int(n * ranks.sent(kind, size))
    return FitTime(parts, sent, saves)


def _computed(kinds: dict[Kind, int], machine: Machine) -> tuple[float, float, float]:
    arithmetic = moving = 0.0
    for kind, count in kinds.items():
        one, other = machine.seconds(kind)
        arithmetic, moving = arithmetic + count * one, moving + count * other
    host = sum(kinds.values()) * machine.per_kernel
    overhead = max(0.0, host - arithmetic - moving) if machine.queued else host
    slower = machine.crowd * machine.factor
    return slower * arithmetic, slower * moving, slower * overhead


def fit_memory(trace: FitTrace, *, world: int, saves: bool, host: bool, process: int = 0) -> tuple[dict[str, int], int]:
    """Bytes of rank 0, which holds most.

    Args:
        trace: of the stage.
        world: number of ranks.
        saves: as in `FitTime`.
        host: whether the rank computes on the CPU alone, so that what is solved counts, too.
        process: bytes of a process before it holds a tensor.

    Returns:
        By part at the highest moment: frozen, trained, sums, workspace (rows of a block and what is made of them,
        copies of sums while they are added up, the solver's matrices), process; and bytes of the CPU's memory that
        solving takes beside.
    """
    phases = [phase for phase in ON_DEVICE if saves or phase != "sums"]
    on_device = max(trace.highest.get(phase, 0) for phase in phases)
    solving = trace.highest.get("solve", 0)
    if world > 1:  # what was found is sent as bytes, and unpacked; on a GPU those go over it
        solving = max(solving, sum(trace.sums) + 3 * trace.found)
        on_device = max(on_device, trace.found)
    highest = max(on_device, solving) if host else on_device
    sums = min(sum(trace.sums), highest)
    parts = {
        "frozen": trace.frozen_bytes,
        "trained": trace.trained_bytes,
        "sums": sums,
        "workspace": highest - sums,
        "process": process,
    }
    return parts, 0 if host else math.ceil(solving)

"""How long a step takes on a machine, by part.

Each operator takes the longer of its arithmetic and its traffic (the roofline model: Williams, Waterman and Patterson,
2009). Engines of several ranks copy, too, and have work of their own on the host (`copies.py`). On a device with a
queue of calls the host's work shows only where it takes longer than the device's. Collectives hide behind the
computations of their phase where an engine and the device let them. The loader's processes work ahead: their
time shows only as far as it is longer than all the rest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ccr_dist.plan.cost.copies import copies, host_work
from ccr_dist.plan.cost.machine import Machine
from ccr_dist.plan.cost.messages import Message, messages
from ccr_dist.plan.step.trace import Trace

PHASES = ("forward", "losses", "backward", "reduce", "update")
SHARDED = ("zero1", "zero2", "zero3", "fsdp2")  # whose ranks update a part of the weights each
PARTS = ("compute", "memory_traffic", "overhead", "collectives", "data")


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        parts: by `PARTS`; they add up to the step.
        phases: by `PHASES`, with the collectives of each.
        hidden: seconds of collectives and data that run beside other work.
        sent: bytes that a rank sends, by kind of collective.
    """

    parts: dict[str, float]
    phases: dict[str, float]
    hidden: dict[str, float]
    sent: dict[str, int]

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return sum(self.parts.values())


def step_time(
    trace: Trace, *, strategy: str, machine: Machine, workers: int = 0, rows_per_s: float | None = None
) -> StepTime:
    """Time a step.

    Args:
        trace: of the stage, for as many ranks as the machine has.
        strategy: one of `messages.STRATEGIES`.
        machine: what runs it.
        workers: loader processes of a rank; 0: the rank itself reads, and nothing of it is hidden.
        rows_per_s: that a loader process makes ready; None: reading takes no time.

    Raises:
        ConfigError: as `messages`.
    """
    world = machine.ranks.world
    work = {phase: _computed(trace, phase, strategy, machine) for phase in PHASES}
    shown, hidden = dict.fromkeys(PHASES, 0.0), 0.0
    sent: Counter[str] = Counter()
    for phase in PHASES:
        mine = [each for each in messages(trace, strategy, world) if each.phase == phase]
        beside, alone = _sent(mine, machine, hides=True), _sent(mine, machine, hides=False)
        # gradients are reduced in the last part of a batch that is cut
        room = sum(work[phase]) / (trace.micro_batches if phase == "backward" else 1) if machine.queued else 0.0
        shown[phase] = alone + max(0.0, beside - room)
        hidden += min(beside, room)
        for each in mine:
            sent[each.kind] += int(each.count * machine.ranks.sent(each.kind, each.size))
    compute, traffic, overhead = (sum(part) for part in zip(*work.values(), strict=True))
    before = compute + traffic + overhead + sum(shown.values())
    reading = trace.rows / (rows_per_s * max(1, workers)) if rows_per_s else 0.0
    waiting = max(0.0, reading - before) if workers else reading
    return StepTime(
        parts={
            "compute": compute,
            "memory_traffic": traffic,
            "overhead": overhead,
            "collectives": sum(shown.values()),
            "data": waiting,
        },
        phases={phase: sum(work[phase]) + shown[phase] for phase in PHASES},
        hidden={"collectives": hidden, "data": reading - waiting},
        sent=dict(sent),
    )


def _computed(trace: Trace, phase: str, strategy: str, machine: Machine) -> tuple[float, float, float]:
    """Seconds of arithmetic, of traffic and of overhead in a phase."""
    arithmetic = moving = 0.0
    calls = 0
    for kind, count in trace.operators.get(phase, {}).items():
        one, other = machine.seconds(kind)
        arithmetic, moving, calls = arithmetic + count * one, moving + count * other, calls + count
    share = 1 / machine.ranks.world if phase == "update" and strategy in SHARDED else 1.0
    arithmetic, moving = share * arithmetic, share * moving
    engine = machine.engine(strategy) if machine.ranks.world > 1 else None
    for each in copies(trace, strategy, machine.ranks.world):
        if each.phase == phase:
            moving += each.seconds(machine)
            calls += each.calls if engine is None else 0  # else measured with all that the engine does
    arithmetic, moving = machine.factor * arithmetic, machine.factor * moving
    host = calls * machine.per_kernel * machine.factor
    host += host_work(trace, strategy, phase, engine) if engine is not None else 0.0
    overhead = max(0.0, host - arithmetic - moving) if machine.queued else host
    return machine.crowd * arithmetic, machine.crowd * moving, machine.crowd * overhead


def _sent(found: list[Message], machine: Machine, *, hides: bool) -> float:
    turns = machine.crowd if machine.ranks.nodes == 1 else 1.0  # a network does not wait for a core
    return turns * sum(
        each.count * machine.ranks.seconds(each.kind, each.size) for each in found if each.hides == hides
    )

"""Bytes that a rank holds at the peak of a step, by part, from a trace and what each strategy keeps.

The peak is the highest of the step's moments: a forward with its activations, a backward with the gradients that it has
collected, the reduction, the update. Which of them it is depends on the strategy.
"""

from __future__ import annotations

import math

from ccr_dist.config import StageConfig
from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost.strategies import STRATEGIES, kept
from ccr_dist.plan.step.trace import Live, Trace

OPTIMIZERS = ("adamw", "bert_adam", "hf_adamw")
FAR = 0.1  # two opinions that differ by more are both shown
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
    world: int | None = None,
    precision: str | None = None,
    optimizer: StageConfig | str = "adamw",
    process: int = 0,
    fragmentation: float = 0.0,
    touched: bool = False,
) -> dict[str, int]:
    """Bytes of a rank by part, at the moment of the step at which their sum is highest.

    Args:
        trace: of the stage.
        strategy: one of `STRATEGIES`.
        world: number of ranks; None: the trace's.
        precision: None: the trace's.
        optimizer: the stage's settings, or the name of its optimiser: all of them keep two moments in fp32.
        process: bytes of a process before it holds a tensor (interpreter, libraries, a GPU's context).
        fragmentation: part of all tensors' bytes that the allocator loses.
        touched: memory is taken when it is written to, as on a CPU; a GPU takes a buffer whole.

    Returns:
        Bytes by each of `PARTS`, zeros included; the peak is their sum.

    Raises:
        ConfigError: unknown strategy or optimiser, `single` with several ranks, or a trace of another world or
            precision.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy '{strategy}': expected one of {', '.join(STRATEGIES)}")
    name = optimizer if isinstance(optimizer, str) else optimizer.optimizer
    if name not in OPTIMIZERS:
        raise ConfigError(f"optimizer '{name}': expected one of {', '.join(OPTIMIZERS)}")
    for what, asked, own in (("world", world, trace.world), ("precision", precision, trace.precision)):
        if asked not in (None, own):
            raise ConfigError(
                f"stage '{trace.stage}' was traced for {what} {own}, and {asked} is planned: trace it again"
            )
    if strategy == "single" and trace.world > 1:
        raise ConfigError(f"strategy 'single' is of one process, and {trace.world} are planned: use ddp")
    moments = (Live("start"), *trace.moments)
    found = max((_at(trace, strategy, moment, touched) for moment in moments), key=lambda parts: sum(parts.values()))
    return {**found, "fragmentation": math.ceil(fragmentation * sum(found.values())), "process": process}


def _at(trace: Trace, strategy: str, moment: Live, touched: bool) -> dict[str, int]:
    model = kept(trace, strategy, moment, touched=touched)
    return {
        "frozen": model.frozen,
        "trained": model.trained,
        "gradients": model.gradients,
        "optimizer": model.optimizer,
        "activations": moment.activations,
        "loss": moment.loss,
        "gathered": moment.gathered,
        "workspace": moment.workspace + model.workspace,
        "fragmentation": 0,
        "process": 0,
    }


def disagreement(trace: Trace) -> str | None:
    """A sentence for people where our peak and that of torch's MemTracker differ by more than a tenth.

    Both are of one process that holds everything, without what a strategy adds.

    Args:
        trace: made with `opinion`.

    Returns:
        None where they agree, or MemTracker was not asked.
    """
    theirs = trace.opinion
    if theirs is None:
        return None
    ours = max(sum(_at(trace, "single", moment, False).values()) for moment in trace.moments)
    if abs(ours - theirs) <= FAR * theirs:
        return None
    more = "less" if theirs < ours else "more"
    return (
        f"stage '{trace.stage}': torch's MemTracker sees a peak of {theirs / 1e9:.2f} GB on one process,"
        f" {abs(theirs / ours - 1):.0%} {more} than the {ours / 1e9:.2f} GB that are planned: measure a short run"
    )

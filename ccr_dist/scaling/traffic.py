"""The bytes that a rank sends in a step.

Features and their gradients, which losses exchange, are counted while a step runs (`losses/sent.py`). Gradients and
weights are computed from the strategy and from the bytes that ranks were seen to hold, for ring algorithms. The few
numbers that ranks agree on are left out, and the gradients of auxiliary networks (a discriminator).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

HOW = (
    "Bytes that a rank sends in a step. Features: counted where losses send them. Gradients and weights: computed from"
    " the strategy and what ranks hold, for ring algorithms and one backward a step; weights"
    " under zero3 and fsdp2 are an upper bound, since what no gradient passes is not gathered again. Not in it: the"
    " gathers of each further part with `micro_batch`, and the gradients of auxiliary networks."
)


def traffic(
    engine: str, held: Sequence[Mapping[str, int]], world: int, features: float, *, regathered: int = 0
) -> dict[str, float]:
    """What a rank sends in a step.

    Args:
        engine: Name of the engine of the stage (`Engine.name`).
        held: Bytes of "parameters" and "optimizer" on each rank (`Engine.held`).
        world: Number of ranks.
        features: Bytes that losses sent, mean over ranks.
        regathered: Bytes of weights that are gathered once more for the backward (`Engine.regathered`).

    Returns:
        Bytes of "features", "gradients" and "weights".

    Raises:
        ValueError: The engine is not known.
    """
    part = (world - 1) / world
    states = sum(rank["optimizer"] for rank in held)
    weights = sum(rank["parameters"] for rank in held)
    if engine in ("single", "ddp"):
        trained, whole = states / world / 2, weights / world  # Adam keeps two numbers a weight
    elif engine in ("zero1", "zero2"):
        trained, whole = states / 2, weights / world
    elif engine in ("zero3", "fsdp2"):
        trained, whole = states / 2, weights
    else:
        raise ValueError(f"traffic of the engine {engine!r} is not known")
    gradients, gathered = {
        "single": (0.0, 0.0),
        "ddp": (2 * trained, 0.0),  # all-reduce
        "zero1": (trained, trained),  # reduce-scatter, then all-gather of what was updated
        "zero2": (trained, trained),
        "zero3": (trained, whole + regathered),
        "fsdp2": (trained, whole + regathered),
    }[engine]
    return {"features": features, "gradients": gradients * part, "weights": gathered * part}

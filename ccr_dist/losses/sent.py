"""Counts the bytes that losses send from this process to others: features and their gradients. For the communication
volume in the training log.

What a collective sends is that of the ring algorithms, which libraries use for large tensors.
"""

from __future__ import annotations

from torch import Tensor

total = 0.0  # bytes


def gathered(part: Tensor, world: int) -> None:
    """An all-gather, to which each process gives `part`."""
    _add(part, world - 1)


def reduced(values: Tensor, world: int) -> None:
    """An all-reduce of `values`."""
    _add(values, 2 * (world - 1) / world)


def passed_on(values: Tensor) -> None:
    """`values` go to one other process."""
    _add(values, 1)


def _add(values: Tensor, times: float) -> None:
    global total
    total += values.numel() * values.element_size() * times

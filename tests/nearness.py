"""When two computed results are the same but for rounding: one rule for all tests, so that no test holds a CPU's
kernels to its last bits.

Bits are promised for the same work on the same machine with the same threads (a resumed run, another process): such
tests say `torch.equal`. Another shape of batch, another order of sums or another instruction set rounds otherwise. An
element is then off by a few units of rounding of the *largest* terms that went into its sum, not of itself: so it is
held against the largest value of its tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Thousands of units of rounding (1e-16, 6e-8, 5e-4, 4e-3), as gradients with cancelling terms need them after a few
# layers; half precision, whose networks here are one layer deep, gets a dozen. A slip in a formula is a matter of per
# cent.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# A value that is nothing in exact arithmetic (keys' biases have no gradient under softmax) is left over from those of
# its collection.
LEFT_OVER = 1e-3


def close(actual: Any, expected: Any, *, tolerance: float | None = None, msg: object = "") -> None:
    """Tensors, arrays or numbers, or collections of them, of the same structure, shapes and types, are equal but for
    rounding.

    `tolerance`: of the largest value of each tensor; None: by its type (a collection's numbers count as float64).
    """
    worst = _distance(actual, expected, tolerance, msg)
    assert worst is None, f"{msg} {worst}".strip()


def apart(actual: Any, expected: Any, *, least: float = 1e-2) -> bool:
    """Of two tensors of one shape: somewhere they differ by more than `least` of the largest value, far more than
    rounding does.
    """
    a, b = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).detach().double()
    assert a.shape == b.shape, (a.shape, b.shape)
    return bool((a - b).abs().max() > least * b.abs().max())


def _distance(actual: Any, expected: Any, tolerance: float | None, msg: object) -> str | None:
    pairs = list(_leaves(actual, expected, ""))
    most = max((_largest(b) for _, _, b in pairs), default=0.0)
    for where, a, b in pairs:
        assert a.shape == b.shape and a.dtype == b.dtype, (
            f"{msg} {where}: {tuple(a.shape)} {a.dtype}, not {tuple(b.shape)} {b.dtype}"
        )
        if torch.equal(a, b):
            continue
        allowed = TOLERANCE.get(b.dtype, 0.0) if tolerance is None else tolerance
        difference = (a.double() - b.double()).abs()
        scale = max(_largest(b), LEFT_OVER * most)
        if not bool((difference <= allowed * scale).all()):  # not a number is no small difference, either
            return (
                f"{where}: off by {float(difference.max()):.3g}, {float(difference.max()) / scale:.2g} of {scale:.3g};"
                f" allowed {allowed:g}"
            )
    return None


def _leaves(a: Any, b: Any, where: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    if isinstance(b, Mapping):
        assert isinstance(a, Mapping) and set(a) == set(b), f"{where}: {sorted(map(str, a))}, not {sorted(map(str, b))}"
        for key in b:
            yield from _leaves(a[key], b[key], f"{where}.{key}")
    elif isinstance(b, list | tuple) and not all(isinstance(value, int | float) for value in b):
        assert len(a) == len(b), f"{where}: {len(a)} values, not {len(b)}"
        for place, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _leaves(one, other, f"{where}[{place}]")
    elif b is None:
        assert a is None, f"{where}: {a}, not None"
    else:
        yield where, _tensor(a), _tensor(b)


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    return (
        torch.from_numpy(np.asarray(value))
        if isinstance(value, np.ndarray | np.generic)
        else torch.tensor(value, dtype=torch.float64)
    )


def _largest(value: Tensor) -> float:
    return float(value.double().abs().max()) if value.numel() else 0.0

"""The serial fraction: the part of the work that more processes do not make faster, fitted to measured rates.

Strong scaling follows Amdahl's law, in which the work stays the same: speedup(N) = 1 / (s + (1 - s) / N). Weak scaling
follows Gustafson's, in which the work grows with N: speedup(N) = s + (1 - s) N. In both, s is the fraction of the time
of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LEVEL = 95.0  # percent
GRID = 20001  # values of s that are tried, ends included


@dataclass(frozen=True)
class Fit:
    """A serial fraction.

    Attributes:
        law: "Amdahl" or "Gustafson".
        serial: The fraction.
        low: Lower end of its interval.
        high: Upper end.
        rate: Samples a second of one process.
        worlds: Numbers of processes that were fitted.
        deviation: The largest distance of a measured rate from the law, as a part of the law's.
    """

    law: Literal["Amdahl", "Gustafson"]
    serial: float
    low: float
    high: float
    rate: float
    worlds: tuple[int, ...]
    deviation: float

    def rate_at(self, world: float) -> float:
        """Samples a second of `world` processes."""
        return float(self.rate * np.exp(_speedup(self.law, np.array([self.serial]), np.array([world]))[0, 0]))


def fit(kind: Literal["strong", "weak"], worlds: Sequence[int], rates: Sequence[float]) -> Fit | None:
    """Fits by least squares of relative deviations (differences of logarithms).

    The interval has every fraction with which the squares are not significantly larger (an F test of one parameter),
    which supposes independent deviations; it is no wider than [0, 1].

    Args:
        kind: Of the scaling.
        worlds: Number of processes of each measurement.
        rates: Samples a second of each, above 0. Repeats are measurements of their own.

    Returns:
        None for fewer than three measurements or two numbers of processes.
    """
    free = len(rates) - 2
    if free < 1 or len(set(worlds)) < 2:
        return None
    law: Literal["Amdahl", "Gustafson"] = "Amdahl" if kind == "strong" else "Gustafson"
    fractions = np.linspace(0, 1, GRID)
    logs = np.log(np.asarray(rates, dtype=np.float64))
    speedups = _speedup(law, fractions, np.asarray(worlds, dtype=np.float64))
    offsets = (logs - speedups).mean(1)
    squares = ((logs - speedups - offsets[:, None]) ** 2).sum(1)
    best = int(squares.argmin())
    limit = squares[best] * (1 + student(free) ** 2 / free)  # F(1, free) is the square of Student's t
    inside = fractions[squares <= limit + 1e-12]
    deviation = float(np.abs(np.expm1(logs - speedups[best] - offsets[best])).max())
    return Fit(
        law, float(fractions[best]), float(inside.min()), float(inside.max()), float(np.exp(offsets[best])),
        tuple(sorted(set(worlds))), deviation,
    )  # fmt: skip


# Student's t, two-sided 95 %, by degrees of freedom from 1.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def student(free: int) -> float:
    """Student's t for the two-sided interval at LEVEL, with `free` degrees of freedom."""
    if free <= len(_STUDENT):
        return _STUDENT[free - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)


def _speedup(law: str, fractions: np.ndarray, worlds: np.ndarray) -> np.ndarray:
    """Logarithms, (fractions, worlds)."""
    serial, world = fractions[:, None], worlds[None, :]
    if law == "Amdahl":
        return np.asarray(-np.log(serial + (1 - serial) / world))
    return np.asarray(np.log(serial + (1 - serial) * world))

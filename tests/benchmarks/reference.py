"""Work that never changes: how long it takes says how fast the machine is just now, whatever else runs on it."""

from __future__ import annotations

import time

import torch

ROWS, PRODUCTS = 512, 6
ELEMENTS, ADDITIONS = 1 << 22, 8


class Reference:
    """Products of matrices, and additions in memory that caches do not hold, on this process' threads."""

    def __init__(self) -> None:
        self._matrix, self._vector = torch.ones(ROWS, ROWS), torch.ones(ELEMENTS)

    def __call__(self) -> float:
        """Seconds of processor time."""
        begun = time.process_time()
        for _ in range(PRODUCTS):
            self._matrix @ self._matrix
        for _ in range(ADDITIONS):
            self._vector.add_(1.0)
        return time.process_time() - begun

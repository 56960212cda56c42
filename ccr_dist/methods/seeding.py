"""Random state as arithmetic: it is computed from names and numbers, and never saved."""

from __future__ import annotations

import torch

from ccr_dist.data.stream.order import mix


def seed_all(*parts: int | str) -> None:
    """Set torch's generators (CPU and accelerator) to a pure function of `parts`.

    Args:
        parts: whatever the random numbers depend on, such as the seed of the run and the number of the step.
    """
    torch.manual_seed(mix(*parts) & (2**63 - 1))

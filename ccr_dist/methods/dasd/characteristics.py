"""What DASD (Cai et al., AAAI 2025) describes a caption by before it is encoded: a vector of what is said and one of
how it is said.

Both are read from a shallow trunk: the first block or two of the frozen text tower, without adapters. The losses that
pull them apart are the method's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_dist.models.hf_tower import masked_mean
from ccr_dist.models.towers import TextTower

Variant = Literal["code", "figure"]
TRUNK = {"code": 2, "figure": 1}


class Branch(nn.Module):
    """Residual two-layer map on each hidden state, h + W2 ReLU(W1 h)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.mlp(h)


class Characteristics(nn.Module):
    """Semantic vector f_sr (n, D) and semantics-free vector f_sa (n, width) of captions.

    f_sr is the sentence position times W_sr, f_sa the mean over positions, both after a LayerNorm without weights.

    Args:
        width: of the hidden states.
        dim: D.
        variant: "code": the trunk is two blocks and the branches have no networks, as in the released code (whose
            branch networks never run). "figure": the trunk is one block, and each branch has a small network of its
            own, as in the figure of the paper.
        positions: the mean of f_sa is over "tokens" only, or over "all" positions including padding, as released; f_sa
            then reveals the caption's length.
        use: which of the two vectors there are.
        start: of W_sr, "normal": N(0, 1/width), or "zeros".
    """

    def __init__(
        self,
        width: int,
        dim: int,
        *,
        variant: Variant,
        positions: Literal["tokens", "all"],
        use: tuple[str, ...] = ("sr", "sa"),
        start: Literal["normal", "zeros"] = "normal",
    ) -> None:
        super().__init__()
        self.trunk = TRUNK[variant]  # blocks
        self.positions = positions
        self.use = use
        self.widths = {"sr": dim, "sa": width}
        if "sr" in use:
            # W_sr
            self.to_semantic = nn.Parameter(torch.randn(width, dim) * (width**-0.5 if start == "normal" else 0.0))
        self.branches = nn.ModuleDict({name: Branch(width) for name in use} if variant == "figure" else {})

    def forward(self, tower: TextTower, h: Tensor, mask: Tensor, end: Tensor) -> dict[str, Tensor]:
        """h (n, T, width): the trunk's output, mask and end as in `TextTower`. {"sr": (n, D), "sa": (n, width)}, those
        of `use`.
        """
        found = {}
        for name in self.use:
            states = self.branches[name](h) if name in self.branches else h
            states = F.layer_norm(states, states.shape[-1:])
            if name == "sr":
                found["sr"] = tower.sentence(states, mask, end) @ self.to_semantic
            else:
                found["sa"] = masked_mean(states, mask if self.positions == "tokens" else torch.ones_like(mask))
        return found

"""LECCR's temporal encoder: self-attention over the frame features of a video, and their mean.

Source: Wang et al., "Multimodal LLM Enhanced Cross-lingual Cross-modal Retrieval" (LECCR), and its released code: one
block of the same form as the cross blocks (`slots.py`), no positions, at the width of the frame features (4,096 for
MSR-VTT-CN).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from ccr_dist.models.slots import CrossBlock


class TemporalEncoder(nn.Module):
    """Self-attention over frames."""

    def __init__(self, width: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.block = CrossBlock(width, heads, dropout)

    def forward(self, frames: Tensor, mask: Tensor | None = None, checkpoint: bool = False) -> Tensor:
        """(n, T, width), mask (n, T) bool, True = a frame, to the same shape; what comes out at padding is padding."""
        if checkpoint and torch.is_grad_enabled():
            return recompute(self.block, frames, frames, mask, use_reentrant=False)
        return self.block(frames, frames, mask)


def mean_over_time(frames: Tensor, mask: Tensor | None = None) -> Tensor:
    """(n, T, width), mask (n, T) bool, True = a frame, to the mean over the frames (n, width); zeros where there is
    none.
    """
    if mask is None:
        return frames.mean(1)
    there = mask.unsqueeze(-1).to(frames.dtype)
    return (frames * there).sum(1) / there.sum(1).clamp(min=1)

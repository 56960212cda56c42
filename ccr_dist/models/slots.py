"""LECCR's attention over two sequences: cross blocks, the slots that a description is compressed into, their
interaction with a picture.

Source: Wang et al., "Multimodal LLM Enhanced Cross-lingual Cross-modal Retrieval" (LECCR), and its released code.
Tokens and descriptions come from elsewhere (`Backbone.image_tokens`, `text_encoder.py`); losses and heads are the
method's. Any tensor may have no rows: the result is then empty and depends on the parameters.

Where this differs from the released code: its cross block holds a second LayerNorm that is never used. It is left out
here, so that a block of width 512 has 1,576,960 parameters instead of 1,577,984; the 277,604,353 that receive gradients
in the image model do not count it.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

Start = Literal["zero", "normal"]


class CrossBlock(nn.Module):
    """Queries read a memory: A = MHA(Q, M, M), U = W2 drop(GELU(W1 A)), LayerNorm(Q + drop(U)).

    Not a standard transformer block: the only residual is around attention and feed-forward together, the feed-forward
    is as narrow as the tokens, and there are no positions.
    """

    def __init__(self, width: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """queries (n, Q, width), memory (n, M, width), mask (n, M) bool, True = a token, to (n, Q, width).

        A row whose memory is all padding reads zeros from it.
        """
        if not len(queries):  # attention refuses it: one row of zeros that depends on the inputs, removed again
            query, token = (x.sum((0, 1)).expand(1, 1, -1) for x in (queries, memory))
            return self.forward(query, token)[:0].expand_as(queries)
        padding, filled = None, None
        if mask is not None:
            filled = mask.any(dim=1, keepdim=True)
            padding = ~(mask | ~filled)  # attention over nothing would be NaN
        attended, _ = self.attention(queries, memory, memory, key_padding_mask=padding, need_weights=False)
        if filled is not None:
            attended = attended * filled.unsqueeze(-1)
        update = self.outer(self.dropout(F.gelu(self.inner(attended))))
        return self.norm(queries + self.dropout(update))


class CrossStack(nn.Module):
    """Blocks in a row that all read the same memory. They start as copies of one, as published."""

    def __init__(self, width: int, blocks: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        first = CrossBlock(width, heads, dropout)
        self.blocks = nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(blocks - 1))])

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None = None, checkpoint: bool = False) -> Tensor:
        """Shapes as in `CrossBlock`. `checkpoint`: blocks are computed again for gradients."""
        for block in self.blocks:
            if checkpoint and torch.is_grad_enabled():
                queries = recompute(block, queries, memory, mask, use_reentrant=False)
            else:
                queries = block(queries, memory, mask)
        return queries


class Slots(nn.Module):
    """A text's states, compressed: learned queries read them, S0 = XStack(Q0, Linear(E)).

    `start` of the queries: "zero", as released (all slots of a text are then equal until dropout parts them, and a loss
    that is to keep them apart has no gradient at first), or "normal": N(0, 0.02²).
    """

    def __init__(
        self,
        text_width: int,
        width: int,
        slots: int,
        blocks: int,
        start: Start = "normal",
        *,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(text_width, width)
        self.queries = nn.Parameter(torch.zeros(slots, width))
        if start == "normal":
            nn.init.normal_(self.queries, std=0.02)
        self.stack = CrossStack(width, blocks, heads, dropout)

    def forward(self, states: Tensor, mask: Tensor | None = None, checkpoint: bool = False) -> Tensor:
        """E (n, L, text_width), mask (n, L) bool, True = a token, to S0 (n, slots, width)."""
        return self.stack(self.queries.expand(len(states), -1, -1), self.linear(states), mask, checkpoint)


class Interaction(nn.Module):
    """Picture and slots read each other, side by side: V1 = XStack(V0, S0), S1 = XStack'(S0, V0), both from what came
    in.
    """

    def __init__(self, width: int, blocks: int, *, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.visual = CrossStack(width, blocks, heads, dropout)
        self.slots = CrossStack(width, blocks, heads, dropout)

    def forward(
        self, visual: Tensor, slots: Tensor, visual_mask: Tensor | None = None, checkpoint: bool = False
    ) -> tuple[Tensor, Tensor]:
        """V0 (n, T, width), S0 (n, K, width), mask (n, T) of V0 where it has padding (frames), to V1 and S1 of the same
        shapes.
        """
        return self.visual(visual, slots, None, checkpoint), self.slots(slots, visual, visual_mask, checkpoint)

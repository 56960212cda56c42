"""LECCR's visual side: an item's tokens, enriched by the slots that its description is compressed into.

Wang et al., "Multimodal LLM Enhanced Cross-lingual Cross-modal Retrieval" (LECCR). Its parts are in `models/slots.py`
and `models/temporal.py`; tokens and the description's states come from elsewhere, and losses are the method's.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ccr_dist.errors import ConfigError
from ccr_dist.models.slots import CrossStack, Interaction, Slots, Start
from ccr_dist.models.temporal import TemporalEncoder, mean_over_time


class EnrichedVisual(nn.Module):
    """Tokens and description of an item to its features in the shared space.

    Args:
        inputs: F, width of the tokens.
        text_width: width of the description's states; None: items have no description, and only the global feature.
        dim: D, of the shared space.
        width: d; tokens are projected to it first (a deviation from the paper, for wide features). None: F.
        temporal_blocks: blocks of self-attention over frames; the global feature is then a mean over frames. 0: it is
            the first token's.
        slots: K, slots of a description.
        slot_blocks: blocks that compress a description into slots.
        blocks: blocks of the interaction; 0: slots and tokens do not see each other.
        heads: of all attention.
        dropout: of all blocks.
        start: how slot queries begin.
        local: there are local features.
        means: there are the projections that `means` compares.

    Raises:
        ConfigError: the width cannot be cut in heads.
    """

    def __init__(
        self,
        inputs: int,
        text_width: int | None,
        dim: int,
        *,
        width: int | None = None,
        temporal_blocks: int = 0,
        slots: int = 4,
        slot_blocks: int = 3,
        blocks: int = 2,
        heads: int = 8,
        dropout: float = 0.1,
        start: Start = "normal",
        local: bool = True,
        means: bool = True,
    ) -> None:
        super().__init__()
        d = width or inputs
        if d % heads:
            raise ConfigError(
                f"method.heads: {heads} heads do not divide tokens of width {d}; change them, or set method.width"
            )
        self.width, self.frames = d, temporal_blocks > 0
        self.project = nn.Linear(inputs, d) if width else None
        self.temporal = nn.ModuleList([TemporalEncoder(d, heads, dropout) for _ in range(temporal_blocks)])
        self.to_global = nn.Linear(d, dim)
        described = text_width is not None
        self.slots = (
            Slots(text_width, d, slots, slot_blocks, start, heads=heads, dropout=dropout)
            if text_width is not None
            else None
        )
        self.interaction: Interaction | CrossStack | None = None
        if described and blocks:  # slots that nobody looks at need not look at the tokens
            self.interaction = (
                Interaction(d, blocks, heads=heads, dropout=dropout) if local else CrossStack(d, blocks, heads, dropout)
            )
        self.to_local = nn.Linear(d, dim) if described and local else None
        self.slot_mean, self.token_mean = (nn.Linear(d, d) if described and means else None for _ in range(2))

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        states: Tensor | None,
        states_mask: Tensor | None,
        checkpoint: bool = False,
    ) -> dict[str, Tensor]:
        """tokens (n, T, F), mask (n, T) bool, True = there; states (n, L, text_width) of the descriptions, states_mask
        (n, L).

        Returns "global" (n, D), unit length; "tokens" (n, T, d), before the interaction; with descriptions "slots" (n,
        K, d), likewise, and "local" (n, K, D), not normalised. `checkpoint`: blocks are computed again for gradients.
        """
        if self.project is not None:
            tokens = self.project(tokens)
        for block in self.temporal:
            tokens = block(tokens, mask, checkpoint)
        enriched, found = tokens, {"tokens": tokens}
        if self.slots is not None:
            assert states is not None, "descriptions are compressed into slots"
            semantics = found["slots"] = self.slots(states, states_mask, checkpoint)
            if isinstance(self.interaction, Interaction):
                enriched, semantics = self.interaction(tokens, found["slots"], mask, checkpoint)
            elif self.interaction is not None:
                enriched = self.interaction(tokens, found["slots"], None, checkpoint)
            if self.to_local is not None:
                found["local"] = _precise(self.to_local(semantics))
        pooled = mean_over_time(enriched, mask) if self.frames else enriched[:, 0]
        found["global"] = F.normalize(_precise(self.to_global(pooled)), dim=-1)
        return found

    def means(
        self, tokens: Tensor, mask: Tensor | None, slots: Tensor, axis: Literal["features", "tokens"]
    ) -> tuple[Tensor, Tensor]:
        """Mean over the normalised W_c slots, and over the normalised W_p tokens that are there: (n, d) each.

        Their dot product is the mean over all pairs of slot and token. axis: what is brought to unit length: each
        vector ("features"), or each feature over an item's slots or tokens ("tokens", as released).
        """
        assert self.slot_mean is not None and self.token_mean is not None
        results = []
        for vectors, there in ((self.slot_mean(slots), None), (self.token_mean(tokens), mask)):
            vectors = _precise(vectors)
            if there is not None:
                vectors = vectors * there.unsqueeze(-1)
            results.append(mean_over_time(F.normalize(vectors, dim=-1 if axis == "features" else 1), there))
        return results[0], results[1]


def _precise(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x

"""Adapter slots in Hugging Face encoders of the BERT family (`TextTower`), whether from `dual.py` or from open_clip's
HFTextEncoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.models.huggingface import start_and_end
from ccr_dist.models.towers import TextTower, unsupported

FAMILY = ("bert", "roberta", "xlm-roberta", "camembert")


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """Mean of h (n, T, w) over the tokens of mask (n, T): (n, w). At least in float32: a mean of many half-precision
    terms loses digits.
    """
    h = h.to(torch.promote_types(h.dtype, torch.float32))
    weight = mask.unsqueeze(-1).to(h.dtype)
    return (h * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


def attended(config: Any, h: Tensor, mask: Tensor) -> Any:
    """What a block of the family takes as its attention mask; h (n, T, w), mask (n, T) or (n, T, T) bool."""
    if config._attn_implementation == "sdpa":
        # transformers' check for padding waits for the device
        return mask.unsqueeze(1) if mask.ndim == 3 else mask[:, None, None, :]
    if mask.ndim == 3:
        return torch.zeros_like(mask, dtype=h.dtype).masked_fill(~mask, torch.finfo(h.dtype).min).unsqueeze(1)
    from transformers.masking_utils import create_bidirectional_mask

    return create_bidirectional_mask(config=config, inputs_embeds=h, attention_mask=mask.long())


class HuggingFaceTower(TextTower):
    """A BERT-like encoder: padding mask, embeddings with token type and LayerNorm, pooled and projected by the two
    functions given.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        encode: Callable[[list[str]], tuple[Tensor, Tensor]],
        *,
        pool: Callable[[Tensor, Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        dim: int,
        context_length: int,
        name: str,
    ) -> None:
        """`tokenizer`: transformers' (for its vocabulary and special tokens); `encode(texts)` -> ids and mask (n, T),
        padded on the right; `pool(h, mask)` -> (n, Ft); `project` -> (n, D). ConfigError naming `name` when the
        architecture is not of the family.
        """
        if model.config.model_type not in FAMILY or getattr(model.config, "is_decoder", False):
            raise unsupported(name, f"its text encoder is of type '{model.config.model_type}'")
        self.model, self.tokenizer, self.encode, self.pool, self.project = model, tokenizer, encode, pool, project
        self.width = model.config.hidden_size
        self.layers = model.config.num_hidden_layers
        self.dim = dim
        self.context_length = context_length
        self.packs = model.config._attn_implementation in ("sdpa", "eager")

    @property
    def special(self) -> dict[str, Tensor | None]:
        rows = self.token_table()
        start, end = start_and_end(self.tokenizer)
        return {"start": None if start is None else rows[start], "end": None if end is None else rows[end]}

    def start(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.model.embeddings(inputs_embeds=x)  # consecutive positions: padding is on the right, and masked

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.model.encoder.layer

    def seen(self, h: Tensor, mask: Tensor) -> Any:
        return attended(self.model.config, h, mask) if len(h) else None

    def through(self, block: nn.Module, h: Tensor, seen: Any) -> Tensor:
        return block(h, seen) if len(h) else h  # a rank without samples: the encoder's reshapes refuse to guess

    def sentence(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        return h[:, 0]

    def finish(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        return self.project(self.pool(h, mask))

    def embed_native(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = self.encode(list(texts))
        return self.model.embeddings.word_embeddings(ids), mask.bool(), mask.long().sum(1) - 1

    def vocabulary(self) -> dict[str, int]:
        return dict(self.tokenizer.get_vocab())

    def token_table(self) -> Tensor:
        return self.model.embeddings.word_embeddings.weight

"""Adapter slots in text encoders of transformers (`TextTower`), whether a backbone's own or inside open_clip's
HFTextEncoder. How each family is opened is in `opened.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.models.opened import opened
from ccr_dist.models.towers import TextTower, unsupported


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """Mean of h (n, T, w) over the tokens of mask (n, T): (n, w). At least in float32: a mean of many half-precision
    terms loses digits.
    """
    h = h.to(torch.promote_types(h.dtype, torch.float32))
    weight = mask.unsqueeze(-1).to(h.dtype)
    return (h * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


class HuggingFaceTower(TextTower):
    """An encoder that masks padding, pooled and projected by the two functions given."""

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
        padded on the right; `pool(h, mask)` -> (n, Ft); `project` -> (n, D). ConfigError naming `name` when its
        type cannot be opened.
        """
        parts = opened(model)
        if parts is None:
            raise unsupported(name, f"its text encoder is of type '{model.config.model_type}'")
        self.parts, self.tokenizer, self.encode, self.pool, self.project = parts, tokenizer, encode, pool, project
        self.width = parts.words.weight.shape[1]
        self.layers = len(parts.blocks)
        self.dim = dim
        self.context_length = context_length
        self.packs = model.config._attn_implementation in ("sdpa", "eager")

    @property
    def special(self) -> dict[str, Tensor | None]:
        rows = self.token_table()
        return {key: None if row is None else rows[row] for key, row in self._around.items()}

    @cached_property
    def _around(self) -> dict[str, int | None]:
        """Ids of what the tokeniser puts before and behind a text ([CLS], a language, ...); None: nothing."""
        ids, special = self.tokenizer("a")["input_ids"], set(self.tokenizer.all_special_ids)
        return {key: row if row in special else None for key, row in (("start", ids[0]), ("end", ids[-1]))}

    def start(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.parts.start(x)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.parts.blocks

    def seen(self, h: Tensor, mask: Tensor) -> Any:
        return self.parts.seen(h, mask) if h.shape[0] else None

    def through(self, block: nn.Module, h: Tensor, seen: Any) -> Tensor:
        # a rank without samples: the encoder's reshapes refuse to guess
        return self.parts.through(block, h, seen) if h.shape[0] else h

    def sentence(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        return h[:, 0] if self.parts.first else masked_mean(h, mask).to(h.dtype)

    def finish(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        return self.project(self.pool(self.parts.finish(h), mask))

    def embed_native(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = self.encode(list(texts))
        return nn.functional.embedding(ids, self.token_table()), mask.bool(), mask.long().sum(1) - 1

    def vocabulary(self) -> dict[str, int]:
        return dict(self.tokenizer.get_vocab())

    def token_table(self) -> Tensor:
        return self.parts.words.weight

"""The text transformers of transformers' CLIP, MetaCLIP 2 and SigLIP, opened block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.models.backbones.transformers.families import end_of
from ccr_dist.models.opened import attended
from ccr_dist.models.towers import TextTower, at


class ClipTower(TextTower):
    """Causal, and so without a mask of padding; pooled at the end token."""

    def __init__(
        self,
        text: Any,
        tokenizer: Any,
        encode: Callable[[list[str]], tuple[Tensor, Tensor]],
        *,
        project: Callable[[Tensor], Tensor],
        dim: int,
        context_length: int,
    ) -> None:
        """`text`: transformers' text model; `encode(texts)` -> ids and mask (n, T), padded on the right; `project`
        -> (n, D).
        """
        self.text, self.tokenizer, self.encode, self.project = text, tokenizer, encode, project
        self.width = text.config.hidden_size
        self.layers = len(text.encoder.layers)
        self.dim = dim
        self.context_length = context_length
        self.sdpa = text.config._attn_implementation == "sdpa"
        self.packs = text.config._attn_implementation in ("sdpa", "eager")

    def start(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.text.embeddings(inputs_embeds=x)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.text.encoder.layers

    def seen(self, h: Tensor, mask: Tensor) -> Any:
        if mask.ndim == 2 and self.sdpa:
            return None  # `through` says that it is causal
        causal = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).tril()
        return attended(self.text.config, h, causal & mask if mask.ndim == 3 else causal.expand(len(h), -1, -1))

    def through(self, block: nn.Module, h: Tensor, seen: Any) -> Tensor:
        # a rank without samples: attention's reshapes refuse to guess
        return block(h, seen, is_causal=True) if h.shape[0] else h

    def sentence(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        return at(h, end)

    def finish(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        # the norm is per position: pooling first computes the same for less
        return self.project(self.text.final_layer_norm(self.sentence(h, mask, end)))

    def embed_native(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        ids, _ = self.encode(list(texts))
        end = end_of(self.text.config, ids)
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.text.embeddings.token_embedding(ids), positions <= end[:, None], end

    def vocabulary(self) -> dict[str, int]:
        return dict(self.tokenizer.get_vocab())

    def token_table(self) -> Tensor:
        return self.text.embeddings.token_embedding.weight


class SiglipTower(ClipTower):
    """Every position sees every other one, padding included; pooled at the last position."""

    fixed_length = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.packs = False

    def seen(self, h: Tensor, mask: Tensor) -> Any:
        return None

    def through(self, block: nn.Module, h: Tensor, seen: Any) -> Tensor:
        return block(h, None) if h.shape[0] else h

    def sentence(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        return h[:, -1]

    def embed_native(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        ids, _ = self.encode(list(texts))
        end = torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
        return self.text.embeddings.token_embedding(ids), torch.ones_like(ids, dtype=torch.bool), end

"""Text encoders of transformers, opened: their token table, what is before the blocks, the blocks, what is behind them.

One class a family. `start`, all blocks and `finish` in a row compute what the encoder itself computes; `hf_tower.py`
makes a `TextTower` of it. Positions are counted from the first token of a row: padding is on the right, and masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

FAMILY = ("bert", "roberta", "xlm-roberta", "camembert")  # of one build: `embeddings` and `encoder.layer`


def attended(config: Any, h: Tensor, mask: Tensor) -> Any:
    """What a block takes as its attention mask; h (n, T, w), mask (n, T) or (n, T, T) bool."""
    if config._attn_implementation == "sdpa":
        # transformers' check for padding waits for the device
        return mask.unsqueeze(1) if mask.ndim == 3 else mask[:, None, None, :]
    if mask.ndim == 3:
        return torch.zeros_like(mask, dtype=h.dtype).masked_fill(~mask, torch.finfo(h.dtype).min).unsqueeze(1)
    from transformers.masking_utils import create_bidirectional_mask

    return create_bidirectional_mask(config=config, inputs_embeds=h, attention_mask=mask.long())


class Opened:
    """An encoder of BERT's build; the base of the others. n texts, T positions, R rows of L positions (`packing.py`).

    Attributes:
        first: the first token's state stands for the whole text; False: the mean over its tokens does.
    """

    first: ClassVar[bool] = True

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config

    @property
    def words(self) -> nn.Embedding:
        """Its rows (V, width) are what `start` takes."""
        return self.model.embeddings.word_embeddings

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.model.encoder.layer

    def start(self, x: Tensor) -> Tensor:
        """Rows of `words` (n, T, width) to the first block's input."""
        return self.model.embeddings(inputs_embeds=x)

    def seen(self, h: Tensor, mask: Tensor) -> Any:
        """What `through` takes beside h; mask (R, L) or (R, L, L) bool."""
        return attended(self.config, h, mask)

    def through(self, block: nn.Module, h: Tensor, seen: Any) -> Tensor:
        """h (R, L, width) through a block, to the same shape."""
        return block(h, seen)

    def finish(self, h: Tensor) -> Tensor:
        """The last block's output to the encoder's last hidden state."""
        return h


class AltRoberta(Opened):
    """Inside of AltCLIP."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.model.encoder.layers


class DistilBert(Opened):
    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.model.transformer.layer

    def start(self, x: Tensor) -> Tensor:
        return self.model.embeddings(None, inputs_embeds=x)


class MPNet(Opened):
    """All blocks add the same bias, a function of the distance."""

    def seen(self, h: Tensor, mask: Tensor) -> Any:
        return attended(self.config, h, mask), self.model.encoder.compute_position_bias(h)

    def through(self, block: nn.Module, h: Tensor, seen: Any) -> Tensor:
        return block(h, *seen)[0]


class ModernBert(Opened):
    """Rotary positions; most blocks see a window only."""

    @property
    def words(self) -> nn.Embedding:
        return self.model.embeddings.tok_embeddings

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.model.layers

    def seen(self, h: Tensor, mask: Tensor) -> Any:
        place = torch.arange(h.shape[1], device=h.device)
        near = (place[:, None] - place[None, :]).abs() <= self.config.sliding_window
        whole = attended(self.config, h, mask)
        window = attended(self.config, h, (mask if mask.ndim == 3 else mask[:, None, :]) & near)
        masks = {"full_attention": whole, "sliding_attention": window}
        kinds = set(self.config.layer_types)
        return {kind: (masks[kind], self.model.rotary_emb(h, place[None], kind)) for kind in kinds}

    def through(self, block: nn.Module, h: Tensor, seen: Any) -> Tensor:
        mask, positions = seen[block.attention_type]
        return block(h, attention_mask=mask, position_embeddings=positions)

    def finish(self, h: Tensor) -> Tensor:
        return self.model.final_norm(h)


class T5(Opened):
    """T5 and mT5, the encoder alone. The first block makes a bias, a function of the distance, which all add."""

    first = False

    def __init__(self, model: Any) -> None:
        super().__init__(getattr(model, "encoder", model))

    @property
    def words(self) -> nn.Embedding:
        return self.model.embed_tokens

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.model.block

    def start(self, x: Tensor) -> Tensor:
        return x

    def seen(self, h: Tensor, mask: Tensor) -> Any:
        return {"mask": attended(self.config, h, mask), "bias": None}

    def through(self, block: nn.Module, h: Tensor, seen: Any) -> Tensor:
        attention: Any = block.get_submodule("layer.0.SelfAttention")
        # by the block itself: under FSDP2 its tensors are whole only inside
        bias = None if attention.has_relative_attention_bias else seen["bias"]
        h, seen["bias"], _ = block(h, seen["mask"], bias)
        return h

    def finish(self, h: Tensor) -> Tensor:
        return self.model.final_layer_norm(h)


class M2M100(Opened):
    """The encoder of M2M100 and NLLB; its first token is the language."""

    first = False

    @property
    def words(self) -> nn.Embedding:
        return self.model.embed_tokens

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.model.layers

    def start(self, x: Tensor) -> Tensor:
        x = x * self.model.embed_tokens.embed_scale
        return x + self.model.embed_positions(inputs_embeds=x)

    def finish(self, h: Tensor) -> Tensor:
        return self.model.layer_norm(h)


FAMILIES: dict[str, Callable[[Any], Opened]] = {
    **dict.fromkeys((*FAMILY, "chinese_clip_text_model"), Opened),
    "altclip_text_model": AltRoberta,
    "distilbert": DistilBert,
    "mpnet": MPNet,
    "modernbert": ModernBert,
    "t5": T5,
    "mt5": T5,
    "m2m_100": M2M100,
}


def opened(model: Any) -> Opened | None:
    """The encoder with its parts at hand; None: it is of no family that can be opened."""
    family = FAMILIES.get(model.config.model_type)
    return None if family is None or getattr(model.config, "is_decoder", False) else family(model)

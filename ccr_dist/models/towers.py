"""A frozen text transformer opened up, block by block, so that an adapter can sit after every block.

`TextTower` is the contract; `OpenClipTower` fulfils it for open_clip's own text transformers, `hf_tower.py` for Hugging
Face encoders. A tower owns no weights: it drives modules that belong to a `Backbone`, so it is no `nn.Module` and
appears in no state dict. What goes into a tower (tokens of other languages) is in `frontend.py`; what sits between the
blocks is in `adapters.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from ccr_dist.errors import ConfigError
from ccr_dist.models import token_counts
from ccr_dist.models.attention import SelfAttention
from ccr_dist.models.huggingface import bounded
from ccr_dist.models.packing import Rows

SUPPORTED = (
    "open_clip's CLIP and CustomTextCLIP with its own text transformer (pooled at the argmax, eos, first or last"
    " position) and Hugging Face BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, MPNet, ModernBERT, T5, mT5 and"
    " M2M100 (NLLB) encoders"
)


def unsupported(what: str, reason: str) -> ConfigError:
    """The error for a text side without adapter slots; encoding with the backbone itself is not affected."""
    return ConfigError(
        f"{what}: methods that adapt the text tower cannot be used with it ({reason}). Supported are {SUPPORTED}. "
        "Zero-shot and translate-test evaluation work with any backbone."
    )


class TextTower(ABC):
    """The text transformer with a slot after each block. n texts, T positions.

    `start`, every `block` and `finish` in a row, on what `embed_native` returns, compute what the wrapped library
    computes.
    """

    width: int  # of the hidden states
    layers: int
    context_length: int  # most positions
    dim: int  # D, width of the shared space
    # padding positions take part in the result, so every batch must be padded to `context_length`
    fixed_length: bool = False
    packs: bool = True  # texts may share rows (`packing.py`)

    @property
    def special(self) -> dict[str, Tensor | None]:
        """{"start", "end"}: (width,) vectors in place of a front end's start and end tokens; None: the front end keeps
        its own.
        """
        return {"start": None, "end": None}

    @abstractmethod
    def start(self, x: Tensor, mask: Tensor) -> Tensor:
        """Token vectors (n, T, width) and mask (n, T) bool, True = a token, to the first block's input (n, T,
        width).
        """

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The frozen blocks, first to last."""

    @abstractmethod
    def seen(self, h: Tensor, mask: Tensor) -> Any:
        """What this tower's blocks take as their attention mask on h (R, L, width); `mask` (R, L) or (R, L, L) as in
        `Rows`.
        """

    @abstractmethod
    def through(self, block: nn.Module, h: Tensor, seen: Any) -> Tensor:
        """h (R, L, width) through one of the blocks, or a variant of one, to the same shape."""

    def block(self, layer: int, h: Tensor, seen: Any) -> Tensor:
        """One frozen block, (R, L, width) to (R, L, width)."""
        return self.through(self.blocks[layer], h, seen)

    @abstractmethod
    def finish(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        """The last block's output to the shared space, (n, D), not normalised. `end` (n,): position of each text's end
        token.
        """

    @abstractmethod
    def sentence(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        """(n, width): the hidden state that stands for the whole text."""

    @abstractmethod
    def embed_native(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """(x, mask, end) of the tower's own tokeniser and token embedding."""

    @abstractmethod
    def vocabulary(self) -> dict[str, int]:
        """The tower's own pieces, as its tokeniser writes them, to rows of `token_table()`."""

    @abstractmethod
    def token_table(self) -> Tensor:
        """The tower's own token embedding (V, width)."""

    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        """start and all blocks: (n, T, width)."""
        h = self.start(x, mask)
        seen = self.seen(h, mask)
        for layer in range(self.layers):
            h = self.block(layer, h, seen)
        return h

    def run(
        self,
        x: Tensor,
        mask: Tensor,
        end: Tensor,
        after: Callable[[int, Tensor], Tensor] | None = None,
        checkpoint: bool = False,
        blocks: Sequence[nn.Module] | None = None,
        rows: Rows | None = None,
    ) -> Tensor:
        """start, all blocks with `after(layer, h)` behind each, finish: (n, D). `checkpoint`: blocks are computed again
        for gradients; `blocks`: variants in place of the tower's own; `rows`: how the texts lie in the rows that blocks
        see, by default one a row.
        """
        rows = rows or Rows(mask)
        h = rows.lay(self.start(x, mask))
        seen = self.seen(h, rows.mask)

        def step(layer: int, h: Tensor) -> Tensor:
            h = self.through((blocks or self.blocks)[layer], h, seen)
            return h if after is None else after(layer, h)

        for layer in range(self.layers):
            h = (
                recompute(step, layer, h, use_reentrant=False)
                if checkpoint and torch.is_grad_enabled()
                else step(layer, h)
            )
        return self.finish(rows.texts(h), mask, end)


def at(h: Tensor, position: Tensor) -> Tensor:
    """h (n, T, w) at one position a row (n,): (n, w)."""
    return h[torch.arange(h.shape[0], device=h.device), position]


class OpenClipTower(TextTower):
    """open_clip's text transformer: of a native `CLIP` (which unpacks it into itself) or a `TextTransformer`.

    Causal as a rule and then without padding mask; SigLIP-like towers are bidirectional and attend to padding, so their
    length is fixed.
    """

    def __init__(self, text: Any, tokenizer: Any, *, name: str) -> None:
        """`text`: what has `token_embedding`, `transformer`, …; `tokenizer`: open_clip's. ConfigError naming `name` if
        unsupported.
        """
        from open_clip.transformer import Transformer

        if type(getattr(text, "transformer", None)) is not Transformer:
            raise unsupported(name, f"its text model {type(text).__name__} is not open_clip's text transformer")
        self.text = text
        self.tokenizer = tokenizer
        self.pad = int(tokenizer([""])[0, -1])
        self.pool = getattr(text, "text_pool_type", None) or text.pool_type
        self.end_id = getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None)
        if self.pool not in ("argmax", "eos", "first", "last"):
            raise unsupported(name, f"its text pooling is '{self.pool}'")
        if getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
            raise unsupported(name, "its text transformer appends a class token or masks padding")
        if not self.text.transformer.batch_first:
            raise unsupported(name, "its text transformer is not batch first")
        self.width = self.text.transformer.width
        self.layers = len(self.text.transformer.resblocks)
        self.context_length = self.text.positional_embedding.shape[0]
        projection = self.text.text_projection
        if projection is None:
            self.dim = self.width
        else:
            self.dim = projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]
        self.fixed_length = self.text.attn_mask is None or self.pool == "last"
        self.packs = all(isinstance(block.attn, SelfAttention) for block in self.blocks)

    def start(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.text.positional_embedding[: x.shape[1]].to(x.dtype)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.text.transformer.resblocks

    def seen(self, h: Tensor, mask: Tensor) -> Tensor | None:
        causal = self.text.attn_mask
        if causal is None:
            return None
        causal = causal[: h.shape[1], : h.shape[1]]
        return causal if mask.ndim == 2 else torch.where(mask, causal, -torch.inf).unsqueeze(1)

    def through(self, block: nn.Module, h: Tensor, seen: Any) -> Tensor:
        return block(h, attn_mask=seen)

    def sentence(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        if self.pool == "first":
            return h[:, 0]
        return h[:, -1] if self.pool == "last" else at(h, end)

    def finish(self, h: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        # the norm is per position: pooling first computes the same for less
        pooled = self.text.ln_final(self.sentence(h, mask, end))
        projection = self.text.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection

    def embed_native(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        ids = self.tokenizer(bounded(texts, self.context_length)[0])
        token_counts.add(int((ids != self.pad).sum()))
        ids = ids.to(self.text.token_embedding.weight.device)
        positions = torch.arange(ids.shape[1], device=ids.device)
        if self.pool == "argmax":
            end = ids.argmax(-1)
        elif self.pool == "eos":
            end = (ids == self.end_id).int().argmax(-1)
        else:
            end = torch.full((ids.shape[0],), ids.shape[1] - 1, device=ids.device)
        return self.text.token_embedding(ids), positions <= end[:, None], end

    def vocabulary(self) -> dict[str, int]:
        if hasattr(self.tokenizer, "encoder"):
            return dict(self.tokenizer.encoder)
        return dict(self.tokenizer.tokenizer.get_vocab())

    def token_table(self) -> Tensor:
        return self.text.token_embedding.weight

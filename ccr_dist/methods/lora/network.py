"""LoRA (Hu et al., ICLR 2022) on the attention of a frozen text tower, one set of low-rank matrices a language; the
layers are peft's.

A projection W of a block becomes W + (alpha / r) B A, A (r, in) random and B (out, r) zero at the start. The tower's
own blocks stay as they are, for English: each language has variants of them, which share every frozen tensor. What sits
behind the blocks is in `adapters.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ccr_dist.errors import ConfigError
from ccr_dist.models.towers import TextTower

Targets = Literal["qkvo", "qv"]
OPEN_CLIP = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "o": "attn.o"}
# of transformers: BERT's build; CLIP, SigLIP, M2M100; DistilBERT; MPNet; T5
TRANSFORMERS = [
    {
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "o": "attention.output.dense",
    },
    {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj"},
    {"q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin", "o": "attention.out_lin"},
    {part: f"attention.attn.{part}" for part in "qkvo"},
    {part: f"layer.0.SelfAttention.{part}" for part in "qkvo"},
]


class BorrowedLinear(nn.Linear):
    """A frozen linear map whose tensors are read from elsewhere in every call: it owns, saves and moves none."""

    def __init__(self, read: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """`read` -> weight (out, in) and bias (out,)."""
        nn.Module.__init__(self)
        self.read = read
        self.out_features, self.in_features = read()[0].shape

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.read()[0]

    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        return self.read()[1]


class SplitAttention(nn.Module):
    """open_clip's self-attention with its fused input projection taken apart: peft's LoRA of `nn.MultiheadAttention`
    would give query, key and value one A in common.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = fused.num_heads

        def part(number: int) -> BorrowedLinear:
            rows = slice(number * fused.embed_dim, (number + 1) * fused.embed_dim)

            def read() -> tuple[Tensor, Tensor]:
                assert fused.in_proj_weight is not None and fused.in_proj_bias is not None
                return fused.in_proj_weight[rows], fused.in_proj_bias[rows]

            return BorrowedLinear(read)

        self.q, self.k, self.v, self.o = part(0), part(1), part(2), fused.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """As `nn.MultiheadAttention` with `batch_first`: (n, T, width) to (n, T, width); `attn_mask` is added to the
        logits.
        """
        parts = (self.q(query), self.k(key), self.v(value))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if attn_mask is None else attn_mask.to(q.dtype))
        return self.o(mixed.transpose(1, 2).flatten(-2)), None


class LoraBank(nn.Module):
    """Low-rank matrices for every block of a tower and language; `variants(lang)` are the blocks with them.

    Its parameters are the matrices alone, `languages.lang-<code>.<layer>.<q|k|v|o>.<lora_A|lora_B>.weight`.
    """

    def __init__(
        self,
        tower: TextTower,
        languages: Iterable[str],
        *,
        rank: int,
        alpha: int,
        dropout: float,
        targets: Targets,
        name: str,
    ) -> None:
        """
        Args:
            dropout: of the input of A, in training.
            targets: query, key, value and output projection, or query and value.

        Raises:
            ConfigError: `name`'s text tower has an attention that is neither open_clip's usual one nor a known one of
                transformers.
        """
        super().__init__()
        # In a plain dict, so that the frozen tensors count as the backbone's and not as ours.
        self._variants: dict[str, list[nn.Module]] = {}
        # The prefix keeps languages apart from attributes of modules: "to" is Tongan.
        self.languages = nn.ModuleDict()
        for lang in languages:
            pairs = [
                variant(block, targets, name, r=rank, lora_alpha=alpha, lora_dropout=dropout) for block in tower.blocks
            ]
            self._variants[lang] = [block for block, _ in pairs]
            self.languages[f"lang-{lang}"] = nn.ModuleList(matrices for _, matrices in pairs)

    def variants(self, lang: str) -> Sequence[nn.Module]:
        return self._variants[lang]


def variant(block: nn.Module, targets: str, name: str, **lora: Any) -> tuple[nn.Module, nn.ModuleDict]:
    """A copy of the block with LoRA, in eval mode, that shares the block's tensors; and its low-rank matrices with
    their dropout.
    """
    from peft import LoraConfig, inject_adapter_in_model

    copied = copy.deepcopy(block, {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())}).eval()
    attention = getattr(block, "attn", None)
    if isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None:
        places, copied.attn = OPEN_CLIP, SplitAttention(attention)
    else:
        names = dict(block.named_modules())
        places = next((known for known in TRANSFORMERS if names.keys() >= set(known.values())), {})
    if not places:
        raise ConfigError(
            f"{name}: LoRA knows the attention of open_clip's default blocks and of encoders of transformers with a"
            f" projection each for query, key, value and output, and this tower's blocks are {type(block).__name__}."
            " Use method static or dasd, whose adapters sit behind the blocks."
        )
    trained = [parameter.requires_grad for parameter in block.parameters()]
    inject_adapter_in_model(LoraConfig(target_modules=[places[target] for target in targets], **lora), copied)
    for parameter, was in zip(block.parameters(), trained, strict=True):
        parameter.requires_grad_(was)  # peft freezes what it is given, and the tensors are shared
    matrices = nn.ModuleDict()
    for target in targets:
        layer = copied.get_submodule(places[target])
        matrices[target] = nn.ModuleDict(
            {part: getattr(layer, part)["default"] for part in ("lora_A", "lora_B", "lora_dropout")}
        )
    return copied, matrices

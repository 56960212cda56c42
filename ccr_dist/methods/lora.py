"""LoRA (Hu et al., ICLR 2022) on the attention of the frozen text tower, per language: a baseline for adapters behind
the blocks.

Front end, stages and losses are those of MLA and DASD (`crosslingual.py`). Rank 8 on query, key, value and output
projection has 393,216 parameters a language at width 512 and 12 layers, which matches DASD's Down and Up (399,744); on
query and value alone 196,608. The low-rank matrices and their start are peft's; at the start the tower is the frozen
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ccr_dist.methods.base import register
from ccr_dist.methods.crosslingual import CrossLingual, CrossLingualOptions

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.models.frontend import Tokens


class LoraOptions(CrossLingualOptions):
    name: Literal["lora"]
    rank: int = Field(8, gt=0, description="of the updates")
    alpha: int = Field(8, gt=0, description="the low-rank product is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the product's input, in training")
    targets: Literal["qkvo", "qv"] = Field(
        "qkvo", description="adapted projections: query, key, value, output, or query and value"
    )


@register("lora")
class Lora(CrossLingual):
    Options = LoraOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError, besides the base's, for a tower whose attention LoRA does not know."""
        from ccr_dist.models.lora import LoraBank

        super().build(texts, state)
        options = self.options
        self.lora = self.net["adapter"] = LoraBank(
            self.tower,
            self.languages,
            rank=options.rank,
            alpha=options.alpha,
            dropout=options.dropout,
            targets=options.targets,
            name=self.backbone.name,
        )

    def encode_target(self, tokens: Tokens, lang: str) -> dict[str, Tensor]:
        x, blocks, again = self.front_end(tokens), self.lora.variants(lang), self.gradient_checkpointing
        return {"global": self.tower.run(x, tokens.mask, tokens.end, checkpoint=again, blocks=blocks, rows=tokens.rows)}

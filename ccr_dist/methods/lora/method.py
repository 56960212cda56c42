"""Method `lora`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ccr_dist.methods.crosslingual.method import CrossLingual
from ccr_dist.methods.lora.network import LoraBank
from ccr_dist.methods.lora.options import LoraOptions
from ccr_dist.methods.registry import register_method
from ccr_dist.models.frontend import Tokens


@register_method("lora")
class Lora(CrossLingual):
    Options = LoraOptions
    borrows_tensors = True

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError, besides the base's, for a tower whose attention LoRA does not know."""
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

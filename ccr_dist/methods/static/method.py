"""Method `static`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ccr_dist.methods.crosslingual.method import CrossLingual
from ccr_dist.methods.registry import register_method
from ccr_dist.methods.static.options import StaticOptions
from ccr_dist.models.adapters import AdapterBank, Bottleneck, Core
from ccr_dist.models.frontend import Tokens


@register_method("static")
class Static(CrossLingual):
    Options = StaticOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        super().build(texts, state)
        options = self.options
        width, layers = self.tower.width, self.tower.layers
        self.adapters: AdapterBank | None = None
        if options.adapter == "bottleneck":
            self.adapters = AdapterBank(
                layers, self.languages, lambda: Bottleneck(width, options.hidden, options.start)
            )
        elif options.adapter == "core":
            self.adapters = AdapterBank(
                layers, self.languages, lambda: Core(width, options.rank, options.start, learned=True)
            )
        if self.adapters is not None:
            self.net["adapter"] = self.adapters

    def encode_target(self, tokens: Tokens, lang: str) -> dict[str, Tensor]:
        adapters = self.adapters
        after = None if adapters is None else lambda layer, h: adapters(layer, h, lang)
        x, again = self.front_end(tokens), self.gradient_checkpointing
        return {"global": self.tower.run(x, tokens.mask, tokens.end, after, again, rows=tokens.rows)}

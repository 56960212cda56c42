"""MLA (Zhang et al., NeurIPS 2022) and its relatives without anything generated: front end plus one static adapter a
layer and language.

`adapter` "bottleneck" is MLA's (hidden 256: 3,154,944 parameters a language at width 512 and 12 layers). With `hidden:
32` it is the parameter-matched baseline of DASD (399,744): a learned core between Down and Up is a product with Down.
"core" keeps that core apart, as DASD without its generator has it; "none" is the linear-only row, front end and frozen
tower. MLA's optimiser is the stage's to name: `optimizer: bert_adam`, `schedule: bert`, `clip: tensor`, `decay_tables:
true`.
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


class StaticOptions(CrossLingualOptions):
    name: Literal["static"]
    adapter: Literal["bottleneck", "core", "none"] = Field(
        "bottleneck", description="MLA's; one with the shape of DASD's; or linear maps alone"
    )
    hidden: int = Field(256, gt=0, description="width of the bottleneck")
    rank: int = Field(32, gt=0, description="r of the core")
    start: Literal["identity", "default"] = Field(
        "default", description="adapters begin as the identity, or as PyTorch begins"
    )


@register("static")
class Static(CrossLingual):
    Options = StaticOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        from ccr_dist.models.adapters import AdapterBank, Bottleneck, Core

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

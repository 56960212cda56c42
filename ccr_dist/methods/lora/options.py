"""Options of `lora`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ccr_dist.methods.crosslingual.options import CrossLingualOptions
from ccr_dist.methods.registry import register_options


@register_options("lora")
class LoraOptions(CrossLingualOptions):
    name: Literal["lora"]
    rank: int = Field(8, gt=0, description="of the updates")
    alpha: int = Field(8, gt=0, description="the low-rank product is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the product's input, in training")
    targets: Literal["qkvo", "qv"] = Field(
        "qkvo", description="adapted projections: query, key, value, output, or query and value"
    )

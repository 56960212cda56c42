"""Options of `static`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ccr_dist.methods.crosslingual.options import CrossLingualOptions
from ccr_dist.methods.registry import register_options


@register_options("static")
class StaticOptions(CrossLingualOptions):
    name: Literal["static"]
    adapter: Literal["bottleneck", "core", "none"] = Field(
        "bottleneck", description="MLA's; one with the shape of DASD's; or linear maps alone"
    )
    hidden: int = Field(256, gt=0, description="width of the bottleneck")
    rank: int = Field(32, gt=0, description="r of the core")
    start: Literal["identity", "default"] = Field(
        "default", description="initialise adapters as the identity, or with PyTorch's default"
    )

"""Options of `dynamic`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ccr_dist.methods.query_side.options import AlignedOptions, LinearMapOptions
from ccr_dist.methods.registry import register_options


@register_options("dynamic")
class DynamicOptions(AlignedOptions, LinearMapOptions):
    name: Literal["dynamic"]
    rank: int = Field(1024, gt=0, description="of the residual")
    generated: bool = Field(
        True, description="the residual's core is generated from the caption; false: it is static, for comparison"
    )

"""Options of `projection`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ccr_dist.methods.query_side.options import AlignedOptions
from ccr_dist.methods.registry import register_options


@register_options("projection")
class ProjectionOptions(AlignedOptions):
    name: Literal["projection"]
    hidden: int = Field(2048, gt=0, description="width of the hidden layer")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the hidden layer")

"""Options of `full`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from ccr_dist.config import Stage
from ccr_dist.methods.crosslingual.options import CrossLingualOptions
from ccr_dist.methods.registry import register_options


@register_options("full")
class FullOptions(CrossLingualOptions):
    name: Literal["full"]
    train: Literal["text", "all"] = Field("text", description="the text tower, or every parameter of the backbone")

    def training_stages(self) -> dict[str, Stage]:
        stages = super().training_stages()
        if self.train == "text":
            return stages
        return {name: replace(stage, frozen=frozenset()) for name, stage in stages.items()}

"""Options of `weighted`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from ccr_dist.config import Stage
from ccr_dist.methods.dasd.options import DasdOptions
from ccr_dist.methods.registry import register_options


@register_options("weighted")
class WeightedOptions(DasdOptions):
    name: Literal["weighted"]  # type: ignore[assignment]
    confidence: Literal["back", "agreement"] = Field(
        "back",
        description="what a translation is judged by: its back-translation, or its likeness to the English caption",
    )
    temperature: float = Field(
        0.1, gt=0, description="of the confidence, a cosine; the smaller, the sharper the weights"
    )
    floor: float = Field(
        0.1, ge=0, le=1, description="smallest weight before normalisation to a mean of 1; 1: all weights are equal"
    )

    def training_stages(self) -> dict[str, Stage]:
        needs = {"source_feature"} | ({"back_feature"} if self.confidence == "back" else set())
        return {name: replace(stage, needs=stage.needs | needs) for name, stage in super().training_stages().items()}

"""Options of `hybrid`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ccr_dist.config import Stage
from ccr_dist.methods.dasd.options import DasdOptions
from ccr_dist.methods.registry import register_options


@register_options("hybrid")
class HybridOptions(DasdOptions):
    name: Literal["hybrid"]  # type: ignore[assignment]
    visual: Literal["image", "video"] = Field(
        "image", description="tokens of a picture, the first of them global, or frames of a video"
    )
    width: int | None = Field(None, gt=0, description="project tokens to this width first; null: their own")
    slots: int = Field(4, gt=0, description="learned vectors that collect the content of a description")
    slot_blocks: int = Field(3, gt=0, description="blocks of attention from slots to the description")
    blocks: int = Field(2, gt=0, description="of the interaction")
    heads: int = Field(8, gt=0, description="of the slots' and the interaction's attention")
    slot_dropout: float = Field(0.1, ge=0, lt=1, description="in the slots' attention")
    english: float = Field(1.0, ge=0, description="weight of the InfoNCE of pictures and English features")
    local: float = Field(
        0.01, ge=0, description="weight of the matching of captions in both languages with the best slot"
    )
    alpha: tuple[float, ...] = Field(
        (1.0, 0.9, 0.8, 0.7),
        min_length=1,
        description="candidate weights of the global score, the rest is the best slot's; validation chooses",
    )

    def training_stages(self) -> dict[str, Stage]:
        stages = super().training_stages()
        if "cma" in stages:
            needs = stages["cma"].needs - {"visual"} | self.gallery() | {"source_feature"}
            about = "all of net: translated captions and described pictures towards each other and English features"
            stages["cma"] = Stage(needs, about, frozenset({"tokens"}))
        return stages

    def gallery(self) -> frozenset[str]:
        return frozenset({"tokens", "description"})

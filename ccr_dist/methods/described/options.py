"""Options of `described`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import Stage
from ccr_dist.methods.dasd.options import DasdOptions
from ccr_dist.methods.registry import register_options


@register_options("described")
class DescribedOptions(DasdOptions):
    name: Literal["described"]  # type: ignore[assignment]
    taught: float = Field(1.0, gt=0, description="weight of the alignment losses of the taught feature")
    teacher: float = Field(
        0.1,
        ge=0,
        description="weight of the distance between the codes; 0: only the losses of the taught feature",
    )
    slots: int = Field(4, gt=0, description="learned vectors that collect the content of a description")
    slot_blocks: int = Field(2, gt=0, description="blocks of attention from slots to the description")
    heads: int = Field(8, gt=0, description="of the slots' attention")
    slot_dropout: float = Field(0.1, ge=0, lt=1, description="in the slots' attention")

    @model_validator(mode="after")
    def _generates(self) -> Self:
        if self.use == "none":
            raise ValueError("`use: none` has constant cores, but method described teaches the generator of cores")
        return self

    def training_stages(self) -> dict[str, Stage]:
        stages = super().training_stages()
        return {name: replace(stage, needs=stage.needs | {"description"}) for name, stage in stages.items()}

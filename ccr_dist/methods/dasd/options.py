"""Options of `dasd`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from ccr_dist.config import Stage
from ccr_dist.methods.crosslingual.options import CrossLingualOptions
from ccr_dist.methods.registry import register_options


@register_options("dasd")
class DasdOptions(CrossLingualOptions):
    name: Literal["dasd"]
    keep_english: bool = Field(True, description="keep the alignment with English features in CMA")
    rank: int = Field(32, gt=0, description="r of the generated cores")
    start: Literal["identity", "default"] = Field(
        "default", description="initialise adapters and cores as the identity, or with PyTorch's default"
    )
    characteristics: Literal["code", "figure"] = Field(
        "code", description="how caption descriptors are computed: as released, or as in the figure of the paper"
    )
    use: Literal["both", "sr", "sa", "none"] = Field(
        "both", description="descriptors that cores are generated from; none: learned constant cores"
    )
    positions: Literal["tokens", "all"] = Field(
        "tokens", description="positions that the mean of f_sa includes; all: padding as well, as released"
    )
    sr_start: Literal["normal", "zeros"] = Field("normal", description="initialisation of W_sr")
    consistency: float = Field(0.1, ge=0, description="weight of |f_sr - y| (CLA: L1, CMA: smooth L1), mean over D")
    adversarial: float = Field(0.001, ge=0, description="weight of the encoder's adversarial loss")
    discriminator: Literal["isolated", "released"] = Field(
        "isolated", description="released: the main optimiser updates it as well, by the encoder's adversarial loss"
    )
    discriminator_lr: float = Field(1e-4, gt=0, description="learning rate of the discriminator's own optimiser")
    pairing: Literal["derangement", "reversed"] = Field(
        "derangement", description="how captions are paired with the semantics of other captions; reversed: as released"
    )
    cma_semantics: Literal["visual", "english"] = Field("visual", description="the semantic feature y in CMA")

    def training_stages(self) -> dict[str, Stage]:
        stages = super().training_stages()
        if self.cma_semantics == "english" and self.use != "none" and "cma" in stages:
            stages["cma"] = replace(stages["cma"], needs=stages["cma"].needs | {"source_feature"})
        return stages

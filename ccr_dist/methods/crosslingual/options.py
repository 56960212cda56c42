"""Options that the methods with a front end before the frozen text tower have in common."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import FrontEndConfig, MethodOptions, Stage


class CrossLingualOptions(MethodOptions):
    """Weights are those of the published objective; 0 leaves a term out."""

    frontend: FrontEndConfig = FrontEndConfig()
    stages: tuple[Literal["cla", "cma"], ...] = Field(("cla", "cma"), description="which of the two stages to train")
    mse: float = Field(1.0, ge=0, description="weight of the squared error to the English feature, mean over D")
    cosine: float = Field(0.0, ge=0, description="weight of 1 - cosine to the English feature (not in the papers)")
    keep_english: bool = Field(False, description="keep the two terms above in CMA")
    contrastive: float = Field(1.0, ge=0, description="weight of the symmetric InfoNCE with pictures in CMA")
    scale: float = Field(100.0, gt=0, description="fixed factor of the cosines in the InfoNCE")
    positives: Literal["group", "diagonal"] = Field(
        "group", description="positives in the InfoNCE: all rows of a group, or only the row itself, as released"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.stages not in (("cla", "cma"), ("cla",), ("cma",)):
            raise ValueError(f"stages are [cla, cma], [cla] or [cma], not [{', '.join(self.stages)}]")
        english = self.mse + self.cosine
        learns = {"cla": english, "cma": self.contrastive or (english and self.keep_english)}
        off = {"cla": "mse and cosine are off", "cma": "contrastive is off, and so are mse and cosine, or keep_english"}
        for stage in self.stages:
            if not learns[stage]:
                raise ValueError(f"stage {stage} would align captions with nothing: {off[stage]}")
        return self

    def training_stages(self) -> dict[str, Stage]:
        cma = {"visual", "target_text"} | ({"source_feature"} if self.keep_english else set())
        both = {
            "cla": Stage(
                frozenset({"source_feature", "target_text"}), "all of net: translated captions towards English features"
            ),
            "cma": Stage(frozenset(cma), "all of net: translated captions towards pictures", frozenset({"visual"})),
        }
        return {name: both[name] for name in self.stages}

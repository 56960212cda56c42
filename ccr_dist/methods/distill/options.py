"""Options of `distill`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import Stage
from ccr_dist.methods.query_side.options import LinearMapOptions
from ccr_dist.methods.registry import register_options


@register_options("distill")
class DistillOptions(LinearMapOptions):
    """Weights of 0 leave a term out."""

    name: Literal["distill"]
    train: Literal["all", "blocks", "lora"] = Field(
        "blocks", description="of the query encoder: all of it, its last blocks, or LoRA on the attention of all blocks"
    )
    blocks: int = Field(4, gt=0, description="how many of its last blocks, with `train: blocks`")
    rank: int = Field(8, gt=0, description="of LoRA's updates")
    alpha: int = Field(8, gt=0, description="LoRA's low-rank product is scaled by alpha / rank")
    targets: Literal["qkvo", "qv"] = Field(
        "qkvo", description="LoRA's projections: query, key, value, output, or query and value"
    )
    stages: tuple[Literal["text", "pictures"], ...] = Field(("text",), description="which of the stages to train")
    mse: float = Field(1.0, ge=0, description="weight of the squared error to the English feature, mean over D")
    cosine: float = Field(1.0, ge=0, description="weight of 1 - cosine to the English feature")
    source: float = Field(
        0.0,
        ge=0,
        description="weight of the same terms of the English captions, by way of the query encoder (1: as published)",
    )
    keep_english: bool = Field(True, description="keep the terms above when captions are drawn towards pictures")
    contrastive: float = Field(1.0, ge=0, description="weight of the symmetric InfoNCE with pictures")
    scale: float = Field(100.0, gt=0, description="fixed factor of the cosines in the InfoNCE")
    positives: Literal["group", "diagonal"] = Field(
        "group", description="positives in the InfoNCE: all rows of a group, or only the row itself"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.query.layers is not None:
            raise ValueError(
                "query.layers: an encoder that is trained gives the vector of its last layer; leave it out"
            )
        if self.stages not in (("text", "pictures"), ("text",), ("pictures",)):
            raise ValueError(f"stages are [text, pictures], [text] or [pictures], not [{', '.join(self.stages)}]")
        english = self.mse + self.cosine
        if "text" in self.stages and not english:
            raise ValueError("stage text would align captions with nothing: mse and cosine are off")
        if "pictures" in self.stages and not (self.contrastive or (english and self.keep_english)):
            raise ValueError(
                "stage pictures would align captions with nothing: contrastive is off, and so are mse and cosine, or"
                " keep_english"
            )
        return self

    def training_stages(self) -> dict[str, Stage]:
        read = {"target_text", *(["source_text"] if self.source else [])}
        part = {"all": "all", "blocks": f"last {self.blocks} blocks", "lora": "LoRA"}[self.train]
        what = f"query encoder ({part}) and map: captions towards"
        both = {
            "text": Stage(frozenset({*read, "source_feature"}), f"{what} English features"),
            "pictures": Stage(
                frozenset({*read, "visual", *(["source_feature"] if self.keep_english else [])}),
                f"{what} pictures" + (" and English features" if self.keep_english else ""),
                frozenset({"visual"}),
            ),
        }
        return {name: both[name] for name in self.stages}

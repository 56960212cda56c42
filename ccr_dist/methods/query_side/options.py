"""Options that the methods with a query encoder have in common."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import MethodOptions, QueryEncoderConfig, Stage


class QuerySideOptions(MethodOptions):
    """The encoder, and what it is asked."""

    any_language: ClassVar[bool] = True

    query: QueryEncoderConfig = Field(QueryEncoderConfig(), description="the multilingual sentence encoder")
    english: Literal["backbone", "query"] = Field(
        "backbone", description="English queries: the backbone as it is, or the path of all other languages"
    )


class LinearMapOptions(QuerySideOptions):
    """Where the map ends."""

    space: Literal["features", "shared"] = Field(
        "features", description="the map ends in the backbone's text features, before its head, or in the shared space"
    )


class AlignedOptions(QuerySideOptions):
    """What methods that are trained by gradients learn from; a weight of 0 leaves a term out."""

    pairs: Literal["english", "translations"] = Field(
        "english",
        description="captions that are learnt from: English ones alone, or their machine translations (`data.targets`)",
    )
    mse: float = Field(1.0, ge=0, description="weight of the squared error to the English feature, mean over D")
    cosine: float = Field(1.0, ge=0, description="weight of 1 - cosine to the English feature")
    pictures: float = Field(
        0.0,
        ge=0,
        le=1,
        description="weight of the picture, scaled to the English feature's length, in the target of mse and cosine",
    )
    contrastive: float = Field(1.0, ge=0, description="weight of the symmetric InfoNCE with pictures")
    scale: float = Field(14.0, gt=0, description="fixed factor of the cosines in the InfoNCE")
    positives: Literal["group", "diagonal"] = Field(
        "group", description="positives in the InfoNCE: all rows of a group, or only the row itself"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not (self.mse or self.cosine or self.contrastive):
            raise ValueError("mse, cosine and contrastive are all 0, so captions would be aligned with nothing")
        return self

    def training_stages(self) -> dict[str, Stage]:
        english = {"source_feature"} if self.mse or self.cosine else set()
        pictures = {"visual"} if self.contrastive or (english and self.pictures) else set()
        captions = {"target_text"} if self.pairs == "translations" else set()
        towards = [name for name, there in (("English features", english), ("pictures", pictures)) if there]
        read = "translated captions" if captions else "English captions through the query encoder"
        return {
            "align": Stage(
                frozenset({"query_feature", *english, *pictures, *captions}),
                f"all of net: {read} towards {' and '.join(towards)}",
                frozenset(pictures),
            )
        }

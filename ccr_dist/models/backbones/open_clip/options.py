"""The section of `open_clip`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import BackboneConfig
from ccr_dist.config.base_files import MayBeLocal
from ccr_dist.models.backbones.registry import register_config


@register_config("open_clip")
class OpenClipConfig(BackboneConfig):
    """Any open_clip model."""

    kind: Literal["open_clip"]
    model: Annotated[str, MayBeLocal(marked=True)] = Field(
        description="open_clip architecture, e.g. ViT-B-32, or hf-hub:… / a local-dir:… id"
    )
    pretrained: Annotated[str | None, MayBeLocal(folder=False)] = Field(
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
    weights: Annotated[str | None, MayBeLocal(trained=True)] = Field(
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

    def untrained(self) -> bool:
        return self.pretrained is None and ":" not in self.model  # `local-dir:` and `hf-hub:` bring their own

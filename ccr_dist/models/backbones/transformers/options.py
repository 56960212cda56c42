"""The section of `transformers`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ccr_dist.config import BackboneConfig
from ccr_dist.config.base_files import MayBeLocal
from ccr_dist.models.backbones.registry import register_config


@register_config("transformers")
class TransformersConfig(BackboneConfig):
    """A CLIP, SigLIP, SigLIP 2, MetaCLIP 2, Chinese-CLIP or AltCLIP in the format of transformers."""

    kind: Literal["transformers"]
    model: Annotated[str, MayBeLocal()] = Field(description="Hugging Face id or local folder")
    revision: str | None = Field(None, description="branch, tag or commit of an id; null: its main branch")
    max_tokens: int | None = Field(
        None, gt=2, description="most tokens of a text, such as 52 for Chinese-CLIP; null: what the model's files say"
    )
    weights: Annotated[str | None, MayBeLocal(trained=True)] = Field(
        None, description="run folder or safetensors file whose `backbone.*` tensors replace these weights"
    )

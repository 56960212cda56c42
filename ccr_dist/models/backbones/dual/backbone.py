"""A dual encoder made of two frozen single-language, single-modality models and trained heads: the demo's English
vision-language model.

Text features are not normalised (`sentence.py`): the heads see lengths too, and the tower's `finish` is a pooling and a
head. Image encoders are in `image_encoders.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.models.backbones.backbone import slug
from ccr_dist.models.backbones.dual.options import DualConfig
from ccr_dist.models.backbones.image_encoders import ImageEncoder, Lite0, Timm
from ccr_dist.models.backbones.registry import register_backbone
from ccr_dist.models.backbones.sentence.backbone import SentenceEncoder, short_name, text_packages


class Head(nn.Module):
    """Linear plus two-layer MLP, summed: (n, width) to (n, dim)."""

    def __init__(self, width: int, hidden: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features) + self.mlp(features)


class Heads(nn.Module):
    """One head a side and the temperature of the contrastive loss that trains them."""

    def __init__(self, image_width: int, text_width: int, cfg: DualConfig) -> None:
        super().__init__()
        self.image = Head(image_width, cfg.hidden, cfg.dim, cfg.dropout)
        self.text = Head(text_width, cfg.hidden, cfg.dim, cfg.dropout)
        # one element, no scalar: DeepSpeed and FSDP take no scalars
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    def scale(self) -> Tensor:
        """(1,): what cosines are multiplied with; the method that trains it bounds it (`Method.limits`)."""
        return self.logit_scale.exp()


@register_backbone("dual")
class DualBackbone(SentenceEncoder):
    """Image encoder, text encoder and heads (`heads`, the only part that training an English model changes)."""

    heads: Heads

    def __init__(self, cfg: DualConfig) -> None:
        """ConfigError when an encoder cannot be loaded."""
        super().__init__()
        self.cfg = cfg
        self.image: ImageEncoder = Lite0() if cfg.image == "efficientnet-lite0" else Timm(cfg.image)
        self.load_text(cfg.text)
        self.heads = Heads(self.image.width, self.text_head.width, cfg)
        self.dim = cfg.dim
        self.names = (short_name(cfg.image), short_name(cfg.text))
        self.name = slug("-".join(self.names))

    def image_transform(self) -> Callable[[Any], Tensor]:
        return self.image.transform()

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.image(pixels)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        return self.image.tokens(pixels)

    def project_image(self, features: Tensor) -> Tensor:
        return self.heads.image(features)

    def project_text(self, features: Tensor) -> Tensor:
        return self.heads.text(features)

    def part_of(self, tensor: str) -> str:
        return tensor.split(".")[0].removesuffix("_head")

    def description(self) -> dict[str, Any]:
        image = self.image.description()
        packages = image["packages"] | text_packages(self.tokenizer)
        return {
            "kind": "dual",
            "image": self.names[0],
            "text": self.names[1],
            "dim": self.dim,
            "preprocess": image["preprocess"],
            "context_length": self.context_length,
            **self.recipe.description(),
            "packages": packages,
        }

"""Method `english`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ccr_dist.data.stream.loader import Batch
from ccr_dist.errors import ConfigError
from ccr_dist.losses.context import Context
from ccr_dist.methods.base import Method
from ccr_dist.methods.english.options import EnglishOptions
from ccr_dist.methods.features import encode_english, encode_visual, english
from ccr_dist.methods.recompute import blocks_of, recompute
from ccr_dist.methods.registry import register_method


@register_method("english")
class English(Method):
    Options = EnglishOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError when the backbone has no heads to train."""
        self.backbone.trainable_parameters(self.options.train)
        encoders = {} if self.options.train == "heads" else blocks_of(self.backbone)
        trained = [
            block
            for name, block in encoders.items()
            if not name.startswith("heads.") and any(each.requires_grad for each in block.parameters())
        ]
        self.recomputes = recompute(trained, lambda: self.gradient_checkpointing)

    def trainable(self, stage: str) -> list[str]:
        if self.options.train == "text":
            return [
                f"backbone.{name}"
                for name, _ in self.backbone.named_parameters()
                if self.backbone.part_of(name) == "text"
            ]
        return ["backbone.heads."] if self.options.train == "heads" else ["backbone."]

    def limits(self, stage: str) -> dict[str, tuple[float, float]]:
        """The temperature's: a scale of 1 to 100, as in open_clip. Pretrained ones often lie at 100 exactly."""
        if self.options.scale != "learned":
            return {}
        name = "heads" if self.backbone.heads is not None else "model"
        return {f"backbone.{name}.logit_scale": (0.0, math.log(100))}

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """visual (n, D), english (n, D), scale (1,)."""
        assert batch.visual is not None
        if self.options.train == "heads":
            text = english(self.backbone, batch)
        elif batch.visual.ndim == 2 and self.options.train == "all":
            raise ConfigError(
                "data.visual is a column of features, but `train: all` trains the image encoder: name the column of"
                " pictures"
            )
        else:
            text = encode_english(self.backbone, batch.source_text)
        visual = encode_visual(self.backbone, batch.visual)
        scale = (
            self._learned_scale()
            if self.options.scale == "learned"
            else torch.full((1,), self.options.scale, device=visual.device)
        )
        return {"visual": visual, "english": text, "scale": scale}

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        """Symmetric InfoNCE; with `positives: group` all captions and pictures of one group are right for each
        other.
        """
        group = batch.group if self.options.positives == "group" else None
        return {
            "contrastive": ctx.contrastive(outputs["visual"], outputs["english"], scale=outputs["scale"], group=group)
        }

    def _learned_scale(self) -> Tensor:
        heads: Any = self.backbone.heads
        if heads is not None:
            return heads.scale()
        model: Any = self.backbone.model
        return model.logit_scale.exp().reshape(1)

"""Method `full`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ccr_dist.data.stream.loader import Batch
from ccr_dist.errors import ConfigError
from ccr_dist.methods.crosslingual.method import CrossLingual
from ccr_dist.methods.features import encode_visual, frozen
from ccr_dist.methods.full.options import FullOptions
from ccr_dist.methods.registry import register_method
from ccr_dist.models.frontend import Tokens


@register_method("full")
class Full(CrossLingual):
    Options = FullOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        super().build(texts, state)
        # Made before any trained weight is loaded, so on resuming it holds the original weights again. It never encodes
        # a picture when the picture side is trained, so that side's tensors are shared.
        backbone = self.backbone
        tensors = [*backbone.named_parameters(), *backbone.named_buffers()]
        shared = {id(tensor): tensor for name, tensor in tensors if backbone.part_of(name) == "image"}
        self.teacher = copy.deepcopy(backbone, shared)
        backbone.trainable_parameters(self.options.train)

    def trainable(self, stage: str) -> list[str]:
        if self.options.train == "all":
            return ["net.", "backbone."]
        own = self.tower.token_table()
        text = [
            (name, tensor) for name, tensor in self.backbone.named_parameters() if self.backbone.part_of(name) == "text"
        ]
        return ["net.", *(f"backbone.{name}" for name, tensor in text if tensor is not own)]

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        self.teacher.to(self.backbone.device)
        return super().outputs(stage, batch)

    def picture(self, visual: Tensor) -> Tensor:
        if self.options.train == "text":  # the teacher shares this side's tensors, of which ZeRO-3 keeps parts
            return frozen(lambda: encode_visual(self.backbone, visual, heads=self.teacher))
        if visual.ndim == 2:
            raise ConfigError(
                "data.visual is a column of features, but `train: all` trains the image encoder: name the column of"
                " pictures"
            )
        return encode_visual(self.backbone, visual)

    def encode_target(self, tokens: Tokens, lang: str) -> dict[str, Tensor]:
        x, again = self.front_end(tokens), self.gradient_checkpointing
        return {"global": self.tower.run(x, tokens.mask, tokens.end, checkpoint=again, rows=tokens.rows)}

"""Base class of the methods with a query encoder that are trained by gradients."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from ccr_dist.config import MethodOptions
from ccr_dist.data.stream.loader import Batch
from ccr_dist.losses.context import Context
from ccr_dist.methods.alignment import towards_english, towards_pictures
from ccr_dist.methods.features import precise
from ccr_dist.methods.query_side.method import QuerySide
from ccr_dist.methods.query_side.options import AlignedOptions


def evened(features: Tensor) -> Tensor:
    """Query features (n, Q) as a network takes them: of length √Q, so that an element is about 1 with any encoder."""
    return normalize(precise(features), dim=-1) * features.shape[-1] ** 0.5


class Aligned(QuerySide):
    """Its stage `align` draws what `mapped` makes of captions towards English features and pictures, both frozen."""

    Options: ClassVar[type[MethodOptions]] = AlignedOptions
    recomputes = False

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """`mapped` and, without gradient, english (n, D) and visual (n, D) where the stage needs them."""
        return self.mapped(self.features_of(batch), batch.lang) | self.aims(stage, batch)

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        target = precise(outputs["global"])
        terms: dict[str, Tensor] = {}
        if "english" in outputs:
            aim, share = outputs["english"], self.options.pictures
            if share:
                length = aim.norm(dim=-1, keepdim=True)
                aim = (1 - share) * aim + share * length * normalize(outputs["visual"], dim=-1)
            terms |= towards_english(self.options, target, aim, ctx)
        if "visual" in outputs:
            terms |= towards_pictures(self.options, target, outputs["visual"], batch, ctx)
        return terms

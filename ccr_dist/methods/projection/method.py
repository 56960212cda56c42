"""Method `projection`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ccr_dist.methods.features import one_row
from ccr_dist.methods.projection.options import ProjectionOptions
from ccr_dist.methods.query_side.aligned import Aligned, evened
from ccr_dist.methods.registry import register_method


@register_method("projection")
class Projection(Aligned):
    """`net` holds "projection"."""

    Options = ProjectionOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        super().build(texts, state)
        options = self.options
        self.net["projection"] = nn.Sequential(
            nn.Linear(self.query.dim, options.hidden),
            nn.GELU(),
            nn.Dropout(options.dropout),
            nn.Linear(options.hidden, self.backbone.dim),
        )

    def mapped(self, features: Tensor, lang: str) -> dict[str, Tensor]:
        return {"global": self.net["projection"](evened(one_row(features)))[: len(features)]}

"""Method `weighted`."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity

from ccr_dist.data.stream.loader import Batch
from ccr_dist.losses.context import Context
from ccr_dist.methods.dasd.method import Dasd
from ccr_dist.methods.features import back, frozen, precise
from ccr_dist.methods.registry import register_method
from ccr_dist.methods.weighted.options import WeightedOptions


@register_method("weighted")
class Weighted(Dasd):
    Options = WeightedOptions

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """DASD's and, for `confidence: back`, back (n, D) without gradient."""
        result = super().outputs(stage, batch)
        if self.options.confidence == "back":
            result["back"] = frozen(lambda: back(self.teacher, batch))
        return result

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        return super().losses(stage, batch, outputs, ctx.weighted(self.weights(outputs, ctx)))

    def weights(self, outputs: dict[str, Tensor], ctx: Context) -> Tensor:
        """w (n,) of this rank's rows, a constant of the step; 1 on average over the global batch."""
        options = self.options
        other = outputs["back"] if options.confidence == "back" else precise(outputs["global"].detach())
        confidence = cosine_similarity(outputs["english"], other, dim=-1)
        doubt = (ctx.gather(confidence).mean() - confidence) / options.temperature
        weights = options.floor + (1 - options.floor) * (-doubt).sigmoid()
        return weights / ctx.gather(weights).mean()

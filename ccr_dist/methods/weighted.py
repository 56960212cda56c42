"""DASD with noise-aware weights: a caption whose machine translation is doubtful counts less in every loss. Not from a
paper.

Translations carry noise that the alignment terms would teach as truth. The confidence c_i of row i is a cosine of
English features, without gradient, and the weight follows it:

    w_i = floor + (1 - floor) sigmoid((c_i - mean c) / temperature), divided by its mean over the global batch

`confidence: back` compares the frozen features of the source caption and of its back-translation: the noise of two
translations, known before training. `agreement` compares the target caption's own feature, as it is at this step, with
the English one (self-paced: what the model cannot yet explain is put off; the floor keeps it from being given up).
Weights are 1 on average, so the rate of learning does not change, and a batch of equal confidences is DASD's. All terms
of the encoder are weighted, the contrastive one by its rows on either side; the discriminator's own loss is not. `use:
none` makes it the static core's (`dasd.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ccr_dist.methods.base import Stage, register
from ccr_dist.methods.dasd import Dasd, DasdOptions
from ccr_dist.methods.features import back, frozen, precise

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.data.stream.loader import Batch
    from ccr_dist.losses.context import Context


class WeightedOptions(DasdOptions):
    name: Literal["weighted"]  # type: ignore[assignment]
    confidence: Literal["back", "agreement"] = Field(
        "back",
        description="what a translation is judged by: its back-translation, or its likeness to the English caption",
    )
    temperature: float = Field(
        0.1, gt=0, description="of the confidence, a cosine; the smaller, the sharper the weights"
    )
    floor: float = Field(
        0.1, ge=0, le=1, description="least weight before the weights are brought to a mean of 1; 1: all alike"
    )


@register("weighted")
class Weighted(Dasd):
    Options = WeightedOptions

    @classmethod
    def stages(cls, options: WeightedOptions) -> dict[str, Stage]:  # type: ignore[override]
        needs = {"source_feature"} | ({"back_feature"} if options.confidence == "back" else set())
        return {name: replace(stage, needs=stage.needs | needs) for name, stage in super().stages(options).items()}

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
        from torch.nn.functional import cosine_similarity

        options = self.options
        other = outputs["back"] if options.confidence == "back" else precise(outputs["global"].detach())
        confidence = cosine_similarity(outputs["english"], other, dim=-1)
        doubt = (ctx.gather(confidence).mean() - confidence) / options.temperature
        weights = options.floor + (1 - options.floor) * (-doubt).sigmoid()
        return weights / ctx.gather(weights).mean()

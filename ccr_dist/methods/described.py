"""DASD whose core generator is taught by descriptions (privileged information). Not from a paper.

A translated caption is short and noisy; a description of its item, written by a multimodal LLM, says in clean English
what the caption is about. Queries have none, so the generator may learn from descriptions but not depend on them. In
training, and there alone, a description is compressed into slots (LECCR's, over frozen states of the English text
tower) and their mean s shifts the code of the generator:

    z = W_z [f_sr; f_sa]      z* = z + W_d s      teacher = mean over the code's width of (z - stopgrad z*)^2

z* makes a second set of cores, the frozen tower with these gives the taught feature, and it has the alignment losses of
the caption's own. So W_d s learns what the caption's cores lack, and z is drawn there by what it sees of the caption
alone. A shift of the code is the simplest form in which student and teacher share everything else: a teacher of its own
could go its own way, and a coin between the two would leave the student without its losses in half of the batches. W_d
starts at zero, where the method is DASD. Training passes the tower twice, queries once; slots and W_d are not deployed.

z* moves along with z, so the teacher's pull W_d s does not end until descriptions say nothing more: at a weight of 1 it
drags codes away from what captions alone can do, and costs recall (emoji14); hence 0.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from ccr_dist.errors import ConfigError
from ccr_dist.methods.base import Stage, register
from ccr_dist.methods.crosslingual import CrossLingual
from ccr_dist.methods.dasd import Dasd, DasdOptions
from ccr_dist.methods.features import at_least_one, precise, text_states
from ccr_dist.models import token_counts

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.data.stream.loader import Batch
    from ccr_dist.losses.context import Context


class DescribedOptions(DasdOptions):
    name: Literal["described"]  # type: ignore[assignment]
    taught: float = Field(1.0, gt=0, description="weight of the alignment losses of the taught feature")
    teacher: float = Field(
        0.1, ge=0, description="weight of the distance of the codes; 0: cores merely see descriptions beside their own"
    )
    slots: int = Field(4, gt=0, description="learned vectors that collect the content of a description")
    slot_blocks: int = Field(2, gt=0, description="blocks of attention from slots to the description")
    heads: int = Field(8, gt=0, description="of the slots' attention")
    slot_dropout: float = Field(0.1, ge=0, lt=1, description="in the slots' attention")

    @model_validator(mode="after")
    def _generates(self) -> Self:
        if self.use == "none":
            raise ValueError("`use: none` has constant cores, but method described teaches the generator of cores")
        return self


@register("described")
class Described(Dasd):
    Options = DescribedOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        from torch import nn

        from ccr_dist.models.slots import Slots

        super().build(texts, state)
        options, width = self.options, self.tower.width
        if width % options.heads:
            raise ConfigError(f"method.heads: {options.heads} heads do not divide a text tower of width {width}")
        self.net["slots"] = Slots(
            width, width, options.slots, options.slot_blocks, heads=options.heads, dropout=options.slot_dropout
        )
        self.net["shift"] = shift = nn.Linear(width, width, bias=False)
        nn.init.zeros_(shift.weight)
        self.filled_contexts = 0

    @classmethod
    def stages(cls, options: DescribedOptions) -> dict[str, Stage]:  # type: ignore[override]
        return {
            name: replace(stage, needs=stage.needs | {"description"}) for name, stage in super().stages(options).items()
        }

    @property
    def truncated(self) -> int:
        return super().truncated + self.filled_contexts

    def captions(self, batch: Batch) -> dict[str, Tensor]:
        """DASD's and taught (n, D), code and taught_code (n, width)."""
        states, mask, full = text_states(self.tower, batch.description)
        self.filled_contexts += token_counts.once(full)
        shift = self.net["shift"](self.net["slots"](states, mask, self.gradient_checkpointing).mean(1))

        tokens = self.front_end.tokenize(at_least_one(batch.target_text))
        first, described = self.describe(tokens)
        code = self.generator.to_code(list(described.values()))
        found = {"code": code, "taught_code": code + shift}
        for name, made in (("global", "code"), ("taught", "taught_code")):
            found[name] = self.adapt(tokens, batch.lang, first, self.generator.from_code(found[made]))
        return {name: value[: len(batch.target_text)] for name, value in (found | described).items()}

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        """DASD's; its alignment terms of the taught feature, "taught_…"; "teacher"."""
        options, terms = self.options, super().losses(stage, batch, outputs, ctx)
        aligned = CrossLingual.losses(self, stage, batch, {**outputs, "global": outputs["taught"]}, ctx)
        terms |= {f"taught_{name}": options.taught * term for name, term in aligned.items()}
        if options.teacher:
            apart = precise(outputs["code"]) - precise(outputs["taught_code"]).detach()
            terms["teacher"] = options.teacher * ctx.mean(apart.square().mean(-1))
        return terms

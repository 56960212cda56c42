"""Method `described`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ccr_dist.data.stream.loader import Batch
from ccr_dist.errors import ConfigError
from ccr_dist.losses.context import Context
from ccr_dist.methods.crosslingual.method import CrossLingual
from ccr_dist.methods.dasd.method import Dasd
from ccr_dist.methods.described.options import DescribedOptions
from ccr_dist.methods.features import at_least_one, precise, text_states
from ccr_dist.methods.registry import register_method
from ccr_dist.models import token_counts
from ccr_dist.models.slots import Slots


@register_method("described")
class Described(Dasd):
    Options = DescribedOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
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

"""DASD: dynamic adapters with semantics disentangling (Cai et al., AAAI 2025; released code HuiGuanLab/DASD at
1bd165d).

A caption is described by what it says (f_sr) and how it says it (f_sa); from both a generator makes one r x r core for
each layer's adapter, so the frozen tower is adapted to that caption. Stages CLA and CMA (`crosslingual.py`); in both a
consistency loss ties f_sr to the semantic feature y (the English one in CLA, the picture's in CMA) and an adversarial
loss keeps semantics out of f_sa. Defaults are the published values.

Where this differs from the released code, and why:
- Branch networks: `characteristics: code` has none, as in the released code, where they exist but never run; `figure`
  has what the paper draws.
- f_sa is the mean over tokens; `positions: all` counts padding too, as released, which tells f_sa the caption's length.
- `discriminator: isolated` leaves it to its own optimiser; `released`: the main optimiser has it, too, and trains it to
  confuse itself, with weight decay, right after its own has trained it to tell pairs apart.
- `pairing: derangement` makes strange pairs by a random derangement of the global batch; `reversed`: by the batch in
  reverse, as released, whose middle row may keep its own partner.
- `sr_start: normal` starts W_sr from N(0, 1/width); released: uninitialised memory, often `zeros`.
- The rest of the released recipe is the stage's: `optimizer: bert_adam`, `schedule: bert`, `clip: tensor`, and
  `decay_tables: true`, which lets a weight decay of 0.2 shrink the embeddings of all words that a batch lacks.
- `positives: group` counts other captions of the same item as right in the InfoNCE; `diagonal`: as released.
- `cma_semantics: english` keeps y the English feature in CMA; `visual`: as released, across the gap between the
  modalities.
- Validation selects, never test. The InfoNCE's scale is an option that is read (released: fixed at 100, the option
  ignored).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ccr_dist.errors import ConfigError
from ccr_dist.methods.base import Stage, register
from ccr_dist.methods.crosslingual import CrossLingual, CrossLingualOptions
from ccr_dist.methods.features import precise

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.data.stream.loader import Batch
    from ccr_dist.losses.context import Context
    from ccr_dist.models.frontend import Tokens

USED: dict[str, tuple[str, ...]] = {"both": ("sr", "sa"), "sr": ("sr",), "sa": ("sa",), "none": ()}


class DasdOptions(CrossLingualOptions):
    name: Literal["dasd"]
    keep_english: bool = Field(True, description="the alignment with English features stays in CMA")
    rank: int = Field(32, gt=0, description="r of the generated cores")
    start: Literal["identity", "default"] = Field(
        "default", description="adapters and cores begin as the identity, or as PyTorch begins"
    )
    characteristics: Literal["code", "figure"] = Field(
        "code", description="how captions are described: as released, or as the paper draws it"
    )
    use: Literal["both", "sr", "sa", "none"] = Field(
        "both", description="descriptors that cores are generated from; none: learned constant cores"
    )
    positions: Literal["tokens", "all"] = Field("tokens", description="of f_sa's mean; all: padding too, as released")
    sr_start: Literal["normal", "zeros"] = Field("normal", description="of W_sr")
    consistency: float = Field(0.1, ge=0, description="weight of |f_sr - y| (CLA: L1, CMA: smooth L1), mean over D")
    adversarial: float = Field(0.001, ge=0, description="weight of the encoder's adversarial loss")
    discriminator: Literal["isolated", "released"] = Field(
        "isolated", description="released: the main optimiser steps it, too, by the encoder's adversarial loss"
    )
    discriminator_lr: float = Field(1e-4, gt=0, description="learning rate of the discriminator's own optimiser")
    pairing: Literal["derangement", "reversed"] = Field(
        "derangement", description="of captions and strange semantics; reversed: as released"
    )
    cma_semantics: Literal["visual", "english"] = Field("visual", description="what y is in CMA")


@register("dasd")
class Dasd(CrossLingual):
    Options = DasdOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError, besides the base's, when the tower has fewer blocks than the trunk."""
        import torch

        from ccr_dist.losses.adversarial import Discriminator
        from ccr_dist.models.adapters import AdapterBank, Core, CoreGenerator
        from ccr_dist.models.characteristics import Characteristics

        super().build(texts, state)
        options, backbone = self.options, self.backbone
        tower, use = self.tower, USED[options.use]
        make = partial(Core, tower.width, options.rank, options.start, learned=not use)
        self.adapters = self.net["adapter"] = AdapterBank(tower.layers, self.languages, make)
        self.characteristics: Characteristics | None = None
        if use:
            self.characteristics = described = Characteristics(
                tower.width,
                tower.dim,
                variant=options.characteristics,
                positions=options.positions,
                use=use,
                start=options.sr_start,
            )
            if described.trunk > tower.layers:
                raise ConfigError(
                    f"method.characteristics: '{options.characteristics}' reads {described.trunk} blocks;"
                    f" {backbone.name}: {tower.layers}"
                )
            self.net["characteristics"] = described
            inputs = sum(described.widths[name] for name in use)
            self.generator = self.net["generator"] = CoreGenerator(
                inputs, tower.width, options.rank, tower.layers, options.start
            )
        if "sa" in use and options.adversarial:
            # so that the rest of the model starts alike with and without an opponent
            with torch.random.fork_rng(devices=[]):
                self.aux["discriminator"] = Discriminator(tower.width + tower.dim)
            self.entangled = ("discriminator",) if options.discriminator == "released" else ()

    @classmethod
    def stages(cls, options: DasdOptions) -> dict[str, Stage]:
        stages = super().stages(options)
        if options.cma_semantics == "english" and options.use != "none" and "cma" in stages:
            stages["cma"] = replace(stages["cma"], needs=stages["cma"].needs | {"source_feature"})
        return stages

    def auxiliary_lr(self, name: str) -> float:
        return self.options.discriminator_lr

    def encode_target(self, tokens: Tokens, lang: str) -> dict[str, Tensor]:
        """{"global": (n, D), "sr": (n, D), "sa": (n, width)}."""
        first, described = self.describe(tokens)
        cores = self.generator(list(described.values())) if described else []
        return {"global": self.adapt(tokens, lang, first, cores), **described}

    def describe(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """What the first block makes of captions, in `tokens.rows`, which the trunk and the adapted tower share, and
        their characteristics.

        A mean over all positions is one over the whole context, so that no caption's depends on the others in its
        batch: the trunk then sees more padding than the tower behind it.
        """
        tower, asked = self.tower, tokens
        if self.characteristics is not None and self.characteristics.positions == "all":
            tokens = self.front_end.whole_context(tokens)
        rows = tokens.rows
        h = rows.lay(tower.start(self.front_end(tokens), tokens.mask))
        seen = tower.seen(h, rows.mask)
        first = self._recomputed(tower.block, 0, h, seen)
        if self.characteristics is None:
            return first, {}
        shallow = first
        for layer in range(1, self.characteristics.trunk):
            shallow = self._recomputed(tower.block, layer, shallow, seen)
        if tokens is not asked:
            first = asked.rows.lay(first[:, : asked.ids.shape[1]])
        return first, self.characteristics(tower, rows.texts(shallow), tokens.mask, tokens.end)

    def adapt(self, tokens: Tokens, lang: str, first: Tensor, cores: list[Tensor]) -> Tensor:
        """(n, D): on from `first` through the tower with the language's adapters; `cores` (n, r, r) by layer, or
        none.
        """
        tower, rows = self.tower, tokens.rows
        seen = tower.seen(first, rows.mask)

        def adapted(layer: int, h: Tensor) -> Tensor:
            return self.adapters(layer, h, lang, partial(rows.times, matrices=cores[layer]) if cores else None)

        def adapted_block(layer: int, h: Tensor) -> Tensor:
            return adapted(layer, tower.block(layer, h, seen))

        h = adapted(0, first)
        for layer in range(1, tower.layers):
            h = self._recomputed(adapted_block, layer, h)
        return tower.finish(rows.texts(h), tokens.mask, tokens.end)

    def _recomputed(self, function: Any, *inputs: Any) -> Any:
        """`function(*inputs)`, computed again for gradients under gradient checkpointing."""
        import torch
        from torch.utils.checkpoint import checkpoint

        again = self.gradient_checkpointing and torch.is_grad_enabled()
        return checkpoint(function, *inputs, use_reentrant=False) if again else function(*inputs)

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        from torch.nn import functional as F

        from ccr_dist.losses.adversarial import confusion_loss

        options, terms = self.options, super().losses(stage, batch, outputs, ctx)
        if "sr" in outputs and options.consistency:
            distance = F.l1_loss if stage == "cla" else F.smooth_l1_loss
            apart = distance(precise(outputs["sr"]), self._semantics(stage, outputs), reduction="none").mean(-1)
            terms["consistency"] = options.consistency * ctx.mean(apart)
        if "discriminator" in self.aux:
            strange = ctx.permute(self._semantics(stage, outputs), options.pairing)
            judge, isolated = self.aux["discriminator"], options.discriminator == "isolated"
            terms["adversarial"] = options.adversarial * ctx.mean(
                confusion_loss(judge, outputs["sa"], strange, isolated=isolated)
            )
        return terms

    def auxiliary_losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        from ccr_dist.losses.adversarial import discriminator_loss

        if "discriminator" not in self.aux:
            return {}
        semantic = self._semantics(stage, outputs)
        strange = ctx.permute(semantic, self.options.pairing)
        return {
            "discriminator": ctx.mean(discriminator_loss(self.aux["discriminator"], outputs["sa"], semantic, strange))
        }

    def _semantics(self, stage: str, outputs: dict[str, Tensor]) -> Tensor:
        """y: what f_sr should say and f_sa should not."""
        return outputs["english" if stage == "cla" or self.options.cma_semantics == "english" else "visual"]

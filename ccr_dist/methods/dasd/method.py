"""Method `dasd`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ccr_dist.data.stream.loader import Batch
from ccr_dist.errors import ConfigError
from ccr_dist.losses.adversarial import Discriminator, confusion_loss, discriminator_loss
from ccr_dist.losses.context import Context
from ccr_dist.methods.crosslingual.method import CrossLingual
from ccr_dist.methods.dasd.characteristics import Characteristics
from ccr_dist.methods.dasd.options import DasdOptions
from ccr_dist.methods.features import precise
from ccr_dist.methods.registry import register_method
from ccr_dist.models.adapters import AdapterBank, Core, CoreGenerator
from ccr_dist.models.frontend import Tokens

USED: dict[str, tuple[str, ...]] = {"both": ("sr", "sa"), "sr": ("sr",), "sa": ("sa",), "none": ()}


@register_method("dasd")
class Dasd(CrossLingual):
    Options = DasdOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError, besides the base's, when the tower has fewer blocks than the trunk."""
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
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        return checkpoint(function, *inputs, use_reentrant=False) if again else function(*inputs)

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
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

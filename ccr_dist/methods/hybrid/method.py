"""Method `hybrid`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from ccr_dist.data.stream.loader import Batch
from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.retrieval import Fusion
from ccr_dist.losses.context import Context
from ccr_dist.losses.slots import slot_scores
from ccr_dist.methods.dasd.method import Dasd
from ccr_dist.methods.features import frozen, image_tokens, nothing_like, precise, text_states
from ccr_dist.methods.hybrid.options import HybridOptions
from ccr_dist.methods.registry import register_method
from ccr_dist.models import token_counts
from ccr_dist.models.slots import Interaction, Slots
from ccr_dist.models.temporal import mean_over_time

VISUAL = ("narrow", "slots", "interaction", "to_global", "to_local")


@register_method("hybrid")
class Hybrid(Dasd):
    Options = HybridOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError, besides DASD's, where the image encoder has no tokens or the heads do not divide their width."""
        super().build(texts, state)
        options, backbone = self.options, self.backbone
        width = options.width or backbone.token_width
        if width % options.heads:
            raise ConfigError(f"method.heads: {options.heads} heads do not divide tokens of width {width}")
        if options.width:
            self.net["narrow"] = nn.Linear(backbone.token_width, width)
        attention: dict[str, Any] = {"heads": options.heads, "dropout": options.slot_dropout}
        self.net["slots"] = Slots(self.tower.width, width, options.slots, options.slot_blocks, **attention)
        self.net["interaction"] = Interaction(width, options.blocks, **attention)
        for name in ("to_global", "to_local"):
            self.net[name] = head = nn.Linear(width, backbone.dim)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.filled_contexts = 0

    def trainable(self, stage: str) -> list[str]:
        return [f"net.{name}." for name in self.net if stage == "cma" or name not in VISUAL]

    @property
    def truncated(self) -> int:
        return super().truncated + self.filled_contexts

    # Encoding and scoring.

    def encode_visual(
        self, visual: Tensor, mask: Tensor | None = None, description: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Pictures (n, 3, H, W), or tokens or frames (n, T, F) with their mask (n, T), to {"global": (n, D), "local":
        (n, slots, D)}.
        """
        found = self._described(visual, mask, description)
        return {name: found[name] for name in self.visual_parts}

    def _described(self, visual: Tensor, mask: Tensor | None, description: Sequence[str]) -> dict[str, Tensor]:
        """ "own" (n, D), without gradient: the backbone's feature v; "global", "local"."""
        n, net = len(visual), self.net
        if not n:
            visual, mask = nothing_like(visual), None
        states, states_mask, full = text_states(self.tower, description)
        self.filled_contexts += token_counts.once(full)
        tokens = frozen(lambda: image_tokens(self.backbone, visual)) if visual.ndim == 4 else visual
        if tokens.shape[-1] != self.backbone.token_width:
            raise ConfigError(
                f"data.visual holds vectors of width {tokens.shape[-1]}, but tokens of {self.backbone.name} have "
                f"{self.backbone.token_width}: make them with `ccr-dist featurise --from image --tokens`"
            )
        slots = net["slots"](states, states_mask, self.gradient_checkpointing)
        read = net["narrow"](tokens) if self.options.width else tokens
        enriched, semantics = net["interaction"](read, slots, mask, self.gradient_checkpointing)
        own = frozen(lambda: self.backbone.project_image(self._pooled(tokens, mask)))
        found = {
            "own": own,
            "global": own + net["to_global"](self._pooled(enriched, mask)),
            "local": own.unsqueeze(1) + net["to_local"](semantics),
        }
        return {name: value[:n] for name, value in found.items()}

    def _pooled(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        return tokens[:, 0] if self.options.visual == "image" else mean_over_time(tokens, mask)

    @property
    def visual_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("global", "local") if any(alpha != 1 for alpha in self.options.alpha) else ("global",)

    def scores(self, text: Mapping[str, Tensor], visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cosines of texts with items, and with the best slot of each."""
        parts = super().scores(text, visual)
        return parts | {"local": _best_slot(visual["local"], text["global"]).T} if "local" in visual else parts

    def fusions(self) -> list[Fusion]:
        return [
            Fusion({"global": alpha, "local": round(1 - alpha, 6)} if alpha != 1 else {"global": 1.0})
            for alpha in self.options.alpha
        ]

    # Training.

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """DASD's and, in CMA, visual (n, D), own (n, D) without gradient, local (n, slots, D)."""
        result = super().outputs(stage, batch)
        if stage == "cma":
            assert batch.visual is not None
            found = self._described(batch.visual, batch.visual_mask, batch.description)
            result |= {"visual": found["global"], "own": found["own"], "local": found["local"]}
        return result

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        options, terms = self.options, super().losses(stage, batch, outputs, ctx)
        if stage == "cla":
            return terms
        group = batch.group if options.positives == "group" else None
        english, target = outputs["english"], outputs["global"]
        if options.english:
            terms["english"] = options.english * ctx.contrastive(
                english, outputs["visual"], scale=options.scale, group=group
            )
        if options.local:
            both = (_best_slot(outputs["local"], ctx.gather(text)) for text in (english, target))
            matched = [ctx.matching(options.scale * scores, group=group) for scores in both]
            terms["local"] = options.local * (matched[0] + matched[1])
        return terms

    def _semantics(self, stage: str, outputs: dict[str, Tensor]) -> Tensor:
        return super()._semantics(stage, outputs if stage == "cla" else {**outputs, "visual": outputs["own"]})


def _best_slot(local: Tensor, text: Tensor) -> Tensor:
    """max_k cos(l_ik, x_j) of items' slots (n, K, D) and texts (m, D): (n, m)."""

    return slot_scores(normalize(precise(local), dim=-1), normalize(precise(text), dim=-1))

"""DASD's text tower with LECCR's visual side: slots of a description enrich frozen visual tokens, adapters bring
captions there. Not from a paper; the two act on different towers.

Tokens V0 of the frozen image encoder (the global one first; or frames) and slots S0 of the description, over frozen
states of the English text tower, read each other (`models/slots.py`). In the space of the backbone, with v its own
global feature of the item:

    g = v + W_g V1[0]      l_k = v + W_l S1_k      both W zero at the start, where each score is the backbone's

CLA is DASD's, and leaves the visual side alone. CMA has DASD's terms with g for the picture, and the same InfoNCE of g
with the frozen English feature ("english"), which keeps the gallery in reach of English queries, and of the best slot
with the caption ("local", cosines, for either language). What f_sr is drawn to and f_sa kept from in CMA is v, a
constant. Scores may be fused with that of the best slot, by the first of `alpha` in training and the best on validation
at test. The width of the heads is the backbone's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ccr_dist.errors import ConfigError
from ccr_dist.methods.base import Stage, register
from ccr_dist.methods.dasd import Dasd, DasdOptions
from ccr_dist.methods.features import frozen, image_tokens, text_states
from ccr_dist.models import token_counts

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.data.stream.loader import Batch
    from ccr_dist.evaluate.retrieval import Fusion
    from ccr_dist.losses.context import Context

VISUAL = ("narrow", "slots", "interaction", "to_global", "to_local")


class HybridOptions(DasdOptions):
    name: Literal["hybrid"]  # type: ignore[assignment]
    visual: Literal["image", "video"] = Field(
        "image", description="what tokens are: of a picture, the first one global, or frames"
    )
    width: int | None = Field(None, gt=0, description="project tokens to this width first; none: their own")
    slots: int = Field(4, gt=0, description="learned vectors that collect the content of a description")
    slot_blocks: int = Field(3, gt=0, description="blocks of attention from slots to the description")
    blocks: int = Field(2, gt=0, description="of the interaction")
    heads: int = Field(8, gt=0, description="of the slots' and the interaction's attention")
    slot_dropout: float = Field(0.1, ge=0, lt=1, description="in the slots' attention")
    english: float = Field(1.0, ge=0, description="weight of the InfoNCE of pictures and English features")
    local: float = Field(
        0.01, ge=0, description="weight of the match of captions of either language with the best slot"
    )
    alpha: tuple[float, ...] = Field(
        (1.0, 0.9, 0.8, 0.7),
        min_length=1,
        description="shares of the global score, the rest is the best slot's; validation chooses",
    )


@register("hybrid")
class Hybrid(Dasd):
    Options = HybridOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError, besides DASD's, where the image encoder has no tokens or the heads do not divide their width."""
        from torch import nn

        from ccr_dist.models.slots import Interaction, Slots

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

    @classmethod
    def stages(cls, options: HybridOptions) -> dict[str, Stage]:  # type: ignore[override]
        stages = super().stages(options)
        if "cma" in stages:
            needs = stages["cma"].needs - {"visual"} | cls.gallery(options) | {"source_feature"}
            about = "all of net: translated captions and described pictures towards each other and English features"
            stages["cma"] = Stage(needs, about, frozenset({"tokens"}))
        return stages

    def trainable(self, stage: str) -> list[str]:
        return [f"net.{name}." for name in self.net if stage == "cma" or name not in VISUAL]

    @property
    def truncated(self) -> int:
        return super().truncated + self.filled_contexts

    # Encoding and scoring.

    @classmethod
    def gallery(cls, options: HybridOptions) -> frozenset[str]:
        return frozenset({"tokens", "description"})

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
        if not n:  # one item that is nothing, cut off again
            visual, mask = (
                visual.new_zeros((1, *(visual.shape[1:] if visual.ndim == 4 else (1, visual.shape[-1])))),
                None,
            )
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
        from ccr_dist.models.temporal import mean_over_time

        return tokens[:, 0] if self.options.visual == "image" else mean_over_time(tokens, mask)

    @property
    def visual_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("global", "local") if any(alpha != 1 for alpha in self.options.alpha) else ("global",)

    def scores(self, text: Mapping[str, Tensor], visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cosines of texts with items, and with the best slot of each."""
        parts = super().scores(text, visual)
        return parts | {"local": _best_slot(visual["local"], text["global"]).T} if "local" in visual else parts

    def fusions(self) -> list[Fusion]:
        from ccr_dist.evaluate.retrieval import Fusion

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
    from torch.nn.functional import normalize

    from ccr_dist.losses.slots import slot_scores
    from ccr_dist.methods.features import precise

    return slot_scores(normalize(precise(local), dim=-1), normalize(precise(text), dim=-1))
